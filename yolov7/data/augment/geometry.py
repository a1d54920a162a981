"""Random affine and perspective transforms, of points, boxes and pixels.

Matrices act on continuous coordinates, in which pixel i extends from i to i + 1, for pixels and boxes alike. What is
behind or near the horizon of a perspective is not visible.

Samples must not depend on the processor. Matrix products of NumPy do, as they come from a library with different code
for different processors. They are therefore written out here in elementwise operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolov7.data.augment.letterbox import Size
from yolov7.data.box_sizes import MIN_SIDE
from yolov7.data.outlines import MIN_DEPTH, clip_polygon, view_planes
from yolov7.settings import AugmentSettings

MIN_AREA_LEFT = 0.1  # share of the scaled box that must remain in the frame
MAX_ASPECT = 20.0

Matrix = NDArray[np.float64]
Boxes = NDArray[np.float32]
Labels = NDArray[np.int64]
Corner = tuple[int, int]  # left and top in the canvas, pixels


def random_transform(
    settings: AugmentSettings, *, canvas: int, size: int, generator: Generator
) -> tuple[Matrix, float]:
    """Draw a transform: translation x shear x rotation and scale x perspective x centring.

    Args:
        settings: Limits of the random numbers.
        canvas: Side of the square canvas, pixels.
        size: Side of the square sample, pixels.
        generator: Source of randomness.

    Returns:
        The matrix (3, 3) from the canvas to the sample, and the scale that it contains, which is drawn from
        (1 - scale, 1.1 + scale).
    """
    draws = generator.uniform(-1.0, 1.0, size=7)
    scale = float(generator.uniform(1 - settings.scale, 1.1 + settings.scale))
    perspective_x, perspective_y = draws[0:2] * settings.perspective
    half = canvas / 2
    depth = np.array([perspective_x, perspective_y, 1.0 - (perspective_x + perspective_y) * half])
    angle = math.radians(draws[2] * settings.degrees)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    shear_x, shear_y = (math.tan(math.radians(draw * settings.shear)) for draw in draws[3:5])
    x, y = (0.5 + draws[5:7] * settings.translate) * size
    linear = ((cosine - shear_x * sine, sine + shear_x * cosine), (shear_y * cosine - sine, shear_y * sine + cosine))
    rows = [np.array([a, b, -(a + b) * half]) for a, b in linear]
    return np.stack([rows[0] + x * depth, rows[1] + y * depth, depth]), scale


def is_scale_and_shift(matrix: Matrix) -> bool:
    """Tell whether a transform only scales and shifts.

    Args:
        matrix: One transform (3, 3), or several (k, 3, 3); their scales are positive.

    Returns:
        Whether this holds for all of them.
    """
    return not matrix[..., [0, 1, 2, 2], [1, 0, 0, 1]].any()


def moved_origin(matrix: Matrix, left: float, top: float) -> Matrix:
    """Return the same transform for coordinates that are relative to another origin.

    Args:
        matrix: The transform (3, 3).
        left: Horizontal position of the new origin, pixels.
        top: Vertical position of the new origin, pixels.

    Returns:
        The transform (3, 3).
    """
    return np.column_stack([matrix[:, :2], matrix[:, 0] * left + matrix[:, 1] * top + matrix[:, 2]])


def find_visible(sizes: Sequence[Size], corners: Sequence[Corner], matrix: Matrix, *, size: int) -> NDArray[np.bool_]:
    """Find the images of a canvas of which the sample may show anything, so that the others need not be read.

    Args:
        sizes: Width and height of each image (n), pixels.
        corners: Left and top of each image in the canvas.
        matrix: Transform (3, 3) from the canvas to the sample.
        size: Side of the square sample, pixels.

    Returns:
        Whether each image may be visible (n,).
    """
    if matrix[2, 0] or matrix[2, 1]:
        placed = zip(sizes, corners, strict=True)
        polygons = [visible_polygon(each, moved_origin(matrix, *corner), size=size) for each, corner in placed]
        return np.array([len(polygon) > 0 for polygon in polygons], np.bool_)
    low = np.array(corners, np.float32)
    box = transform_boxes(np.concatenate([low, low + np.array(sizes, np.float32)], axis=1), matrix)
    return np.asarray(((box[:, :2] < size) & (box[:, 2:] > 0)).all(axis=1))


def visible_polygon(image_size: Size, matrix: Matrix, *, size: int) -> NDArray[np.float64]:
    """Return the outline in the sample of the part of an image that is in front of the horizon.

    Args:
        image_size: Width and height of the image, pixels.
        matrix: Transform (3, 3) from the image to the sample.
        size: Side of the square sample, pixels.

    Returns:
        The corners of a convex polygon (n, 2). With a perspective it is also cut at the edges of the sample, and it has
        no corners if nothing is visible.
    """
    width, height = image_size
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    if matrix[2, :2].any():
        corners = clip_polygon(corners, view_planes(matrix, size=size))
    return _transform(corners, matrix)


def transform_boxes(boxes_xyxy: Boxes, matrix: Matrix) -> Boxes:
    """Return the axis-aligned boxes around the transformed corners of boxes.

    Args:
        boxes_xyxy: Boxes (k, 4) as corners, in front of the horizon if the transform has a perspective.
        matrix: One transform (3, 3) for all boxes, or one for each (k, 3, 3).

    Returns:
        Boxes (k, 4) as corners.
    """
    if is_scale_and_shift(matrix):
        factor, shift = matrix[..., [0, 1, 0, 1], [0, 1, 0, 1]], matrix[..., [0, 1, 0, 1], 2]
        return np.asarray(boxes_xyxy * factor + shift, np.float32)
    return _bounds(_transform(_box_corners(boxes_xyxy), matrix))


def project_boxes(boxes_xyxy: Boxes, matrices: Matrix, *, size: int) -> Boxes:
    """Return boxes in the sample, clipped to it.

    With a perspective they are the boxes around the visible parts. A box of which less than a tenth is visible then
    becomes empty, as even a small part may fill the sample near the horizon.

    Args:
        boxes_xyxy: Boxes (k, 4) as corners, pixels.
        matrices: Transform of each box to the sample (k, 3, 3).
        size: Side of the square sample, pixels.

    Returns:
        Boxes (k, 4) as corners.
    """
    if not matrices[:, 2, :2].any():
        return np.clip(transform_boxes(boxes_xyxy, matrices), 0, size)
    projected = np.zeros_like(boxes_xyxy)
    for i, (corners, matrix) in enumerate(zip(_box_corners(boxes_xyxy), matrices, strict=True)):
        visible = clip_polygon(corners, view_planes(matrix, size=size))
        if len(visible) and _area(visible) >= MIN_AREA_LEFT * _area(corners):
            projected[i] = _bounds(_transform(visible, matrix))
    return np.clip(projected, 0, size)


def worth_keeping(
    before_xyxy: Boxes, after_xyxy: Boxes, *, least: float | NDArray[np.float64] = MIN_AREA_LEFT
) -> NDArray[np.bool_]:
    """Tell which boxes are large enough to be learned after a transform.

    Args:
        before_xyxy: Boxes (k, 4) before it, multiplied by its scale.
        after_xyxy: The same boxes (k, 4) after it, clipped to the sample, pixels.
        least: Smallest share of the area before that the area after must exceed, one for all boxes or one each (k,).

    Returns:
        Whether a box has sides above 2 pixels, enough area, and an aspect ratio below 20 (k,).
    """
    width, height = (after_xyxy[:, 2:] - after_xyxy[:, :2]).T
    area_before = (before_xyxy[:, 2] - before_xyxy[:, 0]) * (before_xyxy[:, 3] - before_xyxy[:, 1])
    is_large = (width > MIN_SIDE) & (height > MIN_SIDE) & (width * height > least * area_before)
    aspect = np.maximum(width, height) / np.maximum(np.minimum(width, height), 1e-9)
    keep: NDArray[np.bool_] = is_large & (aspect < MAX_ASPECT)
    return keep


def source_pixels(matrix: Matrix, window: tuple[int, int, int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return where in an image the pixels of a part of the sample come from.

    Args:
        matrix: Transform (3, 3) from the image to the sample.
        window: The part of the sample: left, top, right, bottom, pixels.

    Returns:
        x and y of each pixel (h, w), float32, in OpenCV's coordinates, which are 0 at the centre of the first pixel.
    """
    x1, y1, x2, y2 = window
    columns, rows = np.arange(x1, x2) + 0.5, np.arange(y1, y2)[:, None] + 0.5

    def evaluate(row: NDArray[np.float64]) -> NDArray[Any]:
        values: NDArray[Any] = (row[0] * columns + row[2]).astype(np.float32) + (row[1] * rows).astype(np.float32)
        return values

    inverse, half = _inverse(matrix), np.float32(0.5)
    if not matrix[2, :2].any():
        return evaluate(inverse[0] - inverse[2] / 2), evaluate(inverse[1] - inverse[2] / 2)
    depth = np.maximum(evaluate(inverse[2]), np.float32(1e-3))  # smaller only where nothing is visible
    return evaluate(inverse[0]) / depth - half, evaluate(inverse[1]) / depth - half


def _box_corners(boxes_xyxy: Boxes) -> NDArray[np.float64]:
    """Return the four corners (k, 4, 2) of boxes (k, 4), in the order of a polygon."""
    return boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)


def _bounds(points: NDArray[np.float64]) -> Boxes:
    """Return the boxes (..., 4) around points (..., n, 2)."""
    return np.concatenate([points.min(axis=-2), points.max(axis=-2)], axis=-1).astype(np.float32)


def _area(polygon: NDArray[np.float64]) -> float:
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    return abs(float((x * next_y - y * next_x).sum())) / 2


def _transform(points: NDArray[np.float64], matrix: Matrix) -> NDArray[np.float64]:
    """Return transformed points (..., n, 2), by one matrix (3, 3) or by one for each set of n points (k, 3, 3)."""
    x, y = points[..., 0, None], points[..., 1, None]
    columns = matrix[..., None, :, :]
    projected = x * columns[..., 0] + y * columns[..., 1] + columns[..., 2]
    if matrix[..., 2, :2].any():
        projected[..., :2] /= np.maximum(projected[..., 2:], MIN_DEPTH / 2)
    return projected[..., :2]


def _inverse(matrix: Matrix) -> Matrix:
    """Return the inverse of a matrix (3, 3)."""
    a, b, c = matrix.T
    adjugate = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)])
    inverse: Matrix = adjugate / (a * adjugate[0]).sum()
    return inverse
