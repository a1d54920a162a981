"""Files that are complete at any time."""

from __future__ import annotations

import os
from pathlib import Path


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False also for a path that cannot exist, such as one too long.

    Args:
        path: Any path.
    """
    try:
        return path.is_file()
    except OSError:
        return False


def write_whole(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Replace a file at once: readers and interruptions see either the old or the new content.

    Args:
        path: The file to write; missing parent folders are created.
        content: The new content.
        durable: Whether the content must be on disk when this returns, which takes some milliseconds. Without it, a
            power failure may lose the newest content.

    Raises:
        OSError: The file cannot be written. The error names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:  # for a full disk, the original error names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        draft.unlink(missing_ok=True)
