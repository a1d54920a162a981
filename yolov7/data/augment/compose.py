"""Drawing of a sample from the tiles of a canvas.

The canvas of a mosaic, which is twice as large as the sample, is never drawn. Each tile is warped once, from its own
pixels to the part of the sample that it covers. It is recoloured where it has fewer pixels: before or after the warp.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import cv2
import numpy as np

from yolov7.data.augment.colour import Gains, recolour
from yolov7.data.augment.geometry import (
    MIN_AREA_LEFT,
    Boxes,
    Matrix,
    is_scale_and_shift,
    moved_origin,
    project_boxes,
    source_pixels,
    visible_polygon,
    worth_keeping,
)
from yolov7.data.augment.letterbox import FILL, resize, resize_into
from yolov7.data.augment.tile import Tile
from yolov7.data.images import Image
from yolov7.data.outlines import Outline, see

MIN_OUTLINED_LEFT = 0.01  # like MIN_AREA_LEFT, for an object with an outline, whose box is tight

_Rectangle = list[int]  # left, top, right, bottom, pixels


def compose(
    tiles: Sequence[Tile],
    matrix: Matrix,
    *,
    scale: float,
    size: int,
    gains: Gains | None = None,
    out: Image | None = None,
) -> Tile:
    """Warp tiles of one canvas into a sample and recolour it.

    Args:
        tiles: The tiles, positioned in the canvas.
        matrix: Transform (3, 3) from the canvas to the sample.
        scale: The scale that `matrix` contains, for the areas in `worth_keeping`.
        size: Side of the square sample, pixels.
        gains: Colour factors for the whole sample, padding included; None leaves the colours as they are.
        out: The array (size, size, 3), uint8, to draw to. By default a new one.

    Returns:
        The sample with those objects that are worth keeping. An object with an outline has the box around the visible
        part of that outline.
    """
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    out[:] = recolour(np.full((1, 1, 3), FILL, np.uint8), gains)[0, 0, 0]
    tiles = [tile for tile in tiles if tile.image.size]
    draw = _draw_resized if is_scale_and_shift(matrix) else _draw_warped
    matrices = draw(out, tiles, matrix, gains=gains)
    before = np.concatenate([np.zeros((0, 4), np.float32), *(tile.boxes_xyxy for tile in tiles)])
    labels = np.concatenate([np.zeros(0, np.int64), *(tile.labels for tile in tiles)])
    after = project_boxes(before, matrices.repeat([len(tile.labels) for tile in tiles], axis=0), size=size)
    if not any(tile.outlines for tile in tiles):
        keep = worth_keeping(np.float32(scale) * before, after)
        return Tile(out, after[keep], labels[keep])
    outlines, after = _project_outlines(tiles, matrices, after, size=size)
    least = np.where([bool(outline) for outline in outlines], MIN_OUTLINED_LEFT, MIN_AREA_LEFT)
    keep = worth_keeping(np.float32(scale) * before, after, least=least)
    return Tile(out, after[keep], labels[keep], outlines=list(compress(outlines, keep)))


def _draw_resized(out: Image, tiles: Sequence[Tile], matrix: Matrix, *, gains: Gains | None) -> Matrix:
    """Draw tiles from whole pixels to whole pixels, which needs no warp and takes an eighth of its time.

    Returns matrices (n, 3, 3) from each tile's own pixels to the sample.
    """
    sources, targets, matrices = _whole_pixels(tiles, matrix, size=out.shape[0])
    for tile, (x1, y1, x2, y2), (left, top, right, bottom) in zip(tiles, sources, targets, strict=True):
        source, target = tile.image[y1:y2, x1:x2], out[top:bottom, left:right]
        if source.size < target.size:
            resize_into(target, recolour(source, gains))
        elif target.size:
            recolour(resize(source, width=right - left, height=bottom - top), gains, out=target)
    return matrices


def _whole_pixels(
    tiles: Sequence[Tile], matrix: Matrix, *, size: int
) -> tuple[list[_Rectangle], list[_Rectangle], Matrix]:
    """Return which pixels of each tile become which pixels of the sample, and the matrices (n, 3, 3) between them.

    These are the whole pixels nearest to those that `matrix` relates, within the tiles and within the sample.
    """
    corners = np.array([(tile.left, tile.top) for tile in tiles]).reshape(-1, 2)
    sides = np.array([tile.image.shape[1::-1] for tile in tiles]).reshape(-1, 2)
    scale, shift = matrix[[0, 1], [0, 1]], matrix[:2, 2]
    edges = np.stack([corners, corners + sides]) * scale + shift
    low, high = targets = np.minimum(np.maximum(np.rint(edges), 0), size)
    start, stop = np.rint((targets - edges[0]) / scale)
    start = np.minimum(np.maximum(start, 0), sides - 1)
    stop = np.minimum(np.maximum(stop, start + 1), sides)
    matrices = np.zeros((len(tiles), 3, 3))
    matrices[:, [0, 1, 2], [0, 1, 2]] = 1.0
    matrices[:, [0, 1], [0, 1]] = factor = (high - low) / (stop - start)
    matrices[:, :2, 2] = low - start * factor
    sources, targets = (np.concatenate(pair, axis=1).astype(int) for pair in ((start, stop), (low, high)))
    return sources.tolist(), targets.tolist(), matrices


def _draw_warped(out: Image, tiles: Sequence[Tile], matrix: Matrix, *, gains: Gains | None) -> Matrix:
    """Draw tiles onto those pixels of the sample whose centres they cover.

    Returns matrices (n, 3, 3) from each tile's own pixels to the sample.
    """
    matrices = [moved_origin(matrix, tile.left, tile.top) for tile in tiles]
    for tile, from_tile in zip(tiles, matrices, strict=True):
        _warp(out, tile.image, from_tile, gains=gains)
    return np.array(matrices).reshape(-1, 3, 3)


def _warp(out: Image, image: Image, matrix: Matrix, *, gains: Gains | None) -> None:
    """Draw one image, with fixed-point source coordinates, for which OpenCV's result is the same on every processor."""
    polygon = visible_polygon(image.shape[1::-1], matrix, size=out.shape[0])
    if not len(polygon):
        return
    edges = np.ceil(np.clip([polygon.min(axis=0), polygon.max(axis=0)], 0.0, out.shape[0]) - 0.5)
    (x1, y1), (x2, y2) = edges.astype(int).tolist()
    if x2 <= x1 or y2 <= y1:
        return
    whole, fraction = cv2.convertMaps(*source_pixels(matrix, (x1, y1, x2, y2)), cv2.CV_16SC2)
    warped = cv2.remap(image, whole, fraction, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    cv2.fillConvexPoly(mask, np.round((polygon - [x1 + 0.5, y1 + 0.5]) * 256).astype(np.int32), 255, shift=8)
    cv2.copyTo(recolour(warped, gains), mask, out[y1:y2, x1:x2])  # type: ignore[arg-type]


def _project_outlines(
    tiles: Sequence[Tile], matrices: Matrix, boxes_xyxy: Boxes, *, size: int
) -> tuple[list[Outline], Boxes]:
    """Return the visible outlines, and boxes (k, 4), which for objects with an outline are around its visible part."""
    outlines: list[Outline] = []
    boxes = []
    ends = np.cumsum([len(tile.labels) for tile in tiles])
    for tile, matrix, part in zip(tiles, matrices, np.split(boxes_xyxy, ends[:-1]), strict=True):
        height, width = tile.image.shape[:2]
        visible, around = see(tile.outline_per_object(), part, matrix, image_size=(width, height), size=size)
        outlines.extend(visible)
        boxes.append(around)
    return outlines, np.clip(np.concatenate(boxes), 0, size)
