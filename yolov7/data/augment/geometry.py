"""Letterbox, random perspective, flips and mixup: pure functions with an explicit generator.

The mosaic is never drawn at its double size: each tile is warped once, from where it lies in the mosaic's canvas
through the random transform, into the part of the output that it covers, and recoloured where it has fewer pixels:
before that, or there. Matrices act on continuous coordinates, in which pixel i spans i to i + 1, for pixels and boxes
alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolov7.data.augment.colour import Gains, recolour
from yolov7.data.images import Image
from yolov7.data.outlines import Outline, move, see
from yolov7.settings import AugmentSettings

FILL = 114  # the grey of empty parts
MIN_SIDE = 2.0  # pixels: smaller boxes are dropped
MIN_AREA_LEFT = 0.1  # share of the scaled box that must remain in the frame
MIN_OUTLINED_LEFT = 0.01  # the same of an object with an outline, whose box is tight
MAX_ASPECT = 20.0
AREA_BELOW = 0.5  # bilinear resizing skips pixels below this factor, so areas are averaged

Matrix = NDArray[np.float64]
Boxes = NDArray[np.float32]
Labels = NDArray[np.int64]
Size = tuple[int, int]  # width, height
Corner = tuple[int, int]  # left, top: pixels of the canvas
Window = list[int]  # left, top, right, bottom


@dataclass(frozen=True)
class Sample:
    """A training sample. `image`: (H, W, 3) uint8 RGB. `boxes_cxcywh`: (k, 4) normalised. `labels`: (k,).

    `outlines`: k of them in pixels, or () where none of the objects has any.
    """

    image: Image
    boxes_cxcywh: Boxes
    labels: Labels
    outlines: Sequence[Outline] = ()


@dataclass(frozen=True)
class Tile:
    """An image and its objects, lying in a canvas with its corner at `left`, `top`.

    `boxes_xyxy` (k, 4) and `outlines`, k of them or () where none of them has any, are in its own pixels.
    """

    image: Image
    boxes_xyxy: Boxes
    labels: Labels
    left: int = 0
    top: int = 0
    outlines: Sequence[Outline] = ()

    def outline_of_each(self) -> Sequence[Outline]:
        """K outlines, () of what has none."""
        return self.outlines or ((),) * len(self.labels)


@dataclass(frozen=True)
class Letterbox:
    """How an image of `width` x `height` is resized and padded; `pad_w`, `pad_h`: the exact halves of the padding."""

    width: int
    height: int
    resized_w: int
    resized_h: int
    ratio_w: float
    ratio_h: float
    pad_w: float
    pad_h: float

    @property
    def left(self) -> int:
        """Pixels before the image."""
        return round(self.pad_w - 0.1)

    @property
    def top(self) -> int:
        """Pixels above the image."""
        return round(self.pad_h - 0.1)

    @property
    def out_w(self) -> int:
        """Width of the result."""
        return self.left + self.resized_w + round(self.pad_w + 0.1)

    @property
    def out_h(self) -> int:
        """Height of the result."""
        return self.top + self.resized_h + round(self.pad_h + 0.1)

    def to_letterbox(self, boxes_xyxy: NDArray[np.floating]) -> Boxes:
        """(k, 4) boxes of the image, in the pixels of the result."""
        return (np.asarray(boxes_xyxy, np.float64) * self._scale() + self._shift()).astype(np.float32)

    def outlines_to_letterbox(self, outlines: Sequence[Outline]) -> Sequence[Outline]:
        """Outlines in the image, in the pixels of the result."""
        scale = self.resized_w / self.width, self.resized_h / self.height
        return move(outlines, scale=scale, shift=(self.left, self.top))

    def to_original(self, boxes_xyxy: NDArray[np.floating]) -> Boxes:
        """(k, 4) boxes of the result, in the pixels of the image, clipped to it."""
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
    stretch: bool = False,
) -> Letterbox:
    """The geometry of `letterbox`; `size` is a side or (height, width)."""
    out_h, out_w = (size, size) if isinstance(size, int) else size
    ratio = min(out_h / height, out_w / width)
    if not scale_up:
        ratio = min(ratio, 1.0)
    if stretch and stride is None:
        return Letterbox(width, height, out_w, out_h, out_w / width, out_h / height, 0.0, 0.0)
    resized_w, resized_h = max(round(width * ratio), 1), max(round(height * ratio), 1)
    spare_w, spare_h = out_w - resized_w, out_h - resized_h
    if stride is not None:
        spare_w, spare_h = spare_w % stride, spare_h % stride
    return Letterbox(width, height, resized_w, resized_h, ratio, ratio, spare_w / 2, spare_h / 2)


def letterbox(
    image: Image,
    *,
    size: int | tuple[int, int],
    scale_up: bool = True,
    stride: int | None = None,
    stretch: bool = False,
) -> tuple[Image, Letterbox]:
    """The image resized to fit into `size` with its aspect kept, centred on grey.

    `scale_up`: small images grow. `stride`: pad only to the next multiple of it. `stretch`: fill `size` without
    keeping the aspect (where `stride` is not given).
    """
    height, width = image.shape[:2]
    geometry = letterbox_geometry(width, height, size=size, scale_up=scale_up, stride=stride, stretch=stretch)
    resized = resize(image, width=geometry.resized_w, height=geometry.resized_h)
    if (geometry.out_h, geometry.out_w) == resized.shape[:2]:
        return resized, geometry
    out = np.full((geometry.out_h, geometry.out_w, 3), FILL, np.uint8)
    top, left = geometry.top, geometry.left
    out[top : top + geometry.resized_h, left : left + geometry.resized_w] = resized
    return out, geometry


def resize(image: Image, *, width: int, height: int) -> Image:
    """Bilinear; by areas where an image shrinks to less than half."""
    if image.shape[:2] == (height, width):
        return image
    return _resize_into(np.empty((height, width, 3), np.uint8), image)


def _resize_into(out: Image, image: Image) -> Image:
    height, width = out.shape[:2]
    shrinks = max(width / image.shape[1], height / image.shape[0]) < AREA_BELOW
    by = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), dst=out, interpolation=by)  # type: ignore[return-value]


def fitted_size(width: int, height: int, *, size: int) -> tuple[int, int]:
    """Width and height of an image whose long side becomes `size`; fractions are cut off."""
    ratio = size / max(width, height)
    return max(int(width * ratio), 1), max(int(height * ratio), 1)


def find_seen(sizes: Sequence[Size], corners: Sequence[Corner], matrix: Matrix, *, size: int) -> NDArray[np.bool_]:
    """Whether anything of each image in the canvas comes to lie in the output; False saves its reading."""
    if matrix[2, 0] or matrix[2, 1]:
        return np.ones(len(sizes), np.bool_)  # no box around what a perspective may lay across the horizon
    low = np.array(corners, np.float32)
    box = transform_boxes(np.concatenate([low, low + np.array(sizes, np.float32)], axis=1), matrix)
    return np.asarray(((box[:, :2] < size) & (box[:, 2:] > 0)).all(axis=1))


def lay(tile: Tile, corner: Corner, *, canvas: int) -> Tile:
    """The tile with its corner there, cut to a square canvas."""
    (left, top), (height, width) = corner, tile.image.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, canvas), min(top + height, canvas)
    image = tile.image[y1 - top : y2 - top, x1 - left : x2 - left]
    shift = np.array([left - x1, top - y1] * 2, np.float32)
    limit = np.array([x2 - x1, y2 - y1] * 2, np.float32)
    boxes = np.minimum(np.maximum(tile.boxes_xyxy + shift, 0), limit)
    outlines = move(tile.outlines, shift=(left - x1, top - y1))
    return Tile(image, boxes, tile.labels, left=x1, top=y1, outlines=outlines)


def random_transform(
    settings: AugmentSettings, *, canvas: int, size: int, generator: Generator
) -> tuple[Matrix, float]:
    """A matrix (3, 3) from the canvas to the output, translation x shear x rotation and scale x perspective x centring,
    and the scale that it holds, drawn from (1 - scale, 1.1 + scale).
    """
    draws = generator.uniform(-1.0, 1.0, size=7)
    scale = float(generator.uniform(1 - settings.scale, 1.1 + settings.scale))
    perspective_x, perspective_y = draws[0:2] * settings.perspective
    perspective = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [perspective_x, perspective_y, 1.0]])
    angle = math.radians(draws[2] * settings.degrees)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    rotation = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    shear_x, shear_y = (math.tan(math.radians(draw * settings.shear)) for draw in draws[3:5])
    shear = np.array([[1.0, shear_x, 0.0], [shear_y, 1.0, 0.0], [0.0, 0.0, 1.0]])
    x, y = (0.5 + draws[5:7] * settings.translate) * size
    return _shift(x, y) @ shear @ rotation @ perspective @ _shift(-canvas / 2, -canvas / 2), scale


def compose(
    tiles: Sequence[Tile],
    matrix: Matrix,
    *,
    scale: float,
    size: int,
    gains: Gains | None = None,
    out: Image | None = None,
) -> Tile:
    """Warps tiles that lie in one canvas into an output of `size` x `size`, and recolours all of it.

    The result has the objects that are worth keeping; one with an outline has the box of what is seen of that.
    `out`: where to draw it.
    """
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    out[:] = recolour(np.full((1, 1, 3), FILL, np.uint8), gains)[0, 0, 0]
    tiles = [tile for tile in tiles if tile.image.size]
    matrices = (_draw_upright if is_upright(matrix) else _draw_warped)(out, tiles, matrix, gains=gains)
    before = np.concatenate([np.zeros((0, 4), np.float32), *(tile.boxes_xyxy for tile in tiles)])
    labels = np.concatenate([np.zeros(0, np.int64), *(tile.labels for tile in tiles)])
    after = transform_boxes(before, matrices.repeat([len(tile.labels) for tile in tiles], axis=0))
    after = np.clip(after, 0, size)
    if not any(tile.outlines for tile in tiles):
        keep = worth_keeping(np.float32(scale) * before, after)
        return Tile(out, after[keep], labels[keep])
    outlines, after = _see_all(tiles, matrices, after, size=size)
    least = np.where([bool(outline) for outline in outlines], MIN_OUTLINED_LEFT, MIN_AREA_LEFT)
    keep = worth_keeping(np.float32(scale) * before, after, least=least)
    return Tile(out, after[keep], labels[keep], outlines=list(compress(outlines, keep)))


def _see_all(tiles: Sequence[Tile], matrices: Matrix, boxes_xyxy: Boxes, *, size: int) -> tuple[list[Outline], Boxes]:
    """The outlines in the output, and its boxes (k, 4): where there is an outline, around what is seen of that."""
    outlines: list[Outline] = []
    boxes = []
    ends = np.cumsum([len(tile.labels) for tile in tiles])
    for tile, matrix, part in zip(tiles, matrices, np.split(boxes_xyxy, ends[:-1]), strict=True):
        height, width = tile.image.shape[:2]
        seen, around = see(tile.outline_of_each(), part, matrix, image_size=(width, height), size=size)
        outlines.extend(seen)
        boxes.append(around)
    return outlines, np.clip(np.concatenate(boxes), 0, size)


def transform_boxes(boxes_xyxy: Boxes, matrix: Matrix) -> Boxes:
    """The upright boxes (k, 4) around the transformed corners of boxes (k, 4); one matrix, or (k, 3, 3)."""
    if is_upright(matrix):
        along, to = matrix[..., [0, 1, 0, 1], [0, 1, 0, 1]], matrix[..., [0, 1, 0, 1], 2]
        return np.asarray(boxes_xyxy * along + to, np.float32)
    corners = boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)
    points = corners @ matrix[..., :2, :2].swapaxes(-1, -2) + matrix[..., None, :2, 2]
    if matrix[..., 2, :2].any():
        points /= corners @ matrix[..., 2, :2, None] + matrix[..., 2:, 2:]
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1).astype(np.float32)


def is_upright(matrix: Matrix) -> bool:
    """Whether a matrix, or each of (k, 3, 3), only scales, by positive factors, and shifts."""
    return not matrix[..., [0, 1, 2, 2], [1, 0, 0, 1]].any()


def worth_keeping(
    before_xyxy: Boxes, after_xyxy: Boxes, *, least: float | NDArray[np.float64] = MIN_AREA_LEFT
) -> NDArray[np.bool_]:
    """Whether enough is left of each box: sides above 2 px, the `least` share of the area, an aspect below 20; (k,)."""
    width, height = (after_xyxy[:, 2:] - after_xyxy[:, :2]).T
    area = (before_xyxy[:, 2] - before_xyxy[:, 0]) * (before_xyxy[:, 3] - before_xyxy[:, 1])
    big = (width > MIN_SIDE) & (height > MIN_SIDE)
    aspect = np.maximum(width, height) / np.maximum(np.minimum(width, height), 1e-9)
    keep: NDArray[np.bool_] = big & (width * height > least * area) & (aspect < MAX_ASPECT)
    return keep


def _draw_upright(out: Image, tiles: Sequence[Tile], matrix: Matrix, *, gains: Gains | None) -> Matrix:
    """From whole pixels to whole pixels, which takes resizing only: an eighth of the time of a warp."""
    sources, targets, matrices = _whole_pixels(tiles, matrix, size=out.shape[0])
    for tile, (x1, y1, x2, y2), (left, top, right, bottom) in zip(tiles, sources, targets, strict=True):
        source, target = tile.image[y1:y2, x1:x2], out[top:bottom, left:right]
        if source.size < target.size:
            _resize_into(target, recolour(source, gains))
        elif target.size:
            recolour(resize(source, width=right - left, height=bottom - top), gains, out=target)
    return matrices


def _whole_pixels(tiles: Sequence[Tile], matrix: Matrix, *, size: int) -> tuple[list[Window], list[Window], Matrix]:
    """The pixels of tiles, those of the output that they become, and matrices (n, 3, 3) from the ones to the others.

    They are the nearest to `matrix` that lie in the tiles, and in the output.
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
    matrices[:, [0, 1], [0, 1]] = along = (high - low) / (stop - start)
    matrices[:, :2, 2] = low - start * along
    sources, targets = (np.concatenate(pair, axis=1).astype(int) for pair in ((start, stop), (low, high)))
    return sources.tolist(), targets.tolist(), matrices


def _draw_warped(out: Image, tiles: Sequence[Tile], matrix: Matrix, *, gains: Gains | None) -> Matrix:
    """Onto the pixels whose centres they cover; returns matrices (n, 3, 3) from the tiles' own pixels to the output."""
    matrices = [matrix @ _shift(tile.left, tile.top) for tile in tiles]
    for tile, placed in zip(tiles, matrices, strict=True):
        _warp(out, tile.image, placed, gains=gains)
    return np.array(matrices).reshape(-1, 3, 3)


def _warp(out: Image, image: Image, matrix: Matrix, *, gains: Gains | None) -> None:
    height, width = image.shape[:2]
    square = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    corners = square @ matrix[:2, :2].T + matrix[:2, 2]
    corners /= square @ matrix[2, :2, None] + matrix[2, 2]
    edges = np.ceil(np.clip([corners.min(axis=0), corners.max(axis=0)], 0.0, out.shape[0]) - 0.5)
    (x1, y1), (x2, y2) = edges.astype(int)
    if x2 <= x1 or y2 <= y1:
        return
    on_centres = _shift(-0.5 - x1, -0.5 - y1) @ matrix @ _shift(0.5, 0.5)
    part = out[y1:y2, x1:x2]
    warped = cv2.warpPerspective(image, on_centres, (int(x2 - x1), int(y2 - y1)), borderMode=cv2.BORDER_REPLICATE)
    mask = np.zeros(part.shape[:2], np.uint8)
    outline = np.round((corners - [x1 + 0.5, y1 + 0.5]) * 256).astype(np.int32)
    cv2.fillConvexPoly(mask, outline, 255, shift=8)
    cv2.copyTo(recolour(warped, gains), mask, part)  # type: ignore[arg-type]


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def flip(tile: Tile, *, horizontal: bool, vertical: bool, out: Image | None = None) -> Tile:
    """Mirrors an image and its objects. `out`: what to mirror it into, perhaps itself."""
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
    """Mixup: a share drawn from Beta(8, 8) of the first image and the rest of the second."""
    share = float(generator.beta(8.0, 8.0))
    return cv2.addWeighted(first, share, second, 1.0 - share, 0.0)  # type: ignore[return-value]


def normalise_boxes(boxes_xyxy: Boxes, *, width: int, height: int) -> Boxes:
    """Corners in pixels (k, 4) to centre and size as shares of the image."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    pixels = np.concatenate([(low + high) / 2, high - low], axis=1)
    normalised: Boxes = (pixels / np.array([width, height] * 2)).astype(np.float32)
    return normalised
