"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def is_file(path: Path) -> bool:
    """Whether a file is there; False also for a path that none can have, such as one too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    A device or a pipe may block or deliver bytes without end, and a link to one looks like any other path. It is
    therefore opened without blocking, and refused.

    Args:
        path: The file; links are followed.

    Returns:
        The file, open for reading bytes.

    Raises:
        OSError: If the file cannot be opened or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        reason = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "Not a regular file"
        raise OSError(number, reason, str(path))
    return os.fdopen(descriptor, "rb")


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Writes through a draft beside the file, so that no reader and no interruption sees half of it.

    `durable`: on disk when this returns, which takes a moment; without it a power cut may lose the newest content.
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
    except OSError as error:  # a full disk does not say which file it was full for
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        draft.unlink(missing_ok=True)
