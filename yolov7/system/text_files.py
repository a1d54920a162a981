"""Reading of text files that tools of any platform wrote: UTF-8 with or without a byte order mark, UTF-16, cp1252."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

from yolov7.errors import DataError, one_line
from yolov7.system.files import open_regular

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_bytes(path: Path, *, limit: int | None = None) -> bytes:
    """Read a regular file.

    Args:
        path: The file.
        limit: The largest allowed size, bytes.

    Returns:
        Its content.

    Raises:
        OSError: If the file cannot be read.
        DataError: If it is larger than the limit or does not fit into memory.
    """
    try:
        with open_regular(path) as file:
            content = file.read() if limit is None else file.read(limit + 1)
    except MemoryError:
        raise DataError(f"{path} does not fit into the memory of this machine; split it into several files") from None
    if limit is not None and len(content) > limit:
        raise DataError(
            f"{path} is larger than {limit / 2**20:g} MiB, the limit for such files; check that it is the right file"
        )
    return content


def decode_utf8(content: bytes, path: Path) -> str:
    """Decode the content of a file that must be UTF-8, because other programs read it as UTF-8 too.

    Args:
        content: The content.
        path: The file, for messages.

    Returns:
        The text without a byte order mark.

    Raises:
        DataError: If the content is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte 0x{content[error.start]:02x} in line {content[: error.start].count(10) + 1}"
        raise DataError(f"{path} is not text in UTF-8 ({where}); save it in the encoding UTF-8") from None


def decode_text(content: bytes, path: Path) -> str:
    """Decode the content of a text file.

    A byte order mark decides. Without one, zero bytes mean UTF-16 or UTF-32; what is not valid UTF-8 is read as cp1252,
    the encoding of older Windows tools.

    Args:
        content: The content.
        path: The file, for messages.

    Returns:
        The text without a byte order mark.

    Raises:
        DataError: If the content has none of these encodings.
    """
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if not content.startswith(_MARKS):
            try:
                return content.decode("cp1252")
            except UnicodeDecodeError:
                pass
        raise DataError(
            f"{path} is not text in UTF-8, UTF-16 or cp1252 ({one_line(error)}); save it as UTF-8"
        ) from None
    except MemoryError:
        raise DataError(f"{path} does not fit into the memory of this machine; split it into several files") from None
