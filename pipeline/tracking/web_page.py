"""Run MLflow's web page for the store of this project, and end it together with this process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from types import FrameType

from pipeline.tracking.addresses import redact, sqlite_file, store_address
from pipeline.tracking.database import artifact_root
from pipeline.tracking.shared_view import VIEW_KEY, set_shared_view
from pipeline.tracking.store import TrackingStore, quiet_environment
from yolov7.errors import SettingError, one_line, shown

_LARGEST_PORT = 65535
_GRACE_SECONDS = 10.0  # for MLflow's server to end by itself


def serve_page(experiment: str, *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve MLflow's page until it is interrupted or this process gets SIGTERM.

    Args:
        experiment: The experiment whose runs the address opens.
        host: The address to listen on; `0.0.0.0` lets other machines open the page, which asks for no password.
        port: The port of the page.
        say: Receives the address.

    Raises:
        ModuleNotFoundError: If MLflow is not installed.
        SettingError: If the port cannot be used, the store is a server with a page of its own, the store cannot be
            opened, or MLflow's server ends by itself.
    """
    if find_spec("mlflow") is None:  # the server is another process, whose message would be a traceback
        raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
    address = store_address()
    if address.uri.startswith("http"):
        raise SettingError(f"MLFLOW_TRACKING_URI={address.name} is a server; open that address in a browser")
    _check_port(host, port)
    say(f"MLflow serves {_page_address(experiment, host=host, port=port)}; press Ctrl-C to end it")
    code = _run_until_ended(_command(host, port), environment=_environment(address.uri))
    if code != 0:
        raise SettingError(f"MLflow's server ended with exit code {code}; its own messages are above")


def _check_port(host: str, port: int) -> None:
    if not 1 <= port <= _LARGEST_PORT:
        raise SettingError(f"--port={port} must be between 1 and {_LARGEST_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(address)
    except (OSError, UnicodeError) as error:
        reason = one_line(getattr(error, "strerror", None) or error)
        raise SettingError(
            f"port {port} of {shown(host)} cannot be used ({reason}); choose another one with --port or --host"
        ) from None


def _page_address(experiment: str, *, host: str, port: int) -> str:
    """Return the address of the runs of the experiment, or of the page's start where there is no such experiment."""
    address = store_address()
    start = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    file = sqlite_file(address.uri)
    if file is not None and not file.exists():
        return start
    try:
        store = TrackingStore(address.uri)
        found = store.find_experiment(experiment)
        if found is not None:
            set_shared_view(store.client, found)
    except Exception as error:
        raise SettingError(f"{address.name} cannot be opened: {redact(one_line(error))}") from None
    return start if found is None else f"{start}/#/experiments/{found}/runs?viewStateShareKey={VIEW_KEY}"


def _command(host: str, port: int) -> tuple[str, ...]:
    """Return the command line, which anyone on the machine can read and therefore names no store."""
    return (sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1")


def _environment(uri: str) -> dict[str, str]:
    root = artifact_root(uri)
    where = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_REGISTRY_STORE_URI": uri}
    if root:
        where["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = root
    silence = {"UVICORN_LOG_LEVEL": "warning", "PYTHONWARNINGS": "ignore"}  # no line for each request
    return silence | quiet_environment() | where


def _run_until_ended(command: tuple[str, ...], *, environment: dict[str, str]) -> int:
    """Run a server in a process group of its own, end the whole group with this process, and return its exit code."""
    with _termination_as_exit():
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            return process.wait()
        except (KeyboardInterrupt, SystemExit):
            _end_group(process)
            raise


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit with the exit code that shells use for them."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it started; kill what does not end within the grace period."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
