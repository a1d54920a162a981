"""Checks of boxes: duplicates, boxes that cover the image, and boxes that are too small to be learned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from yolov7.data.health.checks import Box, Finding
from yolov7.data.index import ImageIndex

MAX_IOU = 0.95  # of two boxes of one class in one image
SMALLEST_SIDE = 2.0  # pixels at the training size; augmentation drops boxes with a shorter side
_WHOLE = 0.99  # share of both sides of the image from which on a box covers it


def box_iou(boxes_xyxy: NDArray[np.floating], others_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the IoU (n, k) of each of n boxes with each of k boxes.

    Args:
        boxes_xyxy: Corners (n, 4).
        others_xyxy: Corners (k, 4) in the same unit.
    """
    one, other = boxes_xyxy.astype(np.float64)[:, None], others_xyxy.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    inter = np.clip(sides, 0.0, None).prod(axis=2)
    union = (one[..., 2:] - one[..., :2]).prod(axis=2) + (other[..., 2:] - other[..., :2]).prod(axis=2) - inter
    iou: NDArray[np.float64] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def overlapping_pairs(boxes_xyxy: NDArray[np.floating], labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the pairs of boxes of one class and one image whose IoU is above `MAX_IOU`.

    Args:
        boxes_xyxy: Corners (k, 4) in pixels.
        labels: (k,) classes.

    Returns:
        Two places of each pair, the lower one first.
    """
    order = np.argsort(boxes_xyxy[:, 0], kind="stable")
    lefts = boxes_xyxy[order, 0]
    pairs: list[tuple[int, int]] = []
    for start, place in enumerate(order.tolist()):
        # An IoU above 0.95 needs left edges that differ by less than a tenth of the width.
        limit = boxes_xyxy[place, 0] + 0.1 * (boxes_xyxy[place, 2] - boxes_xyxy[place, 0])
        stop = int(np.searchsorted(lefts, limit, side="right"))
        near = order[start + 1 : stop]
        near = near[labels[near] == labels[place]]
        if len(near):
            found = near[box_iou(boxes_xyxy[place][None], boxes_xyxy[near])[0] > MAX_IOU]
            pairs.extend((min(place, other), max(place, other)) for other in found.tolist())
    return sorted(pairs)


def find_overlaps(split: str, index: ImageIndex) -> Iterator[Finding]:
    """Find boxes of one class that cover almost the same pixels.

    Args:
        split: The name of the split.
        index: The split.

    Yields:
        A finding for each pair.
    """
    for i in np.flatnonzero(np.diff(index.box_offsets) > 1).tolist():
        is_object = ~index.crowd_of(i)
        boxes, labels = index.boxes_of(i)[is_object], index.labels_of(i)[is_object]
        for one, other in overlapping_pairs(boxes, labels):
            name = index.class_names[labels[one]]
            iou = box_iou(boxes[one][None], boxes[other][None])[0, 0]
            detail = f"{name}: {_told(boxes[one])} and {_told(boxes[other])}, IoU {iou:.3f}"
            yield _finding(split, index, i, detail, boxes[[one, other]])


def find_whole_images(split: str, index: ImageIndex) -> Iterator[Finding]:
    """Find boxes that cover the whole image.

    Args:
        split: The name of the split.
        index: The split.

    Yields:
        A finding for each box.
    """
    sizes = np.stack([index.widths, index.heights], axis=1)[_image_of_box(index)]
    sides = index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]
    yield from _box_findings(split, index, np.all(sides >= _WHOLE * sizes, axis=1))


def find_small_boxes(split: str, index: ImageIndex, *, image_size: int) -> Iterator[Finding]:
    """Find boxes that training drops because they are too small.

    Args:
        split: The name of the split.
        index: The split.
        image_size: Side of the square that each image is fitted into, pixels.

    Yields:
        A finding for each box.
    """
    sides = _fitted_sides(index, image_size)
    yield from _box_findings(split, index, sides.min(axis=1, initial=np.inf) < SMALLEST_SIDE, sides)


def find_boxes_below_stride(split: str, index: ImageIndex, *, image_size: int, stride: int) -> Iterator[Finding]:
    """Find boxes that are smaller than one cell of the finest map of the model, but not too small to be learned.

    Args:
        split: The name of the split.
        index: The split.
        image_size: Side of the square that each image is fitted into, pixels.
        stride: Side of a cell of the finest map, pixels.

    Yields:
        A finding for each box.
    """
    sides = _fitted_sides(index, image_size)
    is_small = np.all((sides < stride) & (sides >= SMALLEST_SIDE), axis=1)
    yield from _box_findings(split, index, is_small, sides)


def _fitted_sides(index: ImageIndex, image_size: int) -> NDArray[np.float64]:
    """Return widths and heights (m, 2) of all boxes in pixels of the fitted images."""
    scale = image_size / np.maximum(np.maximum(index.widths, index.heights), 1)
    sides: NDArray[np.float64] = (index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]) * scale[_image_of_box(index), None]
    return sides


def _image_of_box(index: ImageIndex) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(index)), np.diff(index.box_offsets))


def _box_findings(
    split: str, index: ImageIndex, is_found: NDArray[np.bool_], fitted: NDArray[np.float64] | None = None
) -> Iterator[Finding]:
    """Yield a finding for each box, without crowd regions; the detail states its size at the training size."""
    image = _image_of_box(index)
    for row in np.flatnonzero(is_found & ~index.crowd).tolist():
        box = index.boxes_xyxy[row]
        size = "" if fitted is None else ", {:.1f} x {:.1f} pixels at the training size".format(*fitted[row])
        detail = f"{index.class_names[index.labels[row]]}: {_told(box)}{size}"
        yield _finding(split, index, int(image[row]), detail, box[None])


def _finding(split: str, index: ImageIndex, i: int, detail: str, boxes: NDArray[np.float32]) -> Finding:
    shown: tuple[Box, ...] = tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist())
    return Finding(split, str(index.paths[i]), detail, images=(index.paths[i],), boxes_xyxy=shown)


def _told(box: NDArray[np.float32]) -> str:
    return "[{}]".format(", ".join(f"{value:g}" for value in box.tolist()))
