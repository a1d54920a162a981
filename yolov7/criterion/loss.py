"""The detection loss: CIoU or a similar measure for boxes, binary cross-entropy otherwise (paper, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from yolov7.criterion.assigners import (
    LEAD_SPAN,
    MAX_K,
    MAX_K_WITH_AUXILIARY,
    WIDE_SPAN,
    AnchorAssigner,
    Assigner,
    HeadsAssigner,
    HeadsAssignment,
    OtaAssigner,
    centre_in_cell,
)
from yolov7.criterion.candidates import COARSE, FINE, Anchors, Assignment, cell_numbers
from yolov7.criterion.loss_parts import Loss, LossParts, SumOverRanks, select
from yolov7.criterion.own_code import HeadGeometry, OwnAssigner, similarity_of
from yolov7.settings import LossSettings
from yolov7.structures import HeadMaps, Targets
from yolov7.system.shapes import Float, Int

_FOCAL_ALPHA = 0.25
_VARIFOCAL_ALPHA, _VARIFOCAL_GAMMA = 0.75, 2.0


@final
class DetectionLoss(Loss):
    """The loss of raw head maps for the objects of a batch (sections 4.2 and 5.1 of the paper).

    The loss of an auxiliary head is multiplied by the `auxiliary_gain` of the settings and added.
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
        """Make the loss of one model.

        Args:
            anchors_px: Width and height of the anchors (levels, anchors, 2) in pixels, finest level first.
            strides: Stride of each level in pixels.
            num_classes: Number of classes.
            image_size: Side of the training images in pixels, with whose square the objectness gain may grow.
            settings: Gains, the assigner and the kinds of loss.
        """
        self._anchors = Anchors(anchors_px.detach().float(), strides)
        self._settings = settings
        self._assigner = make_assigner(self._anchors, settings)
        self._similarity = similarity_of(settings.box_loss)
        self._num_classes = num_classes
        self._gains = detection_gains(settings, len(strides), num_classes=num_classes, image_size=image_size)
        self._balance = level_balance(len(strides), largest=settings.objectness_balance)

    def assign(self, maps: HeadMaps, targets: Targets) -> HeadsAssignment:
        """Return the positive cells of both heads; see `Loss`."""
        return self._assigner(maps, targets)

    def __call__(self, maps: HeadMaps, targets: Targets, *, sum_over_ranks: SumOverRanks | None = None) -> LossParts:
        """Return the loss of one batch; see `Loss`. Each map has the shape (B, anchors, H, W, 5 + classes)."""
        found = self._assigner(maps, targets)
        whole = _whole_batch(maps, (found.lead, found.auxiliary), sum_over_ranks=sum_over_ranks)
        parts = self._head(maps.lead, targets, found.lead, whole.of_head(0), span=LEAD_SPAN)
        if maps.auxiliary:
            span = auxiliary_span(self._settings)
            auxiliary = self._head(maps.auxiliary, targets, found.auxiliary, whole.of_head(1), span=span)
            parts = parts + self._settings.auxiliary_gain * auxiliary
        box, objectness, classification = gained = parts * parts.new_tensor(self._gains)
        total = gained.sum() * whole.images
        return LossParts(total, box.detach(), objectness.detach(), classification.detach())

    def _head(
        self, maps: Sequence[Tensor], targets: Targets, cells: Assignment, whole: _WholeBatch, *, span: float
    ) -> Float[Tensor, " 3"]:
        """Return the box, objectness and class loss of one head: the mean of each level, summed over the levels."""
        rows, objectness = select(cells, slice(4, 5), maps)  # (p, 5 + nc), (cells of all, 1)
        objectness = objectness[:, 0]
        goal = torch.zeros_like(objectness)
        box_loss = class_loss = goal.new_zeros(())
        if len(cells):
            share = 1 / whole.positives.float()[cells.level]  # weight of each positive in the mean of its level
            boxes = decode_cells(rows[:, :4], self._anchors.of(cells), span=span)
            similarity = self._similarity(boxes, _goal_boxes(cells, targets, maps))
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
        levels = zip(torch.split(logits, sizes), torch.split(goal, sizes), self._balance, cells, strict=True)
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
        """Return the sum of the binary cross-entropy, weighted by `share`, in the focal or varifocal form if wanted."""
        positive = None if pos_weight == 1 else logits.new_tensor(pos_weight)
        gamma = self._settings.focal_gamma
        loss = partial(binary_cross_entropy_with_logits, logits, goal, weight=share, pos_weight=positive)
        if kind == "varifocal":
            return (loss(reduction="none") * varifocal_weight(logits, goal)).sum()
        if gamma:
            return (loss(reduction="none") * focal_weight(logits, goal, gamma=gamma)).sum()
        return loss(reduction="sum")


class _WholeBatch(NamedTuple):
    """The denominators of all means: number of images, and positives of each head and level (heads, nl) or (nl,)."""

    images: int
    positives: Tensor

    def of_head(self, head: int) -> _WholeBatch:
        """Return the denominators of one head."""
        return self._replace(positives=self.positives[head])


def _whole_batch(maps: HeadMaps, heads: Sequence[Assignment], *, sum_over_ranks: SumOverRanks | None) -> _WholeBatch:
    images, num_levels = maps.lead[0].shape[0], len(maps.lead)
    positives = torch.stack([torch.bincount(cells.level, minlength=num_levels) for cells in heads])
    if sum_over_ranks is None:
        return _WholeBatch(images, positives)
    *summed, images = sum_over_ranks(torch.cat((positives.flatten(), positives.new_tensor([images])))).tolist()
    return _WholeBatch(images, positives.new_tensor(summed).view_as(positives))


class DetectionGains(NamedTuple):
    """Factors of the means of the box, objectness and class loss of each level."""

    box: float
    objectness: float
    classification: float


def detection_gains(settings: LossSettings, num_levels: int, *, num_classes: int, image_size: int) -> DetectionGains:
    """Scale the gains of the settings as the reference does.

    Args:
        settings: The gains for three levels, 80 classes and 640 pixels.
        num_levels: Number of levels of the head.
        num_classes: Number of classes.
        image_size: Side of the training images in pixels.

    Returns:
        The gains of the model.
    """
    share = 3 / num_levels
    return DetectionGains(
        box=settings.box * share,
        objectness=settings.objectness * share * ((image_size / 640) ** 2 if settings.objectness_by_size else 1.0),
        classification=settings.classification * share * num_classes / 80,
    )


def level_balance(num_levels: int, *, largest: Literal["fine", "coarse"] = "fine") -> tuple[float, ...]:
    """Return the weight of the objectness loss of each level, finest level first.

    Three levels have weights of their own. The reference has five weights for larger models, 4, 1, 0.25, 0.06 and 0.02;
    each further level has a quarter of the weight of the level before.

    Args:
        num_levels: Number of levels of the head.
        largest: The level with the largest weight: the finest or the coarsest one.

    Returns:
        One positive weight per level.
    """
    further = (0.02 / 4**i for i in range(1, num_levels - 4))
    weights = (4.0, 1.0, 0.4) if num_levels == 3 else (4.0, 1.0, 0.25, 0.06, 0.02, *further)[:num_levels]
    return weights if largest == "fine" else weights[::-1]


def make_assigner(anchors: Anchors, settings: LossSettings) -> HeadsAssigner:
    """Return the assigner that the settings choose, for models with and without an auxiliary head.

    Args:
        anchors: Anchors and strides of the lead head.
        settings: The kind of assigner and its parameters.

    Returns:
        The assigner of both heads.
    """
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
                anchors,
                threshold=threshold,
                merge_duplicates=merge,
                max_k=max_k,
                reach=reach,
                span=span,
                four_cells=settings.four_cells,
            )
        case "anchor":
            return AnchorAssigner(anchors, threshold=threshold, reach=reach)
        case name:
            return OwnAssigner(name, HeadGeometry(anchors.strides, anchors.px))


def auxiliary_span(settings: LossSettings) -> float:
    """Return the span of the decoder of the auxiliary head in cells (Table 7 of the paper).

    Args:
        settings: `auxiliary_constraint` selects the span of the lead head; otherwise the span reaches a coarse
            neighbour completely.

    Returns:
        The span in cells.
    """
    return LEAD_SPAN if settings.auxiliary_constraint else WIDE_SPAN


def decode_cells(raw: Float[Tensor, "p 4"], anchors_grid: Float[Tensor, "p 2"], *, span: float) -> Float[Tensor, "p 4"]:
    """Decode logits to boxes relative to the corner of their cell. Sides reach up to four times the anchor.

    Args:
        raw: Logits of x, y, w, h (p, 4).
        anchors_grid: Anchors (p, 2) in cells.
        span: Range of the centre in cells: a span of 2 reaches from -0.5 to 1.5.

    Returns:
        Boxes cx, cy, w, h (p, 4) in cells.
    """
    scaled = raw.sigmoid()
    return torch.cat((centre_in_cell(scaled[:, :2], span=span), (2 * scaled[:, 2:]).square() * anchors_grid), dim=1)


def focal_weight(logits: Float[Tensor, "*n"], goal: Float[Tensor, "*n"], *, gamma: float) -> Float[Tensor, "*n"]:
    """Return the weight of each element in the focal loss: the worse its prediction, the higher the weight.

    Args:
        logits: Predictions before the sigmoid.
        goal: Targets in 0..1, of the same shape.
        gamma: Exponent of the focal loss.

    Returns:
        Weights of the same shape.
    """
    probability = logits.sigmoid()
    right = goal * probability + (1 - goal) * (1 - probability)
    alpha = goal * _FOCAL_ALPHA + (1 - goal) * (1 - _FOCAL_ALPHA)
    return alpha * (1 - right) ** gamma


def varifocal_weight(logits: Float[Tensor, "*n"], goal: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the weight of each element in the varifocal loss (Zhang et al., 2021, equation 2).

    Positives are weighted by their goal, the quality of their box. Easy negatives are down-weighted by
    `alpha * p**gamma`.

    Args:
        logits: Predictions before the sigmoid.
        goal: Quality of the boxes of positives in 0..1, and 0 for negatives; of the same shape.

    Returns:
        Weights of the same shape.
    """
    negative = _VARIFOCAL_ALPHA * logits.sigmoid() ** _VARIFOCAL_GAMMA
    return torch.where(goal > 0, goal, negative)


def _goal_boxes(cells: Assignment, targets: Targets, maps: Sequence[Tensor]) -> Float[Tensor, "p 4"]:
    """Return the boxes cxcywh of the objects in cells, relative to the corner of the assigned cell."""
    boxes = targets.boxes_cxcywh[cells.target].float()
    grid = torch.tensor([(m.shape[3], m.shape[2]) * 2 for m in maps], dtype=torch.float32, device=boxes.device)
    boxes = boxes * grid[cells.level]
    corner = torch.stack((cells.column, cells.row), dim=1)
    return torch.cat((boxes[:, :2] - corner, boxes[:, 2:]), dim=1)


def _put_last(goal: Float[Tensor, " n"], numbers: Int[Tensor, " p"], values: Float[Tensor, " p"]) -> None:
    """Write the values at their cells. If a cell has several values, the last one is used on every device."""
    position = torch.arange(len(numbers), device=goal.device)
    last = torch.zeros(goal.shape, dtype=torch.int64, device=goal.device)
    last.scatter_reduce_(0, numbers, position, "amax")
    goal[numbers] = values[last[numbers]]
