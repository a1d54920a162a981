"""The losses of heads without anchors: those of YOLOX, PP-YOLOE and YOLOv7-u6."""

from __future__ import annotations

from typing import Literal, NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from yolov7.boxes import cxcywh_to_xyxy
from yolov7.criterion.aligned import ScoringAssigner, paired_iou
from yolov7.criterion.assigners import Assigner, HeadsAssignment
from yolov7.criterion.candidates import Assignment, cell_numbers
from yolov7.criterion.grid import boxes_in_pixels
from yolov7.criterion.loss_parts import Loss, LossParts, SumOverRanks, select
from yolov7.criterion.own_code import similarity_of
from yolov7.criterion.simota import decode_yolox
from yolov7.nn.anchor_free_heads import decode_bins
from yolov7.structures import HeadMaps, Targets
from yolov7.system.shapes import Float

YOLOX_BOX_GAIN = 5.0
_VARIFOCAL_ALPHA = 0.75  # weight of negatives in the varifocal loss; the exponent is 2


@final
class YoloxLoss(Loss):
    """The loss of YOLOX: 1 - IoU^2 for boxes, and binary cross-entropy for objectness and classes.

    Sums over the batch are divided by the number of its positives. The target of the class of an object is the IoU of
    the predicted box. In the last epochs, the L1 distance of the raw outputs of the box is added.
    """

    def __init__(self, strides: tuple[int, ...], assigner: Assigner, *, uses_l1: bool, nominal_batch: int) -> None:
        """Make the loss.

        Args:
            strides: Stride of each level in pixels.
            assigner: Chooses the positives.
            uses_l1: Whether to add the L1 distance.
            nominal_batch: Number of images that the learning rate is stated for. The total of a smaller batch is
                multiplied by its share of them, so that gradients that are summed over batches become a mean.
        """
        self._strides = strides
        self._assigner = assigner
        self._uses_l1 = uses_l1
        self._nominal_batch = nominal_batch

    def assign(self, maps: HeadMaps, targets: Targets) -> HeadsAssignment:
        """Return the positive cells of a batch; see `Loss`."""
        cells = self._assigner(maps.lead, targets)
        return HeadsAssignment(cells, cells)

    def __call__(self, maps: HeadMaps, targets: Targets, *, sum_over_ranks: SumOverRanks | None = None) -> LossParts:
        """Return the loss of one batch; see `Loss`."""
        cells = self._assigner(maps.lead, targets)
        rows, objectness = select(cells, slice(4, 5), maps.lead)  # (p, 5 + nc), (cells of all, 1)
        own = cells.level.new_tensor([len(cells), maps.lead[0].shape[0]])
        positives, images = (own if sum_over_ranks is None else sum_over_ranks(own)).tolist()
        goal = torch.zeros_like(objectness)
        goal[cell_numbers(cells, maps=maps.lead)] = 1.0
        box, classes = self._positives(rows, cells, targets, maps)
        object_loss = binary_cross_entropy_with_logits(objectness, goal, reduction="sum")
        parts = torch.stack((box, object_loss, classes)) / max(1, positives)
        total = parts.sum() * (images / self._nominal_batch)
        return LossParts(total, *parts.detach())

    def _positives(
        self, rows: Float[Tensor, "p outputs"], cells: Assignment, targets: Targets, maps: HeadMaps
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of the box and of the class loss."""
        stride = torch.tensor(self._strides, dtype=torch.float32, device=rows.device)[cells.level]
        corner = torch.stack((cells.column, cells.row), dim=1)
        wanted = boxes_in_pixels(targets, size=maps.lead[0].shape[2:4], stride=self._strides[0])[cells.target]
        predicted = cxcywh_to_xyxy(decode_yolox(rows[:, :4], corner, stride))
        iou = paired_iou(predicted, wanted)
        box = YOLOX_BOX_GAIN * (1 - iou.square()).sum()
        if self._uses_l1:
            size = (wanted[:, 2:] - wanted[:, :2]) / stride[:, None]
            centre = (wanted[:, :2] + wanted[:, 2:]) / 2 / stride[:, None]
            box = box + (rows[:, :4] - torch.cat((centre - corner, (size + 1e-8).log()), dim=1)).abs().sum()
        goal = torch.zeros_like(rows[:, 5:])
        goal.scatter_(1, targets.label[cells.target][:, None], iou.detach()[:, None])
        return box, binary_cross_entropy_with_logits(rows[:, 5:], goal, reduction="sum")


class DistributionGains(NamedTuple):
    """What distinguishes the losses of heads with distributions.

    Attributes:
        classification: Gain of the class loss.
        box: Gain of the loss of the similarity of boxes.
        distribution: Gain of the distribution focal loss.
        similarity: Measure of similarity of boxes, as in the setting `box_loss`.
        class_loss: Kind of class loss.
        sums_images: Whether the total is multiplied by the number of images.
    """

    classification: float
    box: float
    distribution: float
    similarity: str
    class_loss: Literal["bce", "varifocal"]
    sums_images: bool


PPYOLOE_GAINS = DistributionGains(1.0, 2.5, 0.5, "giou", "varifocal", sums_images=False)
U6_GAINS = DistributionGains(0.5, 7.5, 1.5, "ciou", "bce", sums_images=True)


@final
class DistributionLoss(Loss):
    """The loss of heads that predict a distribution per side of a box: those of PP-YOLOE and YOLOv7-u6.

    All sums over the batch are weighted by the scores of the positives and divided by the sum of the scores, which
    counts as 1 if it is smaller.
    """

    def __init__(
        self,
        strides: tuple[int, ...],
        assigner: ScoringAssigner,
        *,
        bins: int,
        gains: DistributionGains,
        nominal_batch: int,
    ) -> None:
        """Make the loss.

        Args:
            strides: Stride of each level in pixels.
            assigner: Chooses the positives and their scores.
            bins: Number of bins per side.
            gains: Gains and kinds of the parts.
            nominal_batch: See `YoloxLoss`; it has no effect if the gains sum over images.
        """
        self._strides = strides
        self._assigner = assigner
        self._bins = bins
        self._gains = gains
        self._similarity = similarity_of(gains.similarity)
        self._per_image = 1.0 if gains.sums_images else 1 / nominal_batch

    def assign(self, maps: HeadMaps, targets: Targets) -> HeadsAssignment:
        """Return the positive cells of a batch; see `Loss`."""
        cells = self._assigner(maps.lead, targets).cells
        return HeadsAssignment(cells, cells)

    def __call__(self, maps: HeadMaps, targets: Targets, *, sum_over_ranks: SumOverRanks | None = None) -> LossParts:
        """Return the loss of one batch; see `Loss`."""
        gains = self._gains
        cells, score = self._assigner(maps.lead, targets)
        rows, logits = select(cells, slice(4 * self._bins, None), maps.lead)  # (p, 4 bins + nc), (cells of all, nc)
        own = torch.stack((score.sum(), score.new_tensor(maps.lead[0].shape[0])))
        total_score, images = (own if sum_over_ranks is None else sum_over_ranks(own)).tolist()
        right = logits[cell_numbers(cells, maps=maps.lead), targets.label[cells.target]]
        classes = class_loss(logits, right, score, kind=gains.class_loss)
        similarity, distribution = self._boxes(
            rows[:, : 4 * self._bins].reshape(-1, 4, self._bins), cells, targets, maps
        )
        box = gains.box * ((1 - similarity) * score).sum() + gains.distribution * (distribution * score).sum()
        parts = torch.stack((box, box.new_zeros(()), gains.classification * classes)) / max(1.0, total_score)
        return LossParts(parts.sum() * (images * self._per_image), *parts.detach())

    def _boxes(
        self, logits: Float[Tensor, "p 4 bins"], cells: Assignment, targets: Targets, maps: HeadMaps
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
        """Return the similarity of the boxes and the distribution focal loss of each positive, in strides."""
        stride = torch.tensor(self._strides, dtype=torch.float32, device=logits.device)[cells.level]
        centre = torch.stack((cells.column, cells.row), dim=1) + 0.5
        objects_px = boxes_in_pixels(targets, size=maps.lead[0].shape[2:4], stride=self._strides[0])
        wanted = objects_px[cells.target] / stride[:, None]
        sides = decode_bins(logits)
        predicted = box_around(centre, sides)
        wanted_sides = torch.cat((centre - wanted[:, :2], wanted[:, 2:] - centre), dim=1)
        similarity = self._similarity(predicted, box_around(centre, wanted_sides))
        return similarity, distribution_focal_loss(logits, wanted_sides).mean(1)


@final
class DualLoss(Loss):
    """The sum of the losses of a head with a one-to-one branch and an auxiliary branch (see `OneToOneHeadRow`)."""

    def __init__(self, lead: Loss, auxiliary: Loss) -> None:
        """Make the loss.

        Args:
            lead: The loss of the maps of the lead branch, with one cell for each object.
            auxiliary: The loss of the maps of the auxiliary branch.
        """
        self._lead = lead
        self._auxiliary = auxiliary

    def assign(self, maps: HeadMaps, targets: Targets) -> HeadsAssignment:
        """Return the positive cells of a batch; see `Loss`."""
        lead = self._lead.assign(maps, targets).lead
        if not maps.auxiliary:
            return HeadsAssignment(lead, lead)
        return HeadsAssignment(lead, self._auxiliary.assign(HeadMaps(maps.auxiliary), targets).lead)

    def __call__(self, maps: HeadMaps, targets: Targets, *, sum_over_ranks: SumOverRanks | None = None) -> LossParts:
        """Return the loss of one batch; see `Loss`."""
        parts = self._lead(maps, targets, sum_over_ranks=sum_over_ranks)
        if not maps.auxiliary:
            return parts
        others = self._auxiliary(HeadMaps(maps.auxiliary), targets, sum_over_ranks=sum_over_ranks)
        return LossParts(*(one + other for one, other in zip(parts, others, strict=True)))


def class_loss(
    logits: Float[Tensor, "n nc"],
    right: Float[Tensor, " p"],
    score: Float[Tensor, " p"],
    *,
    kind: Literal["bce", "varifocal"],
) -> Float[Tensor, ""]:
    """Return the sum of the class loss over all cells and classes.

    Negatives have the target 0. With `varifocal` (Zhang et al., 2021, equation 2), they are weighted by 0.75 p^2, and
    the weight has a gradient; positives are weighted by their score.

    Args:
        logits: Logits of all cells (n, nc).
        right: Those of them (p,) that belong to the class of the object of a positive cell.
        score: The targets of the latter (p,).
        kind: The kind of loss.

    Returns:
        The sum.
    """
    if kind == "bce":
        return softplus(logits).sum() - (score * right).sum()
    positive = score * (softplus(right) - score * right)
    return _varifocal_negative(logits).sum() + (positive - _varifocal_negative(right)).sum()


def distribution_focal_loss(logits: Float[Tensor, "*n bins"], distance: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the cross-entropy of both bins around a distance, weighted by its nearness to them (Li et al., 2020).

    Args:
        logits: Logits of the distances 0, 1, ... (..., bins).
        distance: Distances (...), clipped to the range of the bins.

    Returns:
        Losses (...).
    """
    last = logits.shape[-1] - 1
    flat, goal = logits.flatten(0, -2), distance.clamp(0, last - 0.01).flatten()
    left = goal.long()
    near = left + 1 - goal
    low, high = (cross_entropy(flat, bins, reduction="none") for bins in (left, left + 1))
    return (near * low + (1 - near) * high).view_as(distance)


def _varifocal_negative(logits: Tensor) -> Tensor:
    return _VARIFOCAL_ALPHA * logits.sigmoid().square() * softplus(logits)


def box_around(centre: Float[Tensor, "p 2"], sides: Float[Tensor, "p 4"]) -> Float[Tensor, "p 4"]:
    """Return the boxes around points.

    Args:
        centre: Points x, y (p, 2).
        sides: Distances (p, 4) from the points to the left, upper, right and lower side.

    Returns:
        Boxes cx, cy, w, h (p, 4).
    """
    low, high = sides[:, :2], sides[:, 2:]
    return torch.cat((centre + (high - low) / 2, low + high), dim=1)
