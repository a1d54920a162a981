"""Detection in large images by overlapping tiles, whose detections are joined.

An image is looked at as a whole and in tiles of a fixed size. The whole image shows objects that are larger than a
tile, the tiles show objects that are too small in the resized whole image.

Two detections of the same class from two views are the same object if their boxes, each limited to the region that both
views show, have an IoU of at least 0.5. If one of the two boxes touches a border of its tile inside of the image, the
object is cut there, and both are replaced by one box that encloses them, with the higher score. This holds for chains
of such pairs, so that an object that spans several tiles becomes one box. Afterwards, non-maximum suppression with the
usual threshold removes the weaker ones of the remaining boxes that overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from yolov7.boxes import pairwise_iou
from yolov7.errors import SettingError
from yolov7.inference.nms import best_first, suppress
from yolov7.settings import NmsSettings
from yolov7.structures import Detections

_SAME = 0.5  # lowest IoU, within the region that two views share, of two boxes of one object
_TOUCHES = 2.0  # pixels of the model's input between a box and the border of the tile that cuts it
_SMALLEST, _MOST = 32, 10_000


@dataclass(frozen=True)
class Tiling:
    """How images are divided into tiles.

    Attributes:
        size: Side of the square tiles in pixels of the image.
        overlap: Share of a tile that the next tile shows too, from 0 to 0.9. Objects up to this size are never cut in
            all tiles.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        """Raise SettingError if a value is out of range."""
        if self.size < _SMALLEST:
            raise SettingError(f"the tile size {self.size} must be at least {_SMALLEST} pixels; 640 is usual")
        if not 0 <= self.overlap <= 0.9:
            raise SettingError(f"the tile overlap {self.overlap} must be from 0 to 0.9; 0.2 is usual")

    def views(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """Return the parts of an image that the model looks at.

        Args:
            width: Width of the image in pixels.
            height: Height of the image in pixels.

        Returns:
            Left, top, right and bottom of the whole image, then of each tile if the image is larger than one.

        Raises:
            SettingError: If there would be more than 10,000 tiles.
        """
        across, down = self._starts(width), self._starts(height)
        whole = (0, 0, width, height)
        if len(across) * len(down) == 1:
            return [whole]
        if len(across) * len(down) > _MOST:
            raise SettingError(
                f"tiles of {self.size} pixels divide an image of {width} x {height} pixels into "
                f"{len(across) * len(down):,} parts, and {_MOST:,} are allowed; use larger tiles or less overlap"
            )
        tiles = [(x, y, min(x + self.size, width), min(y + self.size, height)) for y in down for x in across]
        return [whole, *tiles]

    def _starts(self, length: int) -> list[int]:
        """Return where tiles begin on one axis, at equal distances of at most `size * (1 - overlap)`."""
        if length <= self.size:
            return [0]
        step = max(1, int(self.size * (1 - self.overlap)))
        count = math.ceil((length - self.size) / step) + 1
        return [round(i * (length - self.size) / (count - 1)) for i in range(count)]


def join_views(
    views: Sequence[tuple[int, int, int, int]], found: Sequence[Detections], *, image_size: int, nms: NmsSettings
) -> Detections:
    """Join the detections of the parts of an image.

    Args:
        views: Left, top, right and bottom of each part in pixels of the image, from `Tiling.views`.
        found: Detections of each part, in pixels of that part.
        image_size: Side in pixels of the square that parts were fitted into.
        nms: Thresholds and limits.

    Returns:
        The detections of the image, in its pixels, by descending score.
    """
    frames = torch.tensor(views, dtype=torch.float32)
    counts = [len(one) for one in found]
    boxes = torch.cat([one.boxes_xyxy + frame[:2].repeat(2) for one, frame in zip(found, frames, strict=True)])
    scores, labels = torch.cat([one.scores for one in found]), torch.cat([one.labels for one in found])
    view = torch.repeat_interleave(torch.arange(len(views)), torch.tensor(counts))
    cut = _is_cut(boxes, frames[view], image=frames[0], image_size=image_size)
    members = torch.split(torch.arange(len(boxes)), counts)
    pairs: list[tuple[int, int]] = []
    for first, second in combinations(range(len(views)), 2):
        shared = _intersection(frames[first], frames[second])
        if counts[first] and counts[second] and (shared[2:] > shared[:2]).all():
            pairs += _same_objects(boxes, labels, cut, members[first], members[second], shared=shared)
    group = _components(len(boxes), pairs)
    boxes, scores, labels = _enclose(boxes, scores, labels, group)
    order = best_first(scores, limit=nms.max_candidates)
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    classes = torch.zeros_like(labels) if nms.agnostic else labels
    keep = suppress(boxes, groups=classes, threshold=nms.iou, limit=nms.max_detections)
    return Detections(boxes[keep], scores[keep], labels[keep])


def _is_cut(boxes: Tensor, frames: Tensor, *, image: Tensor, image_size: int) -> Tensor:
    """Return which boxes (n, 4) touch a border of their view (n, 4) that is not a border of the image."""
    pixel = (frames[:, 2:] - frames[:, :2]).amax(1, keepdim=True) / image_size  # one pixel of the model's input
    touches = (boxes - frames).abs() <= _TOUCHES * pixel
    return (touches & (frames != image)).any(1)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat((torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])), dim=-1)


def _same_objects(
    boxes: Tensor, labels: Tensor, cut: Tensor, first: Tensor, second: Tensor, *, shared: Tensor
) -> list[tuple[int, int]]:
    """Return pairs of boxes of two views, at least one of them cut, that show the same object."""
    iou = pairwise_iou(_intersection(boxes[first], shared), _intersection(boxes[second], shared))
    same = (iou >= _SAME) & (labels[first][:, None] == labels[second]) & (cut[first][:, None] | cut[second])
    for one in (first, second):  # a box without area in the shared region is not visible there
        inside = _intersection(boxes[one], shared)
        visible = (inside[:, 2:] > inside[:, :2]).all(1)
        same &= visible[:, None] if one is first else visible
    rows, columns = same.nonzero(as_tuple=True)
    return list(zip(first[rows].tolist(), second[columns].tolist(), strict=True))


def _components(count: int, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return the number of the connected component of each of `count` nodes."""
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in pairs:
        parent[root(a)] = root(b)
    return torch.tensor([root(node) for node in range(count)], dtype=torch.int64)


def _enclose(boxes: Tensor, scores: Tensor, labels: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return one box for each group: the smallest that encloses its boxes, with their highest score."""
    if not len(boxes):
        return boxes, scores, labels
    _, index = group.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    count = int(index.max()) + 1
    spread = index[:, None].expand(-1, 2)
    low = boxes.new_zeros(count, 2).scatter_reduce(0, spread, boxes[:, :2], "amin", include_self=False)
    high = boxes.new_zeros(count, 2).scatter_reduce(0, spread, boxes[:, 2:], "amax", include_self=False)
    best = scores.new_zeros(count).scatter_reduce(0, index, scores, "amax", include_self=False)
    label = labels.new_zeros(count).scatter(0, index, labels)
    return torch.cat((low, high), 1), best, label
