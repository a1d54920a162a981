"""Checks of boxes: duplicates, boxes that cover the image, and boxes that are too small to be learned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from yolov7.data.box_sizes import fitted_sides, is_learned
from yolov7.data.health.checks import Box, Finding
from yolov7.data.index import ImageIndex

MAX_IOU = 0.95  # of two boxes of one class in one image
_WHOLE = 0.99  # share of both sides of the image from which on a box covers it


def overlapping_pairs(
    boxes_xyxy: NDArray[np.floating], groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs of boxes of one group whose IoU is above `MAX_IOU`.

    Args:
        boxes_xyxy: (m, 4) corners in pixels.
        groups: (m,) a number for each class of each image.

    Returns:
        (p, 2) places of boxes, the lower one first, sorted; and (p,) their IoU.
    """
    order = np.lexsort((boxes_xyxy[:, 0], groups))
    boxes, group = boxes_xyxy[order].astype(np.float64), groups[order]
    # An IoU above 0.95 needs left edges that differ by less than a tenth of the width.
    limits = boxes[:, 0] + 0.1 * (boxes[:, 2] - boxes[:, 0])
    found = [np.zeros((0, 2), np.int64)]
    first, step = np.arange(len(order)), 0
    while len(first):  # boxes that are near the one `step` places behind them may be near the next one too
        step += 1
        first = first[first + step < len(order)]
        second = first + step
        is_near = (group[first] == group[second]) & (boxes[second, 0] <= limits[first])
        first, second = first[is_near], second[is_near]
        found.append(np.stack([first, second], axis=1))
    pairs = np.concatenate(found)
    iou = _iou(boxes[pairs[:, 0]], boxes[pairs[:, 1]])
    pairs, iou = np.sort(order[pairs[iou > MAX_IOU]], axis=1), iou[iou > MAX_IOU]
    by_place = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[by_place], iou[by_place]


def find_overlaps(split: str, index: ImageIndex) -> Iterator[Finding]:
    """Find boxes of one class that cover almost the same pixels.

    Args:
        split: The name of the split.
        index: The split.

    Yields:
        A finding for each pair.
    """
    rows = np.flatnonzero(~index.crowd)
    image, labels = _image_of_box(index)[rows], index.labels[rows]
    pairs, overlaps = overlapping_pairs(index.boxes_xyxy[rows], image * len(index.class_names) + labels)
    for (one, other), iou in zip(pairs.tolist(), overlaps.tolist(), strict=True):
        boxes = index.boxes_xyxy[rows[[one, other]]]
        detail = f"{index.class_names[labels[one]]}: {_told(boxes[0])} and {_told(boxes[1])}, IoU {iou:.3f}"
        yield _finding(split, index, int(image[one]), detail, boxes)


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
    sides = fitted_sides(index, image_size=image_size)
    yield from _box_findings(split, index, ~is_learned(sides), sides)


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
    sides = fitted_sides(index, image_size=image_size)
    is_small = np.all(sides < stride, axis=1) & is_learned(sides)
    yield from _box_findings(split, index, is_small, sides)


def _iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU (p,) of pairs of boxes (p, 4); this room does without torch, and so without `yolov7.boxes`."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    inter = np.clip(sides, 0.0, None).prod(axis=1)
    union = (one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1) - inter
    iou: NDArray[np.float64] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


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
