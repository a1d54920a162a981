"""The `dvc repro` that a stage runs under."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil


class Repro:
    """DVC's process, which leaves its stages running when it is killed."""

    def __init__(self) -> None:
        self._process = _dvc() if "DVC_STAGE" in os.environ else None

    def check(self) -> None:
        """KeyboardInterrupt where there was one when this object was made, and is none now."""
        if self._process is None:
            return
        with suppress(psutil.Error):
            if self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
                return
        raise KeyboardInterrupt


def _dvc() -> psutil.Process | None:
    """The next process above this one that is not part of a stage; a shell that DVC starts may lie between them."""
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            if "DVC_STAGE" not in process.environ():
                return process
    return None
