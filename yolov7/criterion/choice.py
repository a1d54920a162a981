"""The choice of the loss by the head of a model and by the settings of its training."""

from __future__ import annotations

from collections.abc import Sequence

from yolov7.criterion.aligned import AtssAssigner, ScoringAssigner, TaskAlignedAssigner
from yolov7.criterion.anchor_free_loss import (
    PPYOLOE_GAINS,
    U6_GAINS,
    DistributionGains,
    DistributionLoss,
    DualLoss,
    YoloxLoss,
)
from yolov7.criterion.assigners import Assigner
from yolov7.criterion.loss import DetectionLoss
from yolov7.criterion.loss_parts import Loss
from yolov7.criterion.own_code import HeadGeometry, OwnAssigner, OwnScoringAssigner
from yolov7.criterion.simota import SimOtaAssigner
from yolov7.errors import SettingError
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.head_rows import DetectRow, DflHeadRow, OneToOneHeadRow, PpyoloeHeadRow, YoloxHeadRow
from yolov7.system.plugins import is_dotted


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
        case DetectRow(scale_xy=scales):
            _refuse_darknet(model.spec.name, scales)
            return DetectionLoss(
                anchors_px=model.anchors_px,
                strides=strides,
                num_classes=model.num_classes,
                image_size=settings.image_size,
                settings=settings.loss,
            )
        case YoloxHeadRow():
            if is_dotted(settings.loss.box_loss):
                raise SettingError(
                    f"loss.box_loss={settings.loss.box_loss} cannot be used with the head of YOLOX, whose box loss is "
                    "1 - IoU^2; use it with another head"
                )
            is_closing = epoch >= settings.first_closing_epoch
            return YoloxLoss(strides, _yolox_assigner(strides, settings), uses_l1=is_closing, nominal_batch=nominal)
        case PpyoloeHeadRow(bins=bins):
            aligned = TaskAlignedAssigner(strides, bins, top=13, alpha=1.0, beta=6.0, overlap="iou", four_cells=four)
            return _distribution_loss(strides, _scoring(aligned, settings, epoch), bins, PPYOLOE_GAINS, settings)
        case DflHeadRow(bins=bins):
            aligned = _u6_assigner(strides, bins, top=10, four_cells=four)
            return _distribution_loss(strides, _scoring(aligned, settings, epoch), bins, U6_GAINS, settings)
        case OneToOneHeadRow(bins=bins):
            _refuse_own_assigner(settings)
            assigners = (_u6_assigner(strides, bins, top=top, four_cells=four) for top in (1, 10))
            return DualLoss(*(_distribution_loss(strides, each, bins, U6_GAINS, settings) for each in assigners))
        case row:
            raise AssertionError(f"{row.block} has no loss")


def _refuse_darknet(spec: str, scale_xy: Sequence[float] | None) -> None:
    if scale_xy is not None:
        raise SettingError(
            f"the head of spec {spec!r} decodes boxes as darknet's YOLOv4 (scale_xy), which cannot be trained; leave "
            "out scale_xy"
        )


def _refuse_own_assigner(settings: TrainSettings) -> None:
    if is_dotted(settings.loss.assigner):
        raise SettingError(
            f"loss.assigner={settings.loss.assigner} cannot be used with the head 'detect_one_to_one', which needs two "
            "assigners; use it with another head"
        )


def _yolox_assigner(strides: tuple[int, ...], settings: TrainSettings) -> Assigner:
    """Return an own assigner, or that of YOLOX."""
    if is_dotted(settings.loss.assigner):
        return OwnAssigner(settings.loss.assigner, HeadGeometry(strides))
    return SimOtaAssigner(strides, rule=settings.loss.simota)


def _scoring(aligned: TaskAlignedAssigner, settings: TrainSettings, epoch: int) -> ScoringAssigner:
    """Return an own assigner, the task-aligned assigner, or ATSS in the first epochs."""
    if is_dotted(settings.loss.assigner):
        return OwnScoringAssigner(settings.loss.assigner, HeadGeometry(aligned.strides, bins=aligned.bins))
    if epoch < min(settings.loss.atss_epochs, settings.epochs // 3):
        return AtssAssigner(aligned.strides, aligned.bins, aligned.four_cells)
    return aligned


def _u6_assigner(strides: tuple[int, ...], bins: int, *, top: int, four_cells: bool) -> TaskAlignedAssigner:
    return TaskAlignedAssigner(strides, bins, top=top, alpha=0.5, beta=6.0, overlap="ciou", four_cells=four_cells)


def _distribution_loss(
    strides: tuple[int, ...], assigner: ScoringAssigner, bins: int, gains: DistributionGains, settings: TrainSettings
) -> DistributionLoss:
    """Return the loss of a head with distributions, with an own measure of similarity if the settings name one."""
    own, nominal = settings.loss.box_loss, settings.optim.nominal_batch
    gains = gains._replace(similarity=own) if is_dotted(own) else gains
    return DistributionLoss(strides, assigner, bins=bins, gains=gains, nominal_batch=nominal)
