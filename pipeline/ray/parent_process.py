"""End a process when the one that started it ends: a stage with `dvc repro`, and a training with its command.

This module imports nothing that takes long.

DVC leaves its stages running when it is killed. Such a stage would continue unnoticed, and the next `dvc repro` would
be refused until the stage ends.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_dvc() -> None:
    """Send this process a SIGTERM as soon as the DVC process above it has ended; at once if it has ended already.

    The command line calls this before anything else, because DVC may die while the stage still imports its modules.
    It does nothing in a process that DVC did not start. On Linux the kernel signals the death of the parent process;
    as a shell may lie between DVC and the stage, a thread also watches DVC itself.
    """
    if "DVC_STAGE" not in os.environ:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    dvc = _find_dvc()  # after prctl: a parent that died before that call is found to be missing here
    threading.Thread(target=_watch, args=(dvc,), name="watch-dvc", daemon=True).start()


def end_with_command(number: int) -> None:
    """Send this process a signal as soon as the process that started it by `multiprocessing` has ended.

    Args:
        number: The signal.
    """
    command = multiprocessing.parent_process()
    assert command is not None

    def watch() -> None:
        command.join()
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, name="watch-command", daemon=True).start()


def _watch(dvc: psutil.Process | None) -> None:
    while dvc is not None and _is_alive(dvc):
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_alive(process: psutil.Process) -> bool:
    import psutil

    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _find_dvc() -> psutil.Process | None:
    """Return the nearest process above this one that is not part of a stage; None if DVC has ended.

    Orphans become children of process 1 or of a session's service manager. Process 1 itself can be DVC in a container.
    """
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            if _is_in_stage(process):
                continue
            adopts_orphans = process.pid == 1 or process.name() in {"systemd", "init", "launchd"}
            return None if adopts_orphans and "dvc" not in " ".join(process.cmdline()) else process
    return None


def _is_in_stage(process: psutil.Process) -> bool:
    import psutil

    try:
        return "DVC_STAGE" in process.environ()
    except psutil.AccessDenied:  # a process of another user, such as `sudo`, above DVC or between DVC and the stage
        return False
