"""The loss of distillation: the differences between the outputs and maps of a model and those of a teacher.

Outputs are compared as the loss of the head compares them with objects, with the same gains. Probabilities and boxes of
the teacher take the place of assigned objects, as in Yang et al. (2023, "Bridging Cross-task Protocol Inconsistency
for Distillation in Dense Object Detection", arXiv 2308.14286): the divergence of independent probabilities without a
temperature, and the similarity of boxes. Boxes and classes are weighted by the confidence of the teacher. Distributions
of sides are compared by their divergence (Zheng et al., 2022, "Localization Distillation for Dense Object Detection",
arXiv 2102.12252). Maps are compared channel by channel (Shu et al., 2021, "Channel-wise Knowledge Distillation for
Dense Prediction", arXiv 2011.13256). All terms are 0 if model and teacher agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div

from yolov7.boxes import box_similarity
from yolov7.criterion.anchor_free_loss import PPYOLOE_GAINS, U6_GAINS, YOLOX_BOX_GAIN, box_around
from yolov7.criterion.assigners import LEAD_SPAN
from yolov7.criterion.candidates import Anchors, Assignment
from yolov7.criterion.loss import decode_cells, detection_gains, level_balance
from yolov7.criterion.loss_parts import SumOverRanks, select
from yolov7.criterion.simota import decode_yolox
from yolov7.nn.anchor_free_heads import decode_bins
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.head_rows import DetectRow, DflHeadRow, OneToOneHeadRow, PpyoloeHeadRow, YoloxHeadRow
from yolov7.system.shapes import Float

_LEAST_CONFIDENCE = 0.05  # boxes and classes of less confident cells of the teacher are noise


class Outputs(NamedTuple):
    """What is compared of a model and of its teacher.

    Attributes:
        lead: Raw maps of the lead head, finest level first; see `HeadMaps`.
        inputs: Maps (B, C, H, W) that enter the head, at the strides and with the channels of those of the teacher;
            empty if they are not compared.
    """

    lead: Sequence[Tensor]
    inputs: Sequence[Tensor] = ()


class DistillationParts(NamedTuple):
    """The loss of distillation of a batch, scalar float32 tensors.

    As those of `LossParts`, the values of several processes that share a batch are addends.

    Attributes:
        total: The value to differentiate.
        mean: The same relative to the number of images, as the parts of `LossParts` are, detached.
    """

    total: Tensor
    mean: Tensor


class _Gains(NamedTuple):
    """Factors of the terms; `objectness` has one for each level, or is empty if the head predicts no objectness.

    Attributes:
        box: Of the dissimilarity of boxes.
        distribution: Of the divergence of the distributions of sides.
        objectness: Of the divergence of objectness.
        classification: Of the divergence of class probabilities.
        per_image: Of the total, for each image of the batch.
    """

    box: float
    distribution: float
    objectness: tuple[float, ...]
    classification: float
    per_image: float


@final
class DistillationLoss:
    """The loss of distillation of one model.

    It works on any device and computes in float32, whatever the type of the maps.
    """

    def __init__(self, model: DetectionModel, settings: TrainSettings) -> None:
        """Make the loss.

        Args:
            model: The model that is trained. If outputs are compared, the teacher has a head of the same kind, which
                is not `OneToOneHeadRow`.
            settings: The settings of the training.
        """
        self._head = model.spec.head
        assert not (settings.distil.outputs and isinstance(self._head, OneToOneHeadRow))
        self._anchors = Anchors(model.anchors_px.detach().float(), model.strides)
        self._gains = _choose_gains(model, settings)
        self._weights = settings.distil
        self._is_anchor_based = isinstance(self._head, DetectRow)
        self._has_classes = model.num_classes > 1 or not self._is_anchor_based  # which does not learn an only class

    def __call__(
        self, student: Outputs, teacher: Outputs, *, sum_over_ranks: SumOverRanks | None = None
    ) -> DistillationParts:
        """Return the loss of one batch.

        Args:
            student: The outputs of the model.
            teacher: The outputs of the teacher, without gradients.
            sum_over_ranks: See `Loss`.

        Returns:
            The total to differentiate and its mean.
        """
        images = student.lead[0].new_tensor(student.lead[0].shape[0], dtype=torch.float32)
        images = images if sum_over_ranks is None else sum_over_ranks(images)
        mean = student.lead[0].new_zeros((), dtype=torch.float32)
        if self._weights.outputs:
            outputs = self._outputs(student.lead, teacher.lead, images, sum_over_ranks=sum_over_ranks)
            mean = mean + self._weights.outputs * outputs
        if self._weights.features:
            pairs = zip(student.inputs, teacher.inputs, strict=True)
            divergence = torch.stack([channel_divergence(ours, theirs) for ours, theirs in pairs]).mean()
            mean = mean + self._weights.features * self._gains.box * divergence / images
        return DistillationParts(mean * (images * self._gains.per_image), mean.detach())

    def _outputs(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        images: Tensor,
        *,
        sum_over_ranks: SumOverRanks | None,
    ) -> Float[Tensor, ""]:
        """Return the sum of the terms of boxes, objectness and classes."""
        gains = self._gains
        scores = slice(4, 5) if gains.objectness else slice(self._num_box_outputs, None)
        with torch.no_grad():
            cells, weight = self._confident_cells(teacher)
            wanted, wanted_scores = select(cells, scores, teacher)
        rows, logits = select(cells, scores, student)  # (p, outputs), (cells of all, 1 or classes)
        sum_of_weights = weight.sum() if sum_over_ranks is None else sum_over_ranks(weight.sum())
        scale = 1 / sum_of_weights.clamp(min=1)
        box = (self._box_difference(rows, wanted, cells) * weight).sum() * scale
        divergence = binary_divergence(logits, wanted_scores)
        if not gains.objectness:
            return box + gains.classification * divergence.sum() * scale
        objectness = self._objectness(divergence[:, 0], student, images, scale)
        if not self._has_classes:
            return box + objectness
        classes = binary_divergence(rows[:, 5:], wanted[:, 5:]).sum(1)
        return box + objectness + gains.classification * (classes * weight).sum() * scale

    def _objectness(self, divergence: Tensor, maps: Sequence[Tensor], images: Tensor, scale: Tensor) -> Tensor:
        """Return the mean over the cells of each level for an anchor-based head, otherwise a sum over all cells."""
        parts = torch.split(divergence, [m[..., 4].numel() for m in maps])
        levels = zip(maps, parts, self._gains.objectness, strict=True)
        sums = [
            gain * part.sum() * (1 / (images * m.shape[1:4].numel()) if self._is_anchor_based else scale)
            for m, part, gain in levels
        ]
        return torch.stack(sums).sum()

    @property
    def _num_box_outputs(self) -> int:
        return 4 * self._head.bins if isinstance(self._head, PpyoloeHeadRow | DflHeadRow) else 5

    def _confident_cells(self, maps: Sequence[Tensor]) -> tuple[Assignment, Tensor]:
        """Return the cells in which the teacher sees an object, and its confidence in each of them (p,)."""
        places, weights = [], []
        for level, raw in enumerate(maps):
            confidence = raw.new_ones(raw.shape[:4], dtype=torch.float32)
            if self._gains.objectness:
                confidence = confidence * raw[..., 4].float().sigmoid()
            if self._has_classes:
                confidence = confidence * raw[..., self._num_box_outputs :].float().amax(-1).sigmoid()
            place = (confidence > _LEAST_CONFIDENCE).nonzero()  # image, anchor, row, column
            places.append(torch.cat((torch.full_like(place[:, :1], level), place), dim=1))
            weights.append(confidence[tuple(place.unbind(1))])
        levels, image, anchor, row, column = torch.cat(places).unbind(1)
        return Assignment(levels, image, anchor, row, column, torch.zeros_like(levels)), torch.cat(weights)

    def _box_difference(
        self, rows: Float[Tensor, "p outputs"], wanted: Float[Tensor, "p outputs"], cells: Assignment
    ) -> Float[Tensor, " p"]:
        """Return the difference of the boxes, and of the distributions of their sides, in each cell."""
        similarity = box_similarity(self._boxes(rows, cells), self._boxes(wanted, cells), kind="ciou")
        difference = self._gains.box * (1 - similarity)
        if not self._gains.distribution:
            return difference
        ours, theirs = (self._sides(part).log_softmax(-1) for part in (rows, wanted))
        divergence = kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean(1)
        return difference + self._gains.distribution * divergence

    def _boxes(self, rows: Float[Tensor, "p outputs"], cells: Assignment) -> Float[Tensor, "p 4"]:
        """Decode boxes cxcywh relative to their cell, in units of the stride."""
        origin = rows.new_zeros(len(rows), 2)
        match self._head:
            case DetectRow():
                return decode_cells(rows[:, :4], self._anchors.of(cells), span=LEAD_SPAN)
            case YoloxHeadRow():
                return decode_yolox(rows[:, :4], origin, rows.new_ones(len(rows)))
            case _:
                return box_around(origin, decode_bins(self._sides(rows)))

    def _sides(self, rows: Float[Tensor, "p outputs"]) -> Float[Tensor, "p 4 bins"]:
        """Return the logits of the bins of each side."""
        return rows[:, : self._num_box_outputs].reshape(len(rows), 4, self._num_box_outputs // 4)


def binary_divergence(student: Float[Tensor, "*n"], teacher: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the divergence of probabilities: the cross-entropy less that of the teacher with itself.

    Args:
        student: Logits of the model (...), float32.
        teacher: Logits of the teacher of the same shape, without gradients.

    Returns:
        The divergence of each pair (...), which is 0 for equal logits.
    """
    wanted = teacher.sigmoid()
    least = binary_cross_entropy_with_logits(teacher, wanted, reduction="none")
    return binary_cross_entropy_with_logits(student, wanted, reduction="none") - least


def channel_divergence(
    student: Float[Tensor, "batch channels height width"], teacher: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, ""]:
    """Return how the places of high values differ in each channel (Shu et al., 2021, equations 3 and 4).

    Each channel becomes a distribution over its cells by a softmax with temperature 1.

    Args:
        student: Maps of the model (B, C, H, W).
        teacher: Maps of the teacher of the same shape.

    Returns:
        The divergence of the distributions, averaged over channels and summed over images.
    """
    ours, theirs = (m.float().flatten(2).log_softmax(-1) for m in (student, teacher))
    return kl_div(ours, theirs, reduction="none", log_target=True).sum((0, 2)).mean()


def _choose_gains(model: DetectionModel, settings: TrainSettings) -> _Gains:
    """Return the gains of the loss of the model's head."""
    levels, share = len(model.strides), 1 / settings.optim.nominal_batch
    match model.spec.head:
        case DetectRow():
            scaled = detection_gains(
                settings.loss, levels, num_classes=model.num_classes, image_size=settings.image_size
            )
            balance = level_balance(levels, largest=settings.loss.objectness_balance)
            return _Gains(  # the loss of objects has a sum over levels and a mean over classes
                box=scaled.box * levels,
                distribution=0.0,
                objectness=tuple(scaled.objectness * weight for weight in balance),
                classification=scaled.classification * levels / model.num_classes,
                per_image=1.0,
            )
        case YoloxHeadRow():
            return _Gains(YOLOX_BOX_GAIN, 0.0, (1.0,) * levels, 1.0, share)
        case PpyoloeHeadRow():
            gains = PPYOLOE_GAINS
        case DflHeadRow() | OneToOneHeadRow():
            gains = U6_GAINS
        case row:
            raise AssertionError(f"{row.block} has no gains")
    return _Gains(gains.box, gains.distribution, (), gains.classification, 1.0 if gains.sums_images else share)
