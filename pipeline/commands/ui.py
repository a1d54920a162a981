"""The command `ui`: serve MLflow's web page on the pipeline's runs."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType

from pipeline.console import console
from pipeline.tracking import quiet_environment, ui_command
from yolov7.errors import SettingError

_HOST = "127.0.0.1"
_SECONDS_TO_STOP = 10.0


def open_ui(*, port: int) -> int:
    """Serve MLflow's web page until Ctrl-C or SIGTERM.

    Args:
        port: The port on the loopback interface.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM, else that of the server.

    Raises:
        SettingError: The port cannot be used, or the runs are on a server, which has its own page.
    """
    command = ui_command(host=_HOST, port=port)
    _check_port(port)
    console.print(f"MLflow starts at http://{_HOST}:{port}; its chart view compares the variants; Ctrl-C stops it")
    return run_until_stopped(command, environment=quiet_environment())


def run_until_stopped(command: Sequence[str], *, environment: Mapping[str, str]) -> int:
    """Run a server, and stop it together with its child processes on Ctrl-C or SIGTERM.

    Args:
        command: The program and its arguments.
        environment: Its environment variables.

    Returns:
        0 if it was stopped, else the exit code of the server.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _stop_group(server)
        signal.signal(signal.SIGTERM, previous)


def _stop_group(server: subprocess.Popen[bytes]) -> None:
    """End the server's process group: politely, and after ten seconds by force."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(_SECONDS_TO_STOP)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _check_port(port: int) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((_HOST, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingError(f"port={port} is in use by another program; try `yolov7 ui --port {port + 1}`") from None
        reason = error.strerror or str(error)
        raise SettingError(f"port={port} cannot be used ({reason}); try `yolov7 ui --port 5000`") from None
