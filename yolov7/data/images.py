"""Reading image files: always 8-bit RGB and upright, whatever the file holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.errors import DataError

Image = NDArray[np.uint8]  # H W 3, RGB
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"


@dataclass(frozen=True)
class ImageFacts:
    """Size in pixels after the EXIF rotation, and a hash of the file's bytes."""

    width: int
    height: int
    content_hash: str


def read_image(path: Path) -> Image:
    """The image as (H, W, 3) uint8 RGB; grey, 16-bit, palette and CMYK files are converted, EXIF rotation applied.

    DataError when the file is missing, truncated or not an image.
    """
    image, _ = _read(path)
    return image


def inspect_image(path: Path) -> ImageFacts:
    """Decodes the whole file, so that what passes here can be trained on; DataError as `read_image`."""
    image, content = _read(path)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return ImageFacts(width=image.shape[1], height=image.shape[0], content_hash=digest)


def decode_image(content: bytes) -> Image | None:
    """An image file's bytes as (H, W, 3) uint8 RGB; None where they are not a whole image."""
    if not content or _is_truncated(content):
        return None
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)  # type: ignore[return-value]
    except cv2.error:
        return None


def _read(path: Path) -> tuple[Image, bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(
            f"image {path} cannot be read ({reason}); restore the file or run `yolov7 prepare` again"
        ) from None
    image = decode_image(content)
    if image is None:
        what = "is empty" if not content else "is truncated" if _is_truncated(content) else "is not an image"
        raise DataError(f"image {path} {what} ({len(content)} bytes); replace the file or remove it from the split")
    return image, content


def _is_truncated(content: bytes) -> bool:
    """Whether the end of a JPEG or PNG is missing, which the decoder would fill with grey."""
    if content.startswith(_JPEG_START):
        return content.find(_JPEG_END, content.rfind(_JPEG_SCAN)) < 0
    return content.startswith(_PNG_START) and content.rfind(_PNG_END) < 0
