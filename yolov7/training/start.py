"""The model that a run starts from: its anchors, its initial weights, and which of its rows are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from yolov7.data.box_sizes import MIN_SIDE, count_small_boxes
from yolov7.data.index import ImageIndex
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.graph import rows_up_to
from yolov7.training.averaging import lineage, weights_id
from yolov7.training.job import TrainJob
from yolov7.training.start_anchors import choose_start_anchors, set_anchors
from yolov7.training.training_split import describe_images
from yolov7.weights.adaptation import match_classes
from yolov7.weights.foreign.reference import open_weights
from yolov7.weights.transfer import describe_new_head, transfer


@dataclass(frozen=True)
class Start:
    """The start of a run.

    Attributes:
        model: The initial model, on the CPU.
        ancestors: The ids of the weights that the model comes from, oldest first (see `averaging.lineage`).
        notes: What the user should know about the settings, the data, the classes of the weights and the anchors.
    """

    model: DetectionModel
    ancestors: tuple[str, ...]
    notes: tuple[str, ...] = ()


def build_start(job: TrainJob, index: ImageIndex, *, teacher: DetectionModel | None = None) -> Start:
    """Build the model that a run starts from.

    Weights that no file provides are random and drawn from torch's global generator.

    Args:
        job: The run.
        index: The training split.
        teacher: The teacher of the run, whose anchors the model takes over if its own may be replaced.

    Returns:
        The model and what to say about it.

    Raises:
        ArtifactError: The weights to start from cannot be used.
        SpecError: The last row to freeze does not exist.
    """
    settings = job.settings
    model = DetectionModel(job.spec, num_classes=len(index.class_names))  # anchors do not affect its random weights
    source = None if settings.weights is None else open_weights(settings.weights, spec=job.spec)
    given = None if source is None else source.model.spec
    anchors = choose_start_anchors(job.spec, index, settings, weights=given, teacher=teacher)
    set_anchors(model, anchors.spec)
    about_classes = ""
    if source is None or settings.weights is None:
        ancestors: tuple[str, ...] = (weights_id(model),)
    else:
        ancestors = lineage(source.model, source.training)
        match = match_classes(index.class_names, source.class_names)
        about_classes = describe_new_head(model, source.model) or match.note
        transfer(model, source.model, weights=settings.weights, places=match.places)
    if not settings.unfreeze_epochs:
        freeze(model, last=settings.freeze)
    about_data = (*describe_images(index, settings), *describe_small_boxes(index, settings))
    notes = (*job.notes, *about_data, about_classes, *anchors.notes)
    return Start(model, ancestors, tuple(filter(None, notes)))


def describe_small_boxes(index: ImageIndex, settings: TrainSettings) -> tuple[str, ...]:
    """Describe how many boxes are too small to be learned.

    Args:
        index: The training split.
        settings: The settings of the run.

    Returns:
        One sentence; nothing if no box is too small.
    """
    small, total = count_small_boxes(index, image_size=settings.image_size)
    if not small:
        return ()
    share = "" if small == total else f" ({small / total:.1%})"
    return (
        f"{small} of {total} boxes{share} have a side of at most {MIN_SIDE:g} pixels at "
        f"image_size={settings.image_size} and are not learned; raise image_size",
    )


def freeze(model: DetectionModel, *, last: str | None) -> None:
    """Exclude the weights of the first rows from training.

    Args:
        model: The model.
        last: The last row that is frozen; None freezes nothing.

    Raises:
        SpecError: The model has no such row.
    """
    for row in frozen_rows(model, last=last):
        row.requires_grad_(False)


def set_training(model: DetectionModel, settings: TrainSettings, *, epoch: int) -> None:
    """Set the model to training mode, except for rows and batch norm whose statistics must not change.

    Args:
        model: The model.
        settings: The settings of the run, which name the last frozen row.
        epoch: The epoch, counted from 0.

    Raises:
        SpecError: The model has no such row.
    """
    model.train()
    for row in frozen_rows(model, last=settings.freeze)[: count_frozen_rows(model, settings, epoch=epoch)]:
        row.eval()
    if settings.freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
                module.eval()


def count_frozen_rows(model: DetectionModel, settings: TrainSettings, *, epoch: int) -> int:
    """Return how many of the first rows are frozen in an epoch.

    With `unfreeze_epochs`, the frozen rows are released at an even pace from the last one to the first one (Howard and
    Ruder, 2018, "Universal Language Model Fine-tuning", section 3.3).

    Args:
        model: The model.
        settings: The settings of the run.
        epoch: The epoch, counted from 0.

    Raises:
        SpecError: The model has no such row.
    """
    count = len(frozen_rows(model, last=settings.freeze))
    if not settings.unfreeze_epochs:
        return count
    return math.ceil(count * max(0.0, 1 - epoch / settings.unfreeze_epochs))


def frozen_rows(model: DetectionModel, *, last: str | None) -> list[nn.Module]:
    """List the modules of the frozen rows.

    Args:
        model: The model.
        last: The last row that is frozen, see `rows_up_to`; None if none is.

    Returns:
        The modules from the first row to this one.

    Raises:
        SpecError: The model has no such row.
    """
    return [] if last is None else [model.rows[name] for name in rows_up_to(model.spec, last)]
