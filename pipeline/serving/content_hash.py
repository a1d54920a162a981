"""The hash that identifies a model, whatever its file is called."""

from __future__ import annotations

import hashlib
from pathlib import Path

from yolov7.system.files import sha256_of


def hash_content(path: Path) -> str:
    """Return the SHA-256 hash of a file, or of the names and hashes of all files of a folder.

    Args:
        path: The file or folder.

    Returns:
        The hash in hexadecimal digits; for a file as `sha256sum` prints it.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{hash_content(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    return sha256_of(path)
