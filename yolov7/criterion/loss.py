"""The detection loss: CIoU or its kin for boxes, binary cross-entropy for the rest (paper, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from yolov7.boxes import box_similarity
from yolov7.criterion.assigners import (
    COARSE,
    FINE,
    LEAD_SPAN,
    MAX_K,
    MAX_K_WITH_AUXILIARY,
    WIDE_SPAN,
    AnchorAssigner,
    Anchors,
    Assigner,
    Assignment,
    HeadsAssigner,
    OtaAssigner,
    cell_numbers,
    centre_in_cell,
)
from yolov7.settings import LossSettings
from yolov7.structures import HeadMaps, Targets

SumOverRanks = Callable[[Tensor], Tensor]  # adds up a tensor over the processes that share a batch
_FOCAL_ALPHA = 0.25
_VARIFOCAL_ALPHA, _VARIFOCAL_GAMMA = 0.75, 2.0


class LossParts(NamedTuple):
    """`total` is what to differentiate: the sum of the parts times the batch size. The parts are detached.

    Where processes share a batch each has its addends, which sum up to those of the whole batch.
    """

    total: Tensor
    box: Tensor
    objectness: Tensor
    classification: Tensor


class DetectionLoss:
    """The loss of a head's raw maps for the objects of a batch.

    `anchors_px` (nl, na, 2). `image_size` is the training size: the objectness gain grows with its area. Works on any
    device and computes in float32, whatever the maps' type. Where there is an auxiliary head its loss is added, with
    the settings' `auxiliary_gain` (section 4.2).
    """

    def __init__(
        self,
        *,
        anchors_px: Tensor,
        strides: tuple[int, ...],
        num_classes: int,
        image_size: int,
        settings: LossSettings,
    ) -> None:
        self._anchors = Anchors(anchors_px.detach().float(), strides)
        self._settings = settings
        self._assigner = make_assigner(self._anchors, settings)
        share = 3 / len(strides)
        self._num_classes = num_classes
        self._box_gain = settings.box * share
        self._objectness_gain = settings.objectness * share * (image_size / 640) ** 2
        self._class_gain = settings.classification * share * num_classes / 80
        self._balance = (4.0, 1.0, 0.4) if len(strides) == 3 else (4.0, 1.0, 0.25, 0.06, 0.02)

    def __call__(self, maps: HeadMaps, targets: Targets, *, sum_over_ranks: SumOverRanks | None = None) -> LossParts:
        """The loss of one batch; an image, or a whole batch, without objects is in order.

        With `sum_over_ranks` these are one process's images of a batch, and means are over those of all: the mean of
        means would weigh a match the more, the fewer its process has. A process may have no image at all.
        """
        found = self._assigner(maps, targets)
        whole = _whole_batch(maps, (found.lead, found.auxiliary), sum_over_ranks=sum_over_ranks)
        parts = self._head(maps.lead, targets, found.lead, whole.of_head(0), span=LEAD_SPAN)
        if maps.auxiliary:
            span = auxiliary_span(self._settings)
            auxiliary = self._head(maps.auxiliary, targets, found.auxiliary, whole.of_head(1), span=span)
            parts = parts + self._settings.auxiliary_gain * auxiliary
        gains = parts.new_tensor([self._box_gain, self._objectness_gain, self._class_gain])
        box, objectness, classification = gained = parts * gains
        total = gained.sum() * whole.images
        return LossParts(total, box.detach(), objectness.detach(), classification.detach())

    def _head(
        self, maps: Sequence[Tensor], targets: Targets, cells: Assignment, whole: _WholeBatch, *, span: float
    ) -> Float[Tensor, " 3"]:
        """Box, objectness and class loss of one head: of each level the mean, summed over the levels."""
        rows, objectness = _Select.apply(cells, *maps)  # type: ignore[no-untyped-call]  # (p, 5 + nc), (cells of all,)
        goal = torch.zeros_like(objectness)
        box_loss = class_loss = goal.new_zeros(())
        if len(cells):
            share = 1 / whole.positives.float()[cells.level]  # of its level's mean, each positive
            boxes = decode_cells(rows[:, :4], self._anchors.of(cells), span=span)
            similarity = box_similarity(boxes, _goal_boxes(cells, targets, maps), kind=self._settings.box_loss)
            box_loss = ((1 - similarity) * share).sum()
            quality = similarity.detach().clamp(min=0)
            _put_last(goal, cell_numbers(cells, maps=maps), quality)
            if self._num_classes > 1:
                class_loss = self._class_loss(rows[:, 5:], targets.label[cells.target], quality, share)
        return torch.stack((box_loss, self._objectness_loss(objectness, goal, maps, whole.images), class_loss))

    def _objectness_loss(
        self, logits: Float[Tensor, " n"], goal: Float[Tensor, " n"], maps: Sequence[Tensor], images: int
    ) -> Float[Tensor, ""]:
        sizes = [m[..., 4].numel() for m in maps]
        cells = [images * m.shape[1:4].numel() for m in maps]
        levels = zip(torch.split(logits, sizes), torch.split(goal, sizes), self._balance, cells, strict=False)
        weight = self._settings.objectness_pos_weight
        kind = self._settings.objectness_loss
        losses = [self._bce(x, wanted, weight, kind=kind) * (balance / n) for x, wanted, balance, n in levels]
        return torch.stack(losses).sum()

    def _class_loss(
        self,
        logits: Float[Tensor, "p nc"],
        labels: Int[Tensor, " p"],
        quality: Float[Tensor, " p"],
        share: Float[Tensor, " p"],
    ) -> Float[Tensor, ""]:
        smoothing, kind = self._settings.label_smoothing, self._settings.classification_loss
        right = quality if kind == "varifocal" else torch.full_like(quality, 1 - 0.5 * smoothing)
        goal = torch.full_like(logits, 0.5 * smoothing)
        goal.scatter_(1, labels[:, None], right[:, None])
        share = share[:, None] / self._num_classes
        return self._bce(logits, goal, self._settings.classification_pos_weight, kind=kind, share=share)

    def _bce(
        self, logits: Tensor, goal: Tensor, pos_weight: float, *, kind: str, share: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """Sum of the binary cross-entropy, (vari)focal if the settings say so, with the share of each element."""
        positive = None if pos_weight == 1 else logits.new_tensor(pos_weight)
        gamma = self._settings.focal_gamma
        loss = partial(binary_cross_entropy_with_logits, logits, goal, weight=share, pos_weight=positive)
        if kind == "varifocal":
            return (loss(reduction="none") * varifocal_weight(logits, goal)).sum()
        if gamma:
            return (loss(reduction="none") * focal_weight(logits, goal, gamma=gamma)).sum()
        return loss(reduction="sum")


class _WholeBatch(NamedTuple):
    """What means are over: a batch's images, and its positives of each head and level (heads, nl) or level (nl,)."""

    images: int
    positives: Tensor

    def of_head(self, head: int) -> _WholeBatch:
        return self._replace(positives=self.positives[head])


def _whole_batch(maps: HeadMaps, heads: Sequence[Assignment], *, sum_over_ranks: SumOverRanks | None) -> _WholeBatch:
    images, num_levels = maps.lead[0].shape[0], len(maps.lead)
    positives = torch.stack([torch.bincount(cells.level, minlength=num_levels) for cells in heads])
    if sum_over_ranks is None:
        return _WholeBatch(images, positives)
    *summed, images = sum_over_ranks(torch.cat((positives.flatten(), positives.new_tensor([images])))).tolist()
    return _WholeBatch(images, positives.new_tensor(summed).view_as(positives))


def make_assigner(anchors: Anchors, settings: LossSettings) -> HeadsAssigner:
    """The assigner that the settings name, for a lead head alone or with an auxiliary head."""
    make = partial(_make_single, anchors, settings)
    auxiliary = make(
        reach=COARSE if settings.auxiliary == "coarse_to_fine" else FINE,
        max_k=MAX_K_WITH_AUXILIARY,
        span=auxiliary_span(settings) if settings.auxiliary == "independent" else LEAD_SPAN,
    )
    return HeadsAssigner(
        alone=make(max_k=MAX_K),
        lead=make(max_k=MAX_K_WITH_AUXILIARY),
        auxiliary=auxiliary,
        guidance=settings.auxiliary,
    )


def _make_single(
    anchors: Anchors, settings: LossSettings, *, max_k: int, reach: float = FINE, span: float = LEAD_SPAN
) -> Assigner:
    threshold = settings.anchor_threshold
    match settings.assigner:
        case "ota":
            merge = settings.merge_duplicate_cells
            return OtaAssigner(
                anchors, threshold=threshold, merge_duplicates=merge, max_k=max_k, reach=reach, span=span
            )
        case "anchor":
            return AnchorAssigner(anchors, threshold=threshold, reach=reach)


def auxiliary_span(settings: LossSettings) -> float:
    """The span of the auxiliary decoder: the lead's, or wide enough for a whole coarse neighbour (Table 7)."""
    return LEAD_SPAN if settings.auxiliary_constraint else WIDE_SPAN


def decode_cells(raw: Float[Tensor, "p 4"], anchors_grid: Float[Tensor, "p 2"], *, span: float) -> Float[Tensor, "p 4"]:
    """Boxes cxcywh in cells, relative to their cell's corner: a span of 2 reaches from -0.5 to 1.5; up to 4 anchors."""
    scaled = raw.sigmoid()
    return torch.cat((centre_in_cell(scaled[:, :2], span=span), (2 * scaled[:, 2:]).square() * anchors_grid), dim=1)


def focal_weight(logits: Float[Tensor, "*n"], goal: Float[Tensor, "*n"], *, gamma: float) -> Float[Tensor, "*n"]:
    """Weight of each element in the focal loss: more for what is predicted badly."""
    probability = logits.sigmoid()
    right = goal * probability + (1 - goal) * (1 - probability)
    alpha = goal * _FOCAL_ALPHA + (1 - goal) * (1 - _FOCAL_ALPHA)
    return alpha * (1 - right) ** gamma


def varifocal_weight(logits: Float[Tensor, "*n"], goal: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Weight of each element in the varifocal loss (Zhang et al., 2021, equation 2).

    A positive's is its goal, the quality of the box; a negative's is the less, the surer it is predicted to be none.
    """
    negative = _VARIFOCAL_ALPHA * logits.sigmoid() ** _VARIFOCAL_GAMMA
    return torch.where(goal > 0, goal, negative)


def _goal_boxes(cells: Assignment, targets: Targets, maps: Sequence[Tensor]) -> Float[Tensor, "p 4"]:
    """The objects' boxes cxcywh in cells, relative to the corner of the assigned cell."""
    boxes = targets.boxes_cxcywh[cells.target].float()
    grid = torch.tensor([(m.shape[3], m.shape[2]) * 2 for m in maps], dtype=torch.float32, device=boxes.device)
    boxes = boxes * grid[cells.level]
    corner = torch.stack((cells.column, cells.row), dim=1)
    return torch.cat((boxes[:, :2] - corner, boxes[:, 2:]), dim=1)


def _put_last(goal: Float[Tensor, " n"], numbers: Int[Tensor, " p"], values: Float[Tensor, " p"]) -> None:
    """Writes the values at their cells; of several at one cell the last one stays, on every device."""
    position = torch.arange(len(numbers), device=goal.device)
    last = torch.zeros(goal.shape, dtype=torch.int64, device=goal.device)
    last.scatter_reduce_(0, numbers, position, "amax")
    goal[numbers] = values[last[numbers]]


class _Select(torch.autograd.Function):
    """The rows of some cells (p, 5 + nc) and the objectness of all, level after level, both float32.

    A single function, so that the backward pass fills one buffer of each map's size.
    """

    @staticmethod
    def forward(ctx: Any, cells: Assignment, *maps: Tensor) -> tuple[Tensor, Tensor]:
        levels = cells.per_level(len(maps))
        ctx.levels = levels
        ctx.maps = [m.detach() for m in maps]
        rows = [m[c.image, c.anchor, c.row, c.column].float() for m, c in zip(maps, levels, strict=True)]
        return torch.cat(rows), torch.cat([m[..., 4].float().flatten() for m in maps])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows = torch.split(gradients[0], [len(cells) for cells in ctx.levels])
        objectness = torch.split(gradients[1], [m[..., 4].numel() for m in ctx.maps])
        return None, *map(_spread, ctx.maps, ctx.levels, rows, objectness)


def _spread(like: Tensor, cells: Assignment, rows: Tensor, objectness: Tensor) -> Tensor:
    """The gradient of a map: of some cells' rows, and of the objectness of all."""
    gradient = _zeros_like(like)
    gradient[..., 4] = objectness.view(like.shape[:4])
    numbers = ((cells.image * like.shape[1] + cells.anchor) * like.shape[2] + cells.row) * like.shape[3] + cells.column
    gradient.view(-1, like.shape[4]).index_add_(0, numbers, rows.to(like.dtype))
    return gradient


def _zeros_like(like: Tensor) -> Tensor:
    """Zeros, contiguous; on the CPU from numpy, which asks the system for huge, zeroed pages: a fifth of the time."""
    if like.device.type != "cpu" or not like.numel():
        return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    return torch.from_numpy(np.zeros(like.nbytes, np.uint8)).view(like.dtype).view(like.shape)
