"""What a run starts from: a model with anchors that suit the data, and with other weights if the settings name some."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from yolov7.data.index import ImageIndex
from yolov7.errors import SpecError, suggest
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.graph import ModelSpec
from yolov7.training.anchors import WANTED_RECALL, choose_anchors, with_anchors
from yolov7.training.averaging import lineage, weights_id
from yolov7.training.job import TrainJob
from yolov7.weights.transfer import transfer
from yolov7.weights.weight_files import load_weights


@dataclass(frozen=True)
class Start:
    """`ancestors`: the ids of the weights that the model comes from, oldest first. `notes`: what a user should know."""

    model: DetectionModel
    ancestors: tuple[str, ...]
    notes: tuple[str, ...] = ()


def begin(job: TrainJob, index: ImageIndex) -> Start:
    """The model of a job, on the CPU; its random weights are those of torch's generator as it is."""
    settings = job.settings
    spec, notes = _suit(job.spec, index, settings)
    model = DetectionModel(spec, num_classes=len(index.class_names))
    if settings.weights is None:
        ancestors: tuple[str, ...] = (weights_id(model),)
    else:
        source = load_weights(settings.weights)
        ancestors = lineage(source.model, source.training)
        transfer(model, source.model, weights=settings.weights)
    freeze(model, last=settings.freeze)
    return Start(model, ancestors, notes)


def freeze(model: DetectionModel, *, last: str | None) -> None:
    """Keeps the weights of all rows up to and including this one from being trained; SpecError where it is no row."""
    for row in frozen_rows(model, last=last):
        row.requires_grad_(False)


def set_training(model: DetectionModel, *, frozen: str | None) -> None:
    """Training mode, in which the batch norm of frozen rows keeps its statistics."""
    model.train()
    for row in frozen_rows(model, last=frozen):
        row.eval()


def frozen_rows(model: DetectionModel, *, last: str | None) -> list[nn.Module]:
    """The modules of the rows from the image to this one; none for None."""
    if last is None:
        return []
    names = list(model.rows)
    if last not in names:
        raise SpecError(
            f"train.freeze={last!r} is no row of spec {model.spec.name!r}{suggest(last, names)}; name one of its rows"
        )
    return [model.rows[name] for name in names[: names.index(last) + 1]]


def _suit(spec: ModelSpec, index: ImageIndex, settings: TrainSettings) -> tuple[ModelSpec, tuple[str, ...]]:
    """The spec, with other anchors where the settings want them, and what is to be said of it."""
    if settings.anchors == "spec":
        return spec, ()
    threshold = settings.loss.anchor_threshold
    choice = choose_anchors(spec, index, image_size=settings.image_size, threshold=threshold, mode=settings.anchors)
    if choice.uses_fitted:
        return with_anchors(spec, choice.fitted_px), (str(choice),)
    return spec, (str(choice),) if choice.own.recall < WANTED_RECALL else ()
