"""Resizing of images, and the letterbox: an image brought to a square, usually centred on grey in its aspect ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.data.images import Image
from yolov7.data.outlines import Outline, move
from yolov7.settings import LetterboxMode

FILL = 114  # the grey level of padding
Size = tuple[int, int]  # width, height

_AREA_BELOW = 0.5  # bilinear resizing skips source pixels below this factor, so pixels are averaged instead


@dataclass(frozen=True)
class Letterbox:
    """How one image is resized and padded.

    Attributes:
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        resized_w: Width of the image after resizing, pixels.
        resized_h: Height of the image after resizing, pixels.
        ratio_w: Ideal horizontal resize factor, before rounding to whole pixels.
        ratio_h: Ideal vertical resize factor, before rounding to whole pixels.
        pad_w: Half of the horizontal padding, pixels; may end in .5.
        pad_h: Half of the vertical padding, pixels; may end in .5.
        is_centred: Whether the padding is on all sides; otherwise all of it is to the right and at the bottom.
    """

    width: int
    height: int
    resized_w: int
    resized_h: int
    ratio_w: float
    ratio_h: float
    pad_w: float
    pad_h: float
    is_centred: bool = True

    @property
    def left(self) -> int:
        """Number of padding pixels to the left of the image."""
        return round(self.pad_w - 0.1) if self.is_centred else 0

    @property
    def top(self) -> int:
        """Number of padding pixels above the image."""
        return round(self.pad_h - 0.1) if self.is_centred else 0

    @property
    def out_w(self) -> int:
        """Width of the letterboxed image, pixels."""
        return self.resized_w + round(2 * self.pad_w)

    @property
    def out_h(self) -> int:
        """Height of the letterboxed image, pixels."""
        return self.resized_h + round(2 * self.pad_h)

    def to_letterbox(self, boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return boxes in the pixels of the letterboxed image.

        Args:
            boxes_xyxy: Boxes (k, 4) as corners, in pixels of the original image.

        Returns:
            Boxes (k, 4) as corners, float32.
        """
        return (np.asarray(boxes_xyxy, np.float64) * self._scale() + self._shift()).astype(np.float32)

    def outlines_to_letterbox(self, outlines: Sequence[Outline]) -> Sequence[Outline]:
        """Return outlines in the pixels of the letterboxed image.

        Args:
            outlines: Outlines in pixels of the original image.

        Returns:
            As many outlines.
        """
        scale = self.resized_w / self.width, self.resized_h / self.height
        return move(outlines, scale=scale, shift=(self.left, self.top))

    def to_original(self, boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return boxes in the pixels of the original image, clipped to it.

        Args:
            boxes_xyxy: Boxes (k, 4) as corners, in pixels of the letterboxed image.

        Returns:
            Boxes (k, 4) as corners, float32.
        """
        boxes = (np.asarray(boxes_xyxy, np.float64) - self._shift()) / self._scale()
        return np.clip(boxes, 0.0, [self.width, self.height] * 2).astype(np.float32)

    def _scale(self) -> NDArray[np.float64]:
        return np.array([self.resized_w / self.width, self.resized_h / self.height] * 2)

    def _shift(self) -> NDArray[np.float64]:
        return np.array([self.left, self.top] * 2, np.float64)


def letterbox_geometry(
    width: int,
    height: int,
    *,
    size: int | tuple[int, int],
    scale_up: bool = True,
    stride: int | None = None,
    mode: LetterboxMode = "centre",
) -> Letterbox:
    """Return how `letterbox` resizes and pads an image of a given size.

    Args:
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        size: Side of the square result, or its (height, width), pixels.
        scale_up: Whether images smaller than `size` are enlarged.
        stride: If given, pad only to the next multiple of it instead of to the whole `size`.
        mode: `centre`: keep the aspect ratio, and pad all sides. `top_left`: keep it, round the size down, and pad on
            the right and at the bottom. `stretch`: fill `size` without keeping it, whatever the other settings are.

    Returns:
        The geometry.
    """
    out_h, out_w = (size, size) if isinstance(size, int) else size
    if mode == "stretch":
        return Letterbox(width, height, out_w, out_h, out_w / width, out_h / height, 0.0, 0.0)
    ratio = min(out_h / height, out_w / width)
    if not scale_up:
        ratio = min(ratio, 1.0)
    sides = width * ratio, height * ratio
    resized_w, resized_h = (max(round(side) if mode == "centre" else int(side), 1) for side in sides)
    spare_w, spare_h = out_w - resized_w, out_h - resized_h
    if stride is not None:
        spare_w, spare_h = spare_w % stride, spare_h % stride
    pads = spare_w / 2, spare_h / 2
    return Letterbox(width, height, resized_w, resized_h, ratio, ratio, *pads, is_centred=mode == "centre")


def letterbox(
    image: Image,
    *,
    size: int | tuple[int, int],
    scale_up: bool = True,
    stride: int | None = None,
    mode: LetterboxMode = "centre",
    out: Image | None = None,
) -> tuple[Image, Letterbox]:
    """Resize an image to fit into `size`, and put it on grey.

    Args:
        image: The image (H, W, 3), uint8 RGB.
        size: Side of the square result, or its (height, width), pixels.
        scale_up: Whether images smaller than `size` are enlarged.
        stride: If given, pad only to the next multiple of it instead of to the whole `size`.
        mode: `centre`: keep the aspect ratio, and pad all sides. `top_left`: keep it, round the size down, and pad on
            the right and at the bottom. `stretch`: fill `size` without keeping it, whatever the other settings are.
        out: The array to draw to, which has the shape of the result. By default a new one.

    Returns:
        The letterboxed image and its geometry.
    """
    height, width = image.shape[:2]
    geometry = letterbox_geometry(width, height, size=size, scale_up=scale_up, stride=stride, mode=mode)
    if out is None:
        out = np.empty((geometry.out_h, geometry.out_w, 3), np.uint8)
    top, left = geometry.top, geometry.left
    inside = out[top : top + geometry.resized_h, left : left + geometry.resized_w]
    if inside.shape != out.shape:
        out[:] = FILL
    resize_into(inside, image)
    return out, geometry


def resize(image: Image, *, width: int, height: int) -> Image:
    """Resize an image bilinearly, or by averaging areas where it shrinks to less than half.

    Args:
        image: The image (H, W, 3), uint8.
        width: New width, pixels.
        height: New height, pixels.

    Returns:
        The resized image (height, width, 3); the argument itself if it already has that size.
    """
    if image.shape[:2] == (height, width):
        return image
    out = np.empty((height, width, 3), np.uint8)
    resize_into(out, image)
    return out


def resize_into(out: Image, image: Image) -> None:
    """Resize an image as `resize` does, into an existing array.

    Args:
        out: The array (height, width, 3), uint8, to write to.
        image: The image (H, W, 3), uint8.
    """
    height, width = out.shape[:2]
    shrinks = max(width / image.shape[1], height / image.shape[0]) < _AREA_BELOW
    cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def fitted_size(width: int, height: int, *, size: int) -> Size:
    """Return the size of an image after its long side was resized to `size`.

    Args:
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        size: New length of the long side, pixels.

    Returns:
        Width and height, rounded down to whole pixels, at least 1.
    """
    ratio = size / max(width, height)
    return max(int(width * ratio), 1), max(int(height * ratio), 1)
