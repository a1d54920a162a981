"""Images together with their objects: samples, the tiles of a mosaic, and operations on whole tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from yolov7.data.augment.geometry import Boxes, Corner, Labels
from yolov7.data.images import Image
from yolov7.data.outlines import Outline, move


@dataclass(frozen=True)
class Sample:
    """A training sample with k objects.

    Attributes:
        image: The image (H, W, 3), uint8 RGB.
        boxes_cxcywh: Boxes (k, 4) as centre and size, as shares of the image.
        labels: Class indices (k,).
        outlines: k outlines in pixels of the image, or () if no object has one.
    """

    image: Image
    boxes_cxcywh: Boxes
    labels: Labels
    outlines: Sequence[Outline] = ()


@dataclass(frozen=True)
class Tile:
    """An image with k objects, at a position in a canvas.

    Attributes:
        image: The image (H, W, 3), uint8 RGB.
        boxes_xyxy: Boxes (k, 4) as corners, in the image's own pixels.
        labels: Class indices (k,).
        left: Position of the image's left edge in the canvas, pixels.
        top: Position of the image's top edge in the canvas, pixels.
        outlines: k outlines in the image's own pixels, or () if no object has one.
    """

    image: Image
    boxes_xyxy: Boxes
    labels: Labels
    left: int = 0
    top: int = 0
    outlines: Sequence[Outline] = ()

    def outline_per_object(self) -> Sequence[Outline]:
        """Return k outlines, with () for each object that has none."""
        return self.outlines or ((),) * len(self.labels)


def place_tile(tile: Tile, corner: Corner, *, canvas: int) -> Tile:
    """Place a tile in a square canvas and cut off what is outside.

    Args:
        tile: The tile; its own position is ignored.
        corner: Left and top of its image in the canvas, pixels; may be negative.
        canvas: Side of the canvas, pixels.

    Returns:
        The part of the tile that is within the canvas. Boxes are clipped to it, outlines are not.
    """
    (left, top), (height, width) = corner, tile.image.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, canvas), min(top + height, canvas)
    image = tile.image[y1 - top : y2 - top, x1 - left : x2 - left]
    shift = np.array([left - x1, top - y1] * 2, np.float32)
    limit = np.array([x2 - x1, y2 - y1] * 2, np.float32)
    boxes = np.minimum(np.maximum(tile.boxes_xyxy + shift, 0), limit)
    outlines = move(tile.outlines, shift=(left - x1, top - y1))
    return Tile(image, boxes, tile.labels, left=x1, top=y1, outlines=outlines)


def flip(tile: Tile, *, horizontal: bool, vertical: bool, out: Image | None = None) -> Tile:
    """Mirror an image and its objects.

    Args:
        tile: The tile.
        horizontal: Whether left and right are exchanged.
        vertical: Whether top and bottom are exchanged.
        out: The array (H, W, 3), uint8, to write to; may be the tile's own image. By default a new one.

    Returns:
        The mirrored tile; the argument itself if there is nothing to do.
    """
    if not (horizontal or vertical):
        return tile
    height, width = tile.image.shape[:2]
    x, y = (-1.0 if horizontal else 1.0), (-1.0 if vertical else 1.0)
    shift = (width if horizontal else 0.0), (height if vertical else 0.0)
    ends = tile.boxes_xyxy.reshape(-1, 2, 2) * np.array([x, y], np.float32) + np.array(shift, np.float32)
    boxes = np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
    code = -1 if horizontal and vertical else int(horizontal)
    image: Image = cv2.flip(tile.image, code, dst=out)  # type: ignore[assignment]
    return Tile(image, boxes, tile.labels, outlines=move(tile.outlines, scale=(x, y), shift=shift))


def blend(first: Image, second: Image, *, generator: Generator) -> Image:
    """Blend two images, as mixup does (Zhang et al., 2018).

    Args:
        first: An image (H, W, 3), uint8.
        second: An image (H, W, 3), uint8.
        generator: Source of randomness.

    Returns:
        A share of the first image, drawn from Beta(8, 8), plus the rest of the second one.
    """
    share = float(generator.beta(8.0, 8.0))
    return cv2.addWeighted(first, share, second, 1.0 - share, 0.0)  # type: ignore[return-value]


def normalise_boxes(boxes_xyxy: Boxes, *, width: int, height: int) -> Boxes:
    """Convert boxes from corners in pixels to centre and size as shares of the image.

    Args:
        boxes_xyxy: Boxes (k, 4) as corners, pixels.
        width: Width of the image, pixels.
        height: Height of the image, pixels.

    Returns:
        Boxes (k, 4) as centre and size, float32.
    """
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    pixels = np.concatenate([(low + high) / 2, high - low], axis=1)
    normalised: Boxes = (pixels / np.array([width, height] * 2)).astype(np.float32)
    return normalised
