"""Reading of YAML files that people write: a mapping of plain values in which no key occurs twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolov7.errors import DataError, SettingError, one_line
from yolov7.system.files import is_file
from yolov7.system.text_files import decode_utf8, read_bytes

MAX_BYTES = 1 << 20  # size of a file


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read the mapping that a YAML file contains.

    Args:
        path: A regular file in UTF-8, with or without a byte-order mark.

    Returns:
        The mapping. Aliases and merge keys are expanded.

    Raises:
        SettingError: If the file is missing, unreadable, too large, not YAML or not a mapping.
    """
    from yolov7.system.strict_yaml import parse_yaml

    text = _read_text(path)
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise SettingError(f"{path} is not usable YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise SettingError(f"{path} must contain a mapping of names to values; it contains {type(content).__name__}")
    return content


def _read_text(path: Path) -> str:
    if not is_file(path):
        name = one_line(path, limit=300)
        raise SettingError(f"{name} does not exist or is not a regular file; check its name")
    try:
        return decode_utf8(read_bytes(path, limit=MAX_BYTES), path)
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}); make it readable for you") from None
    except DataError as error:
        raise SettingError(str(error)) from None
