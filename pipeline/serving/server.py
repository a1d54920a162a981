"""Run an application with uvicorn, in this process only, until it is interrupted."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import uvicorn

from yolov7.errors import SettingError, one_line

_GRACE_SECONDS = 10  # for requests in progress when the server is told to end
_LARGEST_PORT = 65535


def reserve_port(host: str, port: int) -> socket.socket:
    """Reserve the port of a server. Connections are refused until the server starts.

    Args:
        host: The name or address of the network interface.
        port: The port; 0 chooses one that is free.

    Returns:
        The socket, which the caller closes.

    Raises:
        SettingError: If the port cannot be used.
    """
    if not 0 <= port <= _LARGEST_PORT:
        raise SettingError(f"--port={port} must be between 0 and {_LARGEST_PORT}; 0 chooses a free port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise SettingError(f"--host={host} is no name or address of this machine ({one_line(error)})") from None
    reserved = socket.socket(family, kind, protocol)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
    except OSError as error:
        reserved.close()
        raise _unusable(port, error) from None
    return reserved


def run_server(application: Any, reserved: socket.socket, *, on_ready: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM. Requests in progress are finished, for at most 10 seconds.

    Args:
        application: The ASGI application.
        reserved: The socket of `reserve_port`.
        on_ready: Receives the address as soon as requests are answered.

    Raises:
        SettingError: If the port cannot be used.
    """
    host, port = reserved.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    with _signals_end_normally():
        try:
            _Server(config, lambda: on_ready(address)).run(sockets=[reserved])
        except OSError as error:  # another process reserved the same port at the same time, and has started first
            raise _unusable(port, error) from None


@final
class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


@contextmanager
def _signals_end_normally() -> Iterator[None]:
    """Ignore the signals that uvicorn raises once more after it has ended because of them."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unusable(port: int, error: OSError) -> SettingError:
    reason = one_line(error.strerror or error)
    return SettingError(f"port {port} cannot be used ({reason}); choose another one with --port")
