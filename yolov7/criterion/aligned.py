"""Assigners that choose cells with a score, for heads with a distribution per side of the box and no objectness.

They are task-aligned assignment (TOOD, Feng et al., 2021) and ATSS (Zhang et al., 2020), as PP-YOLOE and YOLOv7-u6 use
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from yolov7.boxes import box_similarity, xyxy_to_cxcywh
from yolov7.criterion import matching
from yolov7.criterion.candidates import Assignment
from yolov7.criterion.grid import Grid
from yolov7.criterion.matching import ByImage
from yolov7.nn.anchor_free_heads import decode_bins
from yolov7.structures import Targets
from yolov7.system.shapes import Float, Int

_EPS = 1e-9
_ANCHOR_SIDE = 5.0  # side of the square anchor of a cell in strides (ATSS)
_NEAREST = 9  # candidates of an object per level (ATSS)


class Scored(NamedTuple):
    """Positive cells with a score.

    Attributes:
        cells: The positive cells by ascending level.
        score: Score of each cell (p,) float32, above 0 and at most 1: the target of the class of its object.
    """

    cells: Assignment
    score: Tensor


class ScoringAssigner(ABC):
    """Choose the positive cells of a batch and how good each of them is."""

    @abstractmethod
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Scored:
        """Return the positives of a batch. They have no gradient.

        Args:
            maps: Raw maps (B, 1, H, W, 4 bins + classes), finest level first.
            targets: The objects of the images.

        Returns:
            The positive cells. A cell whose score is 0 is not positive.
        """


@final
@dataclass(frozen=True)
class TaskAlignedAssigner(ScoringAssigner):
    """Give every object the cells in it whose predictions are best for class and box together.

    The alignment of a cell is p^alpha u^beta, with the predicted probability p of the class of the object and the
    overlap u of the predicted box. A cell that several objects take goes to the object of the image that it overlaps
    most. Scores are alignments, scaled so that the best of each object equals its largest overlap.

    Attributes:
        strides: Stride of each level in pixels.
        bins: Number of bins per side.
        top: Number of cells that each object takes.
        alpha: Exponent of the probability.
        beta: Exponent of the overlap.
        overlap: Measure of overlap; negative values count as 0.
        four_cells: Whether small objects have candidates around them too; see `Grid.widened`.
    """

    strides: tuple[int, ...]
    bins: int
    top: int
    alpha: float
    beta: float
    overlap: Literal["iou", "ciou"]
    four_cells: bool = False

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Scored:
        """Return the best cells of all objects; see `ScoringAssigner`."""
        batch = _Batch.of(maps, targets, self.strides, self.bins)
        taken = _Pairs.join(self._best(batch, first, last) for first, last in batch.chunks())
        owned = _resolve(batch, taken, lambda p: self._overlap(batch, p))
        overlap = self._overlap(batch, owned)
        alignment = self._alignment(batch, owned, overlap)
        best_alignment, best_overlap = (_largest(values, owned.target, len(targets)) for values in (alignment, overlap))
        score = alignment / (best_alignment[owned.target] + _EPS) * best_overlap[owned.target]
        return batch.scored(owned, score)

    def _best(self, batch: _Batch, first: int, last: int) -> _Pairs:
        """Return the cells with the largest alignment of the objects first..last-1, if it is above 0."""
        boxes = batch.boxes_px[first:last]
        target, cell = batch.grid.pairs_inside(batch.grid.widened(boxes) if self.four_cells else boxes)
        pairs = batch.pairs(target + first, cell)
        alignment = self._alignment(batch, pairs, self._overlap(batch, pairs))
        # Positive floats have the order of their bits; the sort is stable, so that ties go to the first cell.
        keys = (pairs.target << 32) - alignment.view(torch.int32).long()
        order = torch.sort(keys, stable=True).indices
        target = pairs.target[order] - first
        sizes = torch.bincount(target, minlength=last - first)
        rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[target]
        return pairs.take(order[(rank < self.top) & (alignment[order] > 0)])

    def _overlap(self, batch: _Batch, pairs: _Pairs) -> Float[Tensor, " p"]:
        predicted, own = batch.predicted_px(pairs.cell), batch.boxes_px.index_select(0, pairs.target)
        if self.overlap == "iou":
            return paired_iou(own, predicted)
        return box_similarity(xyxy_to_cxcywh(own), xyxy_to_cxcywh(predicted), kind="ciou").clamp(min=0)

    def _alignment(self, batch: _Batch, pairs: _Pairs, overlap: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        return batch.probability(pairs).pow(self.alpha) * overlap.pow(self.beta)


@final
@dataclass(frozen=True)
class AtssAssigner(ScoringAssigner):
    """Give every object the cells near its centre whose square anchors overlap it unusually well.

    It does not depend on the predictions, except for the scores, which are the IoUs of the predicted boxes.

    Attributes:
        strides: Stride of each level in pixels.
        bins: Number of bins per side.
        four_cells: Whether small objects have candidates around them too; see `Grid.widened`.
    """

    strides: tuple[int, ...]
    bins: int
    four_cells: bool = False

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Scored:
        """Return the chosen cells of all objects; see `ScoringAssigner`."""
        batch = _Batch.of(maps, targets, self.strides, self.bins)
        half = batch.grid.stride[:, None] * (_ANCHOR_SIDE / 2)
        anchors = torch.cat((batch.grid.centre - half, batch.grid.centre + half), dim=1)  # N 4
        taken = _Pairs.join(self._best(batch, anchors, first, last) for first, last in batch.chunks())
        size = len(batch.grid)
        owned = _resolve(batch, taken, lambda p: paired_iou(batch.boxes_px[p.target], anchors[p.cell % size]))
        return batch.scored(owned, paired_iou(batch.boxes_px[owned.target], batch.predicted_px(owned.cell)))

    def _best(self, batch: _Batch, anchors: Float[Tensor, "m 4"], first: int, last: int) -> _Pairs:
        """Return the cells of the objects first..last-1."""
        boxes = batch.boxes_px[first:last]
        cells = _nearest_cells(batch.grid, (boxes[:, :2] + boxes[:, 2:]) / 2)  # n k
        overlap = paired_iou(boxes[:, None], anchors[cells])
        mean = overlap.mean(1, keepdim=True)
        variance = (overlap - mean).square().sum(1, keepdim=True) / max(1, cells.shape[1] - 1)
        centre = batch.grid.centre[cells]
        regions = batch.grid.widened(boxes) if self.four_cells else boxes
        inside = torch.minimum(centre - regions[:, None, :2], regions[:, None, 2:] - centre).amin(-1) > _EPS
        target, rank = (inside & (overlap > mean + variance.sqrt())).nonzero(as_tuple=True)
        return batch.pairs(target + first, cells[target, rank])


def paired_iou(a_xyxy: Float[Tensor, "*n 4"], b_xyxy: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Return the IoU of pairs of boxes; an inverted box has no area.

    Args:
        a_xyxy: Corners (..., 4).
        b_xyxy: Corners (..., 4) in the same unit.

    Returns:
        IoUs (...).
    """
    low, high = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2]), torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    a, b = ((box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (a_xyxy, b_xyxy))
    return inter / (a + b - inter + _EPS)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of an object (p,) and a cell of its image (p,), counted over the images of the batch."""

    target: Tensor
    cell: Tensor

    @staticmethod
    def join(parts: Iterable[_Pairs]) -> _Pairs:
        targets, cells = zip(*((part.target, part.cell) for part in parts), strict=True)
        return _Pairs(torch.cat(targets), torch.cat(cells))

    def take(self, index: Tensor) -> _Pairs:
        return _Pairs(self.target[index], self.cell[index])


@dataclass(frozen=True)
class _Batch:
    """What assigners need: the maps, the objects, the cells, and corners of the objects (n, 4) in pixels."""

    maps: Sequence[Tensor]
    targets: Targets
    bins: int
    grid: Grid
    boxes_px: Tensor

    @staticmethod
    def of(maps: Sequence[Tensor], targets: Targets, strides: tuple[int, ...], bins: int) -> _Batch:
        grid = Grid.of(maps, strides)
        return _Batch(maps, targets, bins, grid, grid.boxes_px(targets))

    def chunks(self) -> list[tuple[int, int]]:
        """Return ranges of objects whose pairs with all cells of an image are within the limit."""
        step = max(1, matching.MAX_PAIRS // len(self.grid))
        starts = range(0, max(1, len(self.targets)), step)
        return [(start, min(start + step, len(self.targets))) for start in starts]

    def pairs(self, target: Int[Tensor, " p"], cell: Int[Tensor, " p"]) -> _Pairs:
        """Return pairs of objects and cells of their images."""
        return _Pairs(target, self.targets.image[target] * len(self.grid) + cell)

    def predicted_px(self, cell: Int[Tensor, " p"]) -> Float[Tensor, "p 4"]:
        """Return corners of the predicted boxes of cells in pixels. Each different cell is decoded once."""
        size, images = len(self.grid), self.maps[0].shape[0]
        wanted = torch.zeros(images * size, dtype=torch.bool, device=cell.device)
        wanted[cell] = True
        boxes = torch.empty(images * size, 4, device=cell.device)
        counts = [height * width for height, width in self.grid.sizes]
        level_masks = torch.split(wanted.view(images, size), counts, dim=1)
        start = 0
        for raw, count, mask, stride in zip(self.maps, counts, level_masks, self.grid.strides, strict=True):
            image, place = mask.nonzero(as_tuple=True)
            logits = raw.flatten(0, 3)[:, : 4 * self.bins].index_select(0, image * count + place)
            distances = decode_bins(logits.float().view(-1, 4, self.bins)) * stride
            centre = self.grid.centre.index_select(0, start + place)
            corners = torch.cat((centre - distances[:, :2], centre + distances[:, 2:]), dim=1)
            boxes.index_copy_(0, image * size + start + place, corners)
            start += count
        return boxes.index_select(0, cell)

    def probability(self, pairs: _Pairs) -> Float[Tensor, " p"]:
        """Return the predicted probability of the class of the object in each cell."""
        image, cell = pairs.cell // len(self.grid), pairs.cell % len(self.grid)
        channel = 4 * self.bins + self.targets.label[pairs.target]
        return self.grid.take(self.maps, image, cell, channel).sigmoid()

    def scored(self, owned: _Pairs, score: Float[Tensor, " p"]) -> Scored:
        """Return cells that are ordered by image as positives, without those of score 0."""
        owned, score = owned.take(score > 0), score[score > 0]
        image, cell = owned.cell // len(self.grid), owned.cell % len(self.grid)
        order = torch.argsort(self.grid.level[cell], stable=True)
        return Scored(self.grid.assignment(image, cell, owned.target), score[order])


def _resolve(batch: _Batch, taken: _Pairs, overlap: Callable[[_Pairs], Tensor]) -> _Pairs:
    """Return one object for each taken cell. If several took it, it is the object of the image that overlaps most."""
    cells, place, counts = torch.unique(taken.cell, return_inverse=True, return_counts=True)
    owner = torch.zeros_like(cells).scatter_reduce_(0, place, taken.target, "amax", include_self=False)
    contested = (counts > 1).nonzero()[:, 0]
    if not len(contested):
        return _Pairs(owner, cells)
    by_object = ByImage.group(batch.targets.image, num_images=batch.maps[0].shape[0])
    target, is_object = by_object.padded(range(len(by_object.sizes)))  # B g
    for part in torch.split(contested, max(1, matching.MAX_PAIRS // target.shape[1])):
        image = cells[part] // len(batch.grid)
        rivals = target[image]  # c g
        pairs = _Pairs(rivals.flatten(), cells[part].repeat_interleave(rivals.shape[1]))
        overlaps = overlap(pairs).view(rivals.shape).masked_fill(~is_object[image], -1.0)
        owner[part] = rivals.gather(1, overlaps.argmax(1, keepdim=True))[:, 0]
    return _Pairs(owner, cells)


def _nearest_cells(grid: Grid, centres: Float[Tensor, "n 2"]) -> Int[Tensor, "n k"]:
    """Return the nearest cells of each level; the first ones among equally distant ones."""
    found, start = [], 0
    for height, width in grid.sizes:
        size = height * width
        squares = (centres[:, None] - grid.centre[start : start + size]).square().sum(-1)
        keys = (squares.view(torch.int32).long() << 32) | torch.arange(size, device=squares.device)
        nearest = keys.topk(min(_NEAREST, size), largest=False).values
        found.append(start + nearest.bitwise_and_((1 << 32) - 1))
        start += size
    return torch.cat(found, dim=1)


def _largest(values: Float[Tensor, " p"], target: Int[Tensor, " p"], count: int) -> Float[Tensor, " n"]:
    """Return the largest value of each object, 0 for objects without values."""
    return values.new_zeros(count).scatter_reduce_(0, target, values, "amax")
