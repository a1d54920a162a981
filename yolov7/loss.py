"""The detection loss: CIoU for boxes, binary cross-entropy for objectness and classes (paper, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from yolov7.assign import AnchorAssigner, Anchors, Assigner, Assignment, OtaAssigner
from yolov7.boxes import box_similarity
from yolov7.settings import LossSettings
from yolov7.structures import HeadMaps, Targets

_FOCAL_ALPHA = 0.25


class LossParts(NamedTuple):
    """`total` is what to differentiate: the sum of the parts times the batch size. The parts are detached."""

    total: Tensor
    box: Tensor
    objectness: Tensor
    classification: Tensor


class DetectionLoss:
    """The loss of a head's raw maps for the objects of a batch.

    `anchors_px` (nl, na, 2). `image_size` is the training size: the objectness gain grows with its area. Works on any
    device and computes in float32, whatever the maps' type. `assigner` replaces the one that the settings name.
    """

    def __init__(
        self,
        *,
        anchors_px: Tensor,
        strides: tuple[int, ...],
        num_classes: int,
        image_size: int,
        settings: LossSettings,
        assigner: Assigner | None = None,
    ) -> None:
        self._anchors = Anchors(anchors_px.detach().float(), strides)
        self._settings = settings
        self._assigner = assigner or make_assigner(self._anchors, settings)
        share = 3 / len(strides)
        self._num_classes = num_classes
        self._box_gain = settings.box * share
        self._objectness_gain = settings.objectness * share * (image_size / 640) ** 2
        self._class_gain = settings.classification * share * num_classes / 80
        self._balance = (4.0, 1.0, 0.4) if len(strides) == 3 else (4.0, 1.0, 0.25, 0.06, 0.02)

    def __call__(self, maps: HeadMaps, targets: Targets) -> LossParts:
        """The loss of one batch; an image, or a whole batch, without objects is in order."""
        if maps.auxiliary:
            raise ValueError("the maps have an auxiliary head, which this loss does not train; use a spec without one")
        assignment = self._assigner([m.detach() for m in maps.lead], targets)
        parts = self._sum_levels(maps.lead, targets, assignment.per_level(len(maps.lead)))
        gains = parts.new_tensor([self._box_gain, self._objectness_gain, self._class_gain])
        box, objectness, classification = gained = parts * gains
        total = gained.sum() * maps.lead[0].shape[0]
        return LossParts(total, box.detach(), objectness.detach(), classification.detach())

    def _sum_levels(
        self, maps: Sequence[Tensor], targets: Targets, positives: Sequence[Assignment]
    ) -> Float[Tensor, " 3"]:
        """Box, objectness and class loss, summed over the levels."""
        levels = zip(maps, positives, self._anchors.strides, self._anchors.px, self._balance, strict=False)
        losses = [self._level(m, cells, targets, stride, px, balance) for m, cells, stride, px, balance in levels]
        return torch.stack(losses).sum(0)

    def _level(
        self, level_map: Tensor, cells: Assignment, targets: Targets, stride: int, anchors_px: Tensor, balance: float
    ) -> Float[Tensor, " 3"]:
        rows, objectness = _Select.apply(level_map, cells)  # type: ignore[no-untyped-call]  # (p, 5 + nc), (B, na, H, W)
        goal = torch.zeros_like(objectness)
        box_loss = class_loss = goal.new_zeros(())
        if len(cells):
            anchors_grid = anchors_px.to(rows.device) / stride
            boxes = decode_cells(rows[:, :4], anchors_grid[cells.anchor])
            similarity = box_similarity(boxes, _goal_boxes(cells, targets, goal), kind="ciou")
            box_loss = (1 - similarity).mean()
            _put_last(goal, cells, similarity.detach().clamp(min=0))
            if self._num_classes > 1:
                class_loss = self._class_loss(rows[:, 5:], targets.label[cells.target])
        objectness_loss = self._bce(objectness, goal, self._settings.objectness_pos_weight) * balance
        return torch.stack((box_loss, objectness_loss, class_loss))

    def _class_loss(self, logits: Float[Tensor, "p nc"], labels: Tensor) -> Float[Tensor, ""]:
        smoothing = self._settings.label_smoothing
        goal = torch.full_like(logits, 0.5 * smoothing)
        goal.scatter_(1, labels[:, None], 1 - 0.5 * smoothing)
        return self._bce(logits, goal, self._settings.classification_pos_weight)

    def _bce(self, logits: Tensor, goal: Tensor, pos_weight: float) -> Float[Tensor, ""]:
        """Mean binary cross-entropy, focal if the settings say so."""
        weight = None if pos_weight == 1 else logits.new_tensor(pos_weight)
        if self._settings.focal_gamma == 0:
            return binary_cross_entropy_with_logits(logits, goal, pos_weight=weight)
        loss = binary_cross_entropy_with_logits(logits, goal, pos_weight=weight, reduction="none")
        return (loss * focal_weight(logits, goal, gamma=self._settings.focal_gamma)).mean()


def make_assigner(anchors: Anchors, settings: LossSettings) -> Assigner:
    """The assigner that the settings name."""
    threshold = settings.anchor_threshold
    match settings.assigner:
        case "ota":
            return OtaAssigner(anchors, threshold=threshold, merge_duplicates=settings.merge_duplicate_cells)
        case "anchor":
            return AnchorAssigner(anchors, threshold=threshold)


def decode_cells(raw: Float[Tensor, "p 4"], anchors_grid: Float[Tensor, "p 2"]) -> Float[Tensor, "p 4"]:
    """Boxes cxcywh in cells, relative to their cell's corner: centre in (-0.5, 1.5), size up to 4 anchors."""
    scaled = raw.sigmoid() * 2
    return torch.cat((scaled[:, :2] - 0.5, scaled[:, 2:].square() * anchors_grid), dim=1)


def focal_weight(logits: Float[Tensor, "*n"], goal: Float[Tensor, "*n"], *, gamma: float) -> Float[Tensor, "*n"]:
    """Weight of each element in the focal loss: more for what is predicted badly."""
    probability = logits.sigmoid()
    right = goal * probability + (1 - goal) * (1 - probability)
    alpha = goal * _FOCAL_ALPHA + (1 - goal) * (1 - _FOCAL_ALPHA)
    return alpha * (1 - right) ** gamma


def _goal_boxes(cells: Assignment, targets: Targets, like: Float[Tensor, "b na h w"]) -> Float[Tensor, "p 4"]:
    """The objects' boxes cxcywh in cells, relative to the corner of the assigned cell."""
    height, width = like.shape[2:]
    boxes = targets.boxes_cxcywh[cells.target].float() * like.new_tensor([width, height, width, height])
    corner = torch.stack((cells.column, cells.row), dim=1)
    return torch.cat((boxes[:, :2] - corner, boxes[:, 2:]), dim=1)


def _put_last(goal: Float[Tensor, "b na h w"], cells: Assignment, values: Float[Tensor, " p"]) -> None:
    """Writes the values at their cells; of several at one cell the last one stays, on every device."""
    _, num_anchors, height, width = goal.shape
    flat = ((cells.image * num_anchors + cells.anchor) * height + cells.row) * width + cells.column
    position = torch.arange(len(cells), device=goal.device)
    last = torch.zeros(goal.numel(), dtype=torch.int64, device=goal.device)
    last.scatter_reduce_(0, flat, position, "amax")
    goal.view(-1)[flat] = values[last[flat]]


class _Select(torch.autograd.Function):
    """The rows of some cells (p, 5 + nc) and the objectness of all (B, na, H, W), both float32.

    A single function, so that the backward pass fills one buffer of the map's size, in the map's memory order.
    """

    @staticmethod
    def forward(ctx: Any, level_map: Tensor, cells: Assignment) -> tuple[Tensor, Tensor]:
        ctx.cells = cells
        ctx.like = level_map.detach()
        rows = level_map[cells.image, cells.anchor, cells.row, cells.column]
        return rows.float(), level_map[..., 4].float().contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows, objectness = gradients
        cells, like = ctx.cells, ctx.like
        gradient = torch.zeros_like(like)
        gradient[..., 4] = objectness.to(like.dtype)
        where = (cells.image, cells.anchor, cells.row, cells.column)
        gradient.index_put_(where, rows.to(like.dtype), accumulate=True)
        return gradient, None
