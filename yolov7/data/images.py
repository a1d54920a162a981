"""Reading image files: always 8-bit RGB, upright and a single one, whatever the file holds."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.errors import DataError, one_line

Image = NDArray[np.uint8]  # H W 3, RGB
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_REDUCED = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}  # grey only where no colour is asked for beside it
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"


@dataclass(frozen=True)
class ImageFacts:
    """Size in pixels after the EXIF rotation, and a hash of the file's bytes."""

    width: int
    height: int
    content_hash: str


def read_image(path: Path, *, reduce: int = 1) -> Image:
    """The image as (H, W, 3) uint8 RGB; grey, 16-bit, palette and CMYK files are converted, EXIF rotation applied.

    `reduce` (1, 2, 4 or 8): a JPEG file is decoded at that fraction of its sides, rounded up, which is as much quicker.
    DataError when the file is missing, truncated or not an image.
    """
    image, _ = _read(path, reduce=reduce)
    return image


def inspect_image(path: Path) -> ImageFacts:
    """Decodes the whole file, so that what passes here can be trained on; DataError as `read_image`."""
    image, content = _read(path)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return ImageFacts(width=image.shape[1], height=image.shape[0], content_hash=digest)


def decode_image(content: bytes, *, reduce: int = 1) -> Image | None:
    """An image file's bytes as (H, W, 3) uint8 RGB, of an animation its first frame; None where they are not whole."""
    if _damage(content):
        return None
    flags = cv2.IMREAD_COLOR_RGB
    if reduce > 1 and content.startswith(_JPEG_START):  # other formats would be decoded whole and then thinned out
        flags |= _REDUCED[reduce]
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)  # type: ignore[return-value]
    except cv2.error:
        return None


def _read(path: Path, *, reduce: int = 1) -> tuple[Image, bytes]:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # a path that no file can have is a ValueError
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(
            f"image {path} cannot be read ({reason}); restore the file or run `yolov7 prepare` again"
        ) from None
    image = decode_image(content, reduce=reduce)
    if image is None:
        what = _damage(content) or "is not an image"
        raise DataError(f"image {path} {what} ({len(content)} bytes); replace the file or remove it from the split")
    return image, content


def _damage(content: bytes) -> str | None:
    """What can be seen without decoding: the decoder fills with grey what is missing, or complains by itself."""
    if not content:
        return "is empty"
    if content.startswith(_JPEG_START):
        end = content.rfind(_JPEG_END)  # searched for from behind, which takes no time where it stands at the end
        return "is truncated" if end < 0 or content.find(_JPEG_SCAN, end) >= 0 else None
    return _png_damage(memoryview(content)) if content.startswith(_PNG_START) else None


def _png_damage(content: memoryview) -> str | None:
    """Follows the chunks: length, kind, data, checksum; a small letter begins the kind of those that can be spared."""
    start = len(_PNG_START)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            break
        kind, checksum = bytes(content[start + 4 : start + 8]), int.from_bytes(content[end - 4 : end], "big")
        if kind[:1].isupper() and zlib.crc32(content[start + 4 : end - 4]) != checksum:
            return "is damaged"
        if kind == _PNG_END:
            return None
        start = end
    return "is truncated"
