"""Names of image files in annotations."""

from __future__ import annotations

from pathlib import Path

from yolov7.system.files import is_file


def resolve_name(folder: Path, name: str) -> Path:
    """Return the path of a file that an annotation names; if it does not exist, backslashes are read as slashes.

    Args:
        folder: The folder that the name is relative to.
        name: The name as the annotation states it.
    """
    path = folder / name
    return path if "\\" not in name or is_file(path) else folder / name.replace("\\", "/")
