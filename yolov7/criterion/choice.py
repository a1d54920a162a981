"""The choice of the loss by the head of a model and by the settings of its training."""

from __future__ import annotations

from yolov7.criterion.aligned import AtssAssigner, ScoringAssigner, TaskAlignedAssigner
from yolov7.criterion.anchor_free_loss import PPYOLOE_GAINS, U6_GAINS, DistributionLoss, DualLoss, YoloxLoss
from yolov7.criterion.loss import DetectionLoss
from yolov7.criterion.loss_parts import Loss
from yolov7.criterion.simota import SimOtaAssigner
from yolov7.errors import SettingError
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.head_rows import DetectRow, DflHeadRow, OneToOneHeadRow, PpyoloeHeadRow, YoloxHeadRow


def make_loss(model: DetectionModel, settings: TrainSettings, *, epoch: int = 0) -> Loss:
    """Return the loss of a model in an epoch.

    Args:
        model: The model; its head decides the kind of loss.
        settings: The settings of the training.
        epoch: The epoch, counted from 0. Some losses differ in the first or last epochs.

    Returns:
        The loss.

    Raises:
        SettingError: If the head has the decoding of darknet.
    """
    strides, nominal, four = model.strides, settings.optim.nominal_batch, settings.loss.four_cells
    match model.spec.head:
        case DetectRow(scale_xy=scales) if scales is not None:
            raise SettingError(
                f"the head of spec {model.spec.name!r} decodes boxes as darknet's YOLOv4 (scale_xy), which cannot be "
                "trained; leave out scale_xy"
            )
        case DetectRow():
            return DetectionLoss(
                anchors_px=model.anchors_px,
                strides=strides,
                num_classes=model.num_classes,
                image_size=settings.image_size,
                settings=settings.loss,
            )
        case YoloxHeadRow():
            assigner = SimOtaAssigner(strides, rule=settings.loss.simota)
            is_closing = epoch >= settings.first_closing_epoch
            return YoloxLoss(strides, assigner, uses_l1=is_closing, nominal_batch=nominal)
        case PpyoloeHeadRow(bins=bins):
            aligned = TaskAlignedAssigner(strides, bins, top=13, alpha=1.0, beta=6.0, overlap="iou", four_cells=four)
            scoring = _or_atss(aligned, settings, epoch)
            return DistributionLoss(strides, scoring, bins=bins, gains=PPYOLOE_GAINS, nominal_batch=nominal)
        case DflHeadRow(bins=bins):
            aligned = TaskAlignedAssigner(strides, bins, top=10, alpha=0.5, beta=6.0, overlap="ciou", four_cells=four)
            scoring = _or_atss(aligned, settings, epoch)
            return DistributionLoss(strides, scoring, bins=bins, gains=U6_GAINS, nominal_batch=nominal)
        case OneToOneHeadRow(bins=bins):
            lead, auxiliary = (
                DistributionLoss(
                    strides,
                    TaskAlignedAssigner(strides, bins, top=top, alpha=0.5, beta=6.0, overlap="ciou", four_cells=four),
                    bins=bins,
                    gains=U6_GAINS,
                    nominal_batch=nominal,
                )
                for top in (1, 10)
            )
            return DualLoss(lead, auxiliary)
        case row:
            raise AssertionError(f"{row.block} has no loss")


def _or_atss(aligned: TaskAlignedAssigner, settings: TrainSettings, epoch: int) -> ScoringAssigner:
    """Return the task-aligned assigner, or ATSS in the first epochs."""
    if epoch < min(settings.loss.atss_epochs, settings.epochs // 3):
        return AtssAssigner(aligned.strides, aligned.bins, aligned.four_cells)
    return aligned
