"""Messages between programs: images as base64 text or nested lists, detections as values that JSON can represent."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict  # pydantic requires this one before Python 3.12

from yolov7.data.image_headers import read_header
from yolov7.data.images import MAX_PIXELS, Image, decode_image, explain_refusal
from yolov7.errors import DataError
from yolov7.structures import Detections

_BRIGHTEST = 255
_BOX_DECIMALS, _SCORE_DECIMALS = 3, 6


class ImageSize(TypedDict):
    """The size of an image.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
    """

    width: int
    height: int


class DetectionMessage(TypedDict):
    """One detected object.

    Attributes:
        box_xyxy: Left, top, right and bottom in pixels of the image.
        score: Score in 0..1.
        label: Number of the class.
        class_name: Name of the class.
    """

    box_xyxy: list[float]
    score: float
    label: int
    class_name: str


class Answer(TypedDict):
    """The detections of one image.

    Attributes:
        image: The size of the image.
        detections: Its objects, highest score first.
    """

    image: ImageSize
    detections: list[DetectionMessage]


def image_from_message(value: object, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Return an image in any of the forms in which a program can send it.

    Args:
        value: The bytes of an image file; base64 text of them, also as a data URL; or H x W x 3 values (RGB, 0 to 255)
            as nested lists or as an array.
        max_pixels: Largest width times height.

    Returns:
        The image (H, W, 3) uint8 RGB.

    Raises:
        DataError: If the value is no image, or if the image is too large. The message is one sentence.
    """
    if isinstance(value, str):
        value = _decode_base64(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _decode_file(bytes(value), max_pixels=max_pixels)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise DataError("the rows of an image array must have the same length") from None
    is_number = np.issubdtype(array.dtype, np.number)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size or not is_number:
        kind = f"an array of shape {array.shape}" if is_number else type(value).__name__
        raise DataError(f"an image array must be H x W x 3 numbers (RGB, 0 to 255); this is {kind}")
    _check_size(array.shape[1], array.shape[0], max_pixels=max_pixels)
    return _to_pixels(array)


def answer_of(found: Detections, *, class_names: Sequence[str], width: int, height: int) -> Answer:
    """Return the detections of an image as values that JSON can represent.

    Args:
        found: Detections in pixels of the image.
        class_names: Names by label.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        The answer; coordinates are rounded to a thousandth of a pixel.
    """
    columns = found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist()
    return {
        "image": {"width": width, "height": height},
        "detections": [
            {
                "box_xyxy": [round(value, _BOX_DECIMALS) for value in box],
                "score": round(score, _SCORE_DECIMALS),
                "label": label,
                "class_name": class_names[label],
            }
            for box, score, label in zip(*columns, strict=True)
        ],
    }


def _decode_base64(text: str) -> bytes:
    compact = "".join(text.rpartition("base64,")[2].split())  # encoders break lines
    try:
        return base64.b64decode(compact.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        raise DataError("a text must be an encoded picture in base64, and this is not base64") from None


def _decode_file(content: bytes, *, max_pixels: int) -> Image:
    header = read_header(content)
    if header is not None:
        _check_size(header.width, header.height, max_pixels=max_pixels)
    picture = decode_image(content)
    if picture is None:
        reason = explain_refusal(content)
        raise DataError(f"the picture {reason} ({len(content):,} bytes); send the content of a JPEG or PNG file")
    return picture


def _check_size(width: int, height: int, *, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"the image has {width} x {height} pixels, and {max_pixels:,} are allowed; send a smaller one")


def _to_pixels(array: NDArray[Any]) -> Image:
    """Refuse values that cannot be pixels of 8 bits: they would become a black or a white picture."""
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= _BRIGHTEST):  # also NaN
        raise DataError(f"pixels must be from 0 to 255, these are from {low:g} to {high:g}; scale them")
    if high <= 1 and (array != np.round(array)).any():
        raise DataError("pixels must be from 0 to 255, these are fractions up to 1; multiply them by 255")
    return np.ascontiguousarray(np.rint(array), dtype=np.uint8)
