"""The content of the header of an image file: its size and depth, and whether the file is truncated.

The decoder allocates memory for all pixels that a header declares, which may be gigabytes for a file of a few bytes.
Every file is therefore judged by its header before it is decoded.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

FORMATS = "JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF, JPEG 2000, PNM"
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type
_JPEG_END, _JPEG_SCAN = b"\xff\xd9", b"\xff\xda"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that state the size of the picture
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})
_JPEG_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers without a segment
_TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_SAMPLES, _TIFF_TILE = 256, 257, 258, 277, (322, 323)
_PNM = re.compile(rb"P([1-6])(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})(?:(?:\s|#[^\n]*\n)+(\d{1,9}))?")


class Header(NamedTuple):
    """The size of an image in pixels, before any rotation, and the bits of a sample.

    Attributes:
        width: Columns.
        height: Rows.
        bits: Bits of one sample of one channel: 8, or 16 and more for deep images and for JPEG 2000, whose decoder
            needs as much memory as for deep images.
        scans: How many times a progressive JPEG file goes over its pixels; 1 for all others.
        channels: The samples of a pixel as a JPEG or PNG file states them, 3 for a palette; None for other formats.
    """

    width: int
    height: int
    bits: int = 8
    scans: int = 1
    channels: int | None = None


def read_header(content: bytes) -> Header | None:
    """Return what the header of an image file states.

    Args:
        content: The bytes of the file.

    Returns:
        The header, or None if the file has none of the formats in `FORMATS` or ends within its header.
    """
    read = next((read for start, read in _READERS if content.startswith(start)), None)
    if content[4:8] == b"ftyp":
        read = _avif
    try:
        return read(content) if read is not None else None
    except (struct.error, IndexError, ValueError, OverflowError):
        return None


def find_damage(content: bytes) -> str | None:
    """Return what is wrong with a file, as far as it can be seen without decoding.

    The JPEG decoder fills missing parts with grey, and the PNG decoder prints to the standard error. Both formats are
    therefore followed to their ends here. Bytes behind the end of the picture are allowed: phones append a video.

    Args:
        content: The bytes of the file.

    Returns:
        The end of a sentence that starts with the name of the file, or None if no damage was found.
    """
    if not content:
        return "is empty"
    if content.startswith(_JPEG):
        scan = next((position for marker, position in _jpeg_segments(content) if marker == 0xDA), -1)
        # Within the data of a scan, a byte 0xff is always followed by a zero or a restart marker. The search begins
        # behind, where almost every file has its end.
        return None if scan >= 0 and content.rfind(_JPEG_END, scan) >= 0 else "is truncated"
    return _png_damage(memoryview(content)) if content.startswith(_PNG) else None


def _png_damage(content: memoryview) -> str | None:
    """Follow the chunks: length, kind, data, checksum; a kind in lower case may be ignored by decoders."""
    start = len(_PNG)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            break
        kind, checksum = bytes(content[start + 4 : start + 8]), int.from_bytes(content[end - 4 : end], "big")
        if kind[:1].isupper() and zlib.crc32(content[start + 4 : end - 4]) != checksum:
            return "is damaged"
        if kind == b"IEND":
            return None
        start = end
    return "is truncated"


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker and the position of each segment up to and including the first scan."""
    position = 2
    while 0 <= (position := content.find(b"\xff", position)) < len(content) - 3:
        marker = content[position + 1]
        if marker in (0xFF, 0x00):  # fill bytes, or bytes that belong to no segment
            position += 1
        elif marker in _JPEG_BARE:
            position += 2
        elif marker == 0xD9:
            return
        else:
            length = int.from_bytes(content[position + 2 : position + 4], "big")
            if position + 2 + length > len(content):
                return
            yield marker, position
            if marker == 0xDA:
                return
            position += 2 + length


def _jpeg(content: bytes) -> Header | None:
    frame, scan = None, -1
    for marker, position in _jpeg_segments(content):
        if marker in _JPEG_FRAMES and frame is None:
            frame = marker, position
        elif marker == 0xDA:
            scan = position
    if frame is None:
        return None
    marker, position = frame
    bits, height, width, channels = struct.unpack_from(">BHHB", content, position + 4)
    # The decoder stops after the first scan of a file that is not progressive if this scan has all channels.
    is_single = marker in _JPEG_SEQUENTIAL and scan >= 0 and content[scan + 4 : scan + 5] == bytes([channels])
    scans = 1 if is_single else max(1, content.count(_JPEG_SCAN, position))
    return Header(width, height, bits, scans=scans, channels=channels)


def _png(content: bytes) -> Header | None:
    width, height, bits, colour = struct.unpack_from(">IIBB", content, 16)
    is_png = content[12:16] == b"IHDR"
    return Header(width, height, max(8, bits), channels=_PNG_CHANNELS.get(colour)) if is_png else None


def _gif(content: bytes) -> Header:
    width, height = struct.unpack_from("<HH", content, 6)
    return Header(width, height)


def _bmp(content: bytes) -> Header:
    if struct.unpack_from("<I", content, 14)[0] == 12:  # the header of OS/2
        width, height = struct.unpack_from("<HH", content, 18)
        return Header(width, height)
    width, height = struct.unpack_from("<ii", content, 18)
    return Header(abs(width), abs(height))


def _webp(content: bytes) -> Header | None:
    kind = content[12:16]
    if content[8:12] != b"WEBP":
        return None
    if kind == b"VP8X":
        return Header(1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little"))
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", content, 21)
        return Header(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return Header(width & 0x3FFF, height & 0x3FFF)
    return None


def _tiff(content: bytes) -> Header | None:
    """Read the first directory; a tile larger than the image counts as the image, since it is decoded whole."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    (start,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", content, 8 if is_big else 4)
    (count,) = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", content, start)
    first, step, inline = (start + 8, 20, 12) if is_big else (start + 2, 12, 8)
    values: dict[int, int] = {}
    for place in range(first, first + step * min(count, 1000), step):
        tag, kind = struct.unpack_from(f"{order}HH", content, place)
        if kind in _TIFF_TYPES:
            length = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", content, place + 4)[0]
            at = place + inline
            if length * struct.calcsize(_TIFF_TYPES[kind]) > step - inline:
                (at,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", content, at)
            (values[tag],) = struct.unpack_from(order + _TIFF_TYPES[kind], content, at)
    if not (values.get(_TIFF_WIDTH) and values.get(_TIFF_HEIGHT)):
        return None
    width, height = (
        max(values[side], values.get(tile, 0))
        for side, tile in zip((_TIFF_WIDTH, _TIFF_HEIGHT), _TIFF_TILE, strict=True)
    )
    bits = max(8, values.get(_TIFF_BITS, 1))
    return Header(width, height, bits * -(-values.get(_TIFF_SAMPLES, 1) // 4))  # samples beyond 4 are decoded too


def _jpeg_2000(content: bytes) -> Header | None:
    """Read the size marker of the code stream, which also lies within the boxes of a JP2 file."""
    position = content.find(b"\xff\x4f\xff\x51")
    if position < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", content, position + 8)
    bits = (content[position + 42] & 0x7F) + 1
    return Header(right - left, bottom - top, max(16, bits)) if right > left and bottom > top else None  # see `bits`


def _avif(content: bytes) -> Header | None:
    """Take the largest of the sizes that are stated: the parts of a grid have sizes of their own."""
    sizes, position = [(0, 0)], content.find(b"ispe")
    while position >= 0:
        sizes.append(struct.unpack_from(">II", content, position + 8))
        position = content.find(b"ispe", position + 4)
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header(width, height) if width and height else None


def _pnm(content: bytes) -> Header | None:
    found = _PNM.match(content[:10_000])
    if found is None:
        return None
    kind, width, height, largest = found.groups()
    is_deep = kind not in b"14" and int(largest or 0) > 255
    return Header(int(width), int(height), 16 if is_deep else 8)


_READERS: tuple[tuple[bytes, Callable[[bytes], Header | None]], ...] = (
    (_JPEG, _jpeg),
    (_PNG, _png),
    (b"RIFF", _webp),
    (b"GIF8", _gif),
    (b"BM", _bmp),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
    (b"II+\0", _tiff),
    (b"MM\0+", _tiff),
    (b"\0\0\0\x0cjP  ", _jpeg_2000),
    (b"\xff\x4f\xff\x51", _jpeg_2000),
    *((b"P%d" % kind, _pnm) for kind in range(1, 7)),
)
