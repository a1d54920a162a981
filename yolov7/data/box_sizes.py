"""Sizes of boxes at a training size, and how many are too small to be learned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolov7.data.index import ImageIndex

MIN_SIDE = 2.0  # pixels of a sample: a box with a side of at most this length is dropped


def fitted_sides(index: ImageIndex, *, image_size: int) -> NDArray[np.float64]:
    """Return the widths and heights of boxes in pixels of fitted images.

    Args:
        index: The split.
        image_size: Side of the square that each image is fitted into, pixels.

    Returns:
        (m, 2) widths and heights of all boxes, crowd regions included.
    """
    scale = image_size / np.maximum(np.maximum(index.widths, index.heights), 1).astype(np.float64)
    sides = (index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]).astype(np.float64)
    fitted: NDArray[np.float64] = sides * np.repeat(scale, np.diff(index.box_offsets))[:, None]
    return fitted


def is_learned(sides: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether boxes are large enough to be learned.

    Args:
        sides: (m, 2) widths and heights in pixels of a sample.

    Returns:
        (m,) whether both sides are longer than `MIN_SIDE`.
    """
    return np.asarray((sides > MIN_SIDE).all(axis=1))


def count_small_boxes(index: ImageIndex, *, image_size: int) -> tuple[int, int]:
    """Count the objects that are too small to be learned at a training size.

    Args:
        index: The split.
        image_size: As in `fitted_sides`.

    Returns:
        The number of such objects, and the number of all objects, both without crowd regions.
    """
    sides = fitted_sides(index, image_size=image_size)[~index.crowd]
    return int((~is_learned(sides)).sum()), len(sides)
