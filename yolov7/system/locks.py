"""Locks between processes: a process holds a file until it releases it or ends, in whatever way it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from yolov7.errors import ArtifactError

_RETRY_SECONDS = 0.1


@contextmanager
def exclusive(path: Path, *, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock during a `with` statement.

    Args:
        path: The lock file. It remains afterwards; only the lock on it counts.
        what: The name of what is locked, for the error message.
        patience: How many seconds to wait if another process holds the lock.

    Raises:
        ArtifactError: Another process still holds the lock after `patience` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        _acquire(file, what=what, until=time.monotonic() + patience)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            _release(file)


def _release(file: IO[str]) -> None:
    """Release the lock also if a forked process, such as one of a loader, still has the file open."""
    import fcntl

    fcntl.flock(file, fcntl.LOCK_UN)


def _acquire(file: IO[str], *, what: str, until: float, kind: int | None = None) -> None:
    import fcntl

    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if kind is None else kind) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                file.seek(0)
                process = file.read(20)
                holder = f"another process ({process})" if process else "another process"
                raise ArtifactError(f"{what} is in use by {holder}; wait for it, or end it") from None
        time.sleep(_RETRY_SECONDS)


@contextmanager
def shared(path: Path, *, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock during a `with` statement; other processes may share it, but not hold it exclusively.

    Args:
        path: The lock file. It remains afterwards; only the lock on it counts.
        what: The name of what is locked, for the error message.
        patience: How many seconds to wait if another process holds the lock exclusively.

    Raises:
        ArtifactError: Another process still holds the lock exclusively after `patience` seconds.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _acquire(file, what=what, until=time.monotonic() + patience, kind=fcntl.LOCK_SH)
        file.truncate(0)  # the number in it is of a process that no longer holds the lock
        yield
