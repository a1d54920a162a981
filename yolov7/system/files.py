"""Files that are complete at any time."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
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


def why_no_file(path: Path) -> str:
    """Describe what a path is instead of a regular file, as the end of a sentence.

    Args:
        path: A path for which `is_file` is false.

    Returns:
        For example `is a folder` or `does not exist`.
    """
    try:
        return "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
    except OSError:
        return "does not exist"


def open_regular(path: Path) -> BufferedReader:
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


def sha256_of(path: Path) -> str:
    """Return the SHA-256 hash of a regular file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits, as `sha256sum` prints them.

    Raises:
        OSError: If the file cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
