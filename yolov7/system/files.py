"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether a file is there; False also for a path that none can have, such as one too long."""
    try:
        return path.is_file()
    except OSError:
        return False


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
