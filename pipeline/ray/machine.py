"""Check what this machine must offer for Ray to start on it. Ray itself would wait for minutes without a message."""

from __future__ import annotations

import os
import socket

from pipeline.ray.errors import ClusterError

_LONGEST_SOCKET_PATH = 107  # bytes, of a Unix socket
_SESSION = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"  # the longest path, as Ray names it
_FEWEST_OPEN_FILES = 1024


def check_machine() -> None:
    """Check the loopback interface, the limit of open files and the temporary folder.

    Raises:
        ClusterError: If Ray could not start. The message names the remedy.
    """
    _check_loopback()
    _check_open_files()
    _check_temporary_folder()


def _check_loopback() -> None:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise ClusterError(
            f"Ray cannot start: the loopback interface 127.0.0.1 does not work ({error.strerror or error}), and Ray's "
            "processes communicate over it; enable it (ip link set lo up)"
        ) from None


def _check_open_files() -> None:
    """Raise the limit of open files as far as this process may, and check that it suffices."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FEWEST_OPEN_FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < _FEWEST_OPEN_FILES:
        raise ClusterError(
            f"Ray cannot start: a process may open {hard} files here, and Ray needs {_FEWEST_OPEN_FILES}; raise the "
            f"limit (ulimit -n {_FEWEST_OPEN_FILES})"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FEWEST_OPEN_FILES, hard))


def _check_temporary_folder() -> None:
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    length = len(os.fsencode(f"{folder}/{_SESSION.format(pid=os.getpid())}"))
    if length > _LONGEST_SOCKET_PATH:
        raise ClusterError(
            f"Ray cannot start: the temporary folder {folder} is too long for Ray's sockets ({length} bytes, at most "
            f"{_LONGEST_SOCKET_PATH}); set RAY_TMPDIR or a shorter TMPDIR, such as /tmp"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ClusterError(
            f"Ray cannot start: the temporary folder {folder} is missing or cannot be written; set RAY_TMPDIR to a "
            "folder that can be written"
        )
