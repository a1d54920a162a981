"""Reading of image files: the result is always 8-bit RGB, upright, and a single picture."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.data.image_headers import FORMATS, Header, find_damage, read_header
from yolov7.errors import DataError, one_line
from yolov7.system.files import open_regular

Image = NDArray[np.uint8]  # H W 3, RGB
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
MAX_PIXELS = 178_956_970  # of 8 bits a sample, half a gigabyte as RGB; deeper images may have proportionally fewer
JPEG_START = b"\xff\xd8\xff"
MAX_BYTES = 2**30  # of an image file
_MAX_SIDE = 1_000_000  # pixels
_MAX_DECODED = 4 * 10**9  # pixels that the scans of a progressive JPEG file may go over
_LOW_RANGE = 2**14  # a 16-bit image whose values are all below becomes darker than a quarter of full brightness
_REDUCED = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}  # these flags mean grey only if no colour is requested with them


def read_image(path: Path, *, reduce: int = 1) -> Image:
    """Read an image file.

    Grey, 16-bit, palette and CMYK files are converted to RGB, and the EXIF rotation is applied.

    Args:
        path: The image file.
        reduce: 1, 2, 4 or 8. A JPEG file is decoded at this fraction of its sides, rounded up, which is faster.

    Returns:
        The image as (H, W, 3) uint8 RGB.

    Raises:
        DataError: If the file is missing, truncated, not an image, or larger than `MAX_PIXELS`.
    """
    return decode_content(path, read_content(path), reduce=reduce)


def decode_image(content: bytes, *, reduce: int = 1, grey: bool = False) -> Image | None:
    """Decode the bytes of an image file; of an animation the first frame.

    Args:
        content: The bytes of the file.
        reduce: As in `read_image`.
        grey: Decode a JPEG file as (H, W) grey values. All of its data are read, but only the brightness is computed.

    Returns:
        The image as (H, W, 3) uint8 RGB, or None if `explain_refusal` says why there is none.
    """
    if _refusal(content) is not None:
        return None
    flags = cv2.IMREAD_COLOR_RGB
    if content.startswith(JPEG_START):  # other formats would be decoded in full size first
        flags = cv2.IMREAD_GRAYSCALE if grey else flags
        flags |= _REDUCED.get(reduce, 0)
    return _decode(content, flags)


def explain_refusal(content: bytes) -> str:
    """Return why `decode_image` refuses a file.

    Args:
        content: The bytes of a file that `decode_image` refused.

    Returns:
        The end of a sentence that starts with the name of the file.
    """
    return _refusal(content) or "is not an image that can be decoded"


def _refusal(content: bytes) -> str | None:
    """Return what is wrong with a file as far as it is visible without decoding."""
    damage = find_damage(content)
    if damage is not None:
        return damage
    header = read_header(content)
    if header is None:
        return f"is not an image of a known format ({FORMATS})"
    pixels = header.width * header.height
    allowed = MAX_PIXELS * 8 // max(8, header.bits)
    if pixels > allowed or max(header.width, header.height) > _MAX_SIDE:
        return f"has {header.width} x {header.height} pixels, and {allowed:,} are allowed"
    if pixels * header.scans > _MAX_DECODED:
        return f"goes {header.scans} times over its {header.width} x {header.height} pixels, which would take too long"
    return None


def _decode(content: bytes, flags: int) -> Image | None:
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)  # type: ignore[return-value]
    except (cv2.error, MemoryError):
        return None


def read_content(path: Path) -> bytes:
    """Return the bytes of an image file.

    Args:
        path: The image file.

    Raises:
        DataError: If the file cannot be read, or has more than `MAX_BYTES`.
    """
    try:
        with open_regular(path) as file:
            is_allowed = os.fstat(file.fileno()).st_size <= MAX_BYTES
            content = file.read() if is_allowed else b""
    except (OSError, ValueError, MemoryError) as error:  # a path that no file can have is a ValueError
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"image {path} cannot be read ({reason}); restore the file") from None
    if not is_allowed:
        raise DataError(f"image {path} has more than {MAX_BYTES:,} bytes; replace the file by a smaller one")
    return content


def decode_content(path: Path, content: bytes, *, reduce: int = 1, grey: bool = False) -> Image:
    """Decode the bytes of an image file.

    Args:
        path: The image file, for messages.
        content: Its bytes.
        reduce: As in `read_image`.
        grey: As in `decode_image`.

    Returns:
        The image as (H, W, 3) uint8 RGB.

    Raises:
        DataError: If the content is truncated, not an image, or larger than `MAX_PIXELS`.
    """
    image = decode_image(content, reduce=reduce, grey=grey)
    if image is None:
        what = explain_refusal(content)
        raise DataError(f"image {path} {what} ({len(content)} bytes); replace the file or remove it from the split")
    return image


def largest_deep_value(content: bytes, image: Image) -> int | None:
    """Return the largest value of a 16-bit image that becomes dark in 8 bits although it may not be dark.

    Args:
        content: The bytes of the image file.
        image: The decoded image, (H, W, 3) uint8 RGB.

    Returns:
        The value, or None for every other image.
    """
    header = read_header(content) or Header(0, 0)
    if header.bits <= 8 or image.max(initial=0) >= _LOW_RANGE >> 8:
        return None
    deep = _decode(content, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    if deep is None or deep.dtype.itemsize < 2 or not 0 < (largest := int(deep.max(initial=0))) < _LOW_RANGE:
        return None
    return largest
