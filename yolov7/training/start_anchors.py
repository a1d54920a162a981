"""The anchors of a run: those of its spec, of the weights that it starts from, of its teacher, or fitted ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from yolov7.data.index import ImageIndex
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.anchor_free import anchor_based_head
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.training.anchors import AnchorChoice, Sides, box_sizes, choose_anchors, measure_anchors, with_anchors
from yolov7.training.distillation import anchors_to_share

_SAME = 1e-3  # relative difference below which anchors are the same: the rounding of half precision


@dataclass(frozen=True)
class StartAnchors:
    """The anchors with which a run starts.

    Attributes:
        spec: The spec with these anchors.
        fit: How well they fit the boxes, in words; empty if that was not measured.
        notes: What the user should know about them.
    """

    spec: ModelSpec
    fit: str
    notes: tuple[str, ...]


def choose_start_anchors(
    spec: ModelSpec,
    index: ImageIndex,
    settings: TrainSettings,
    *,
    weights: ModelSpec | None,
    teacher: DetectionModel | None,
    always_measure: bool = False,
) -> StartAnchors:
    """Choose the anchors of a run.

    With `anchors: auto` they are those of the teacher if its outputs are imitated. Otherwise they are those of the
    weights that the run starts from, or of the spec, unless these fit too few boxes and fitted anchors are better.

    Args:
        spec: The spec of the model.
        index: The training split.
        settings: The settings of the run.
        weights: The spec of the weights that the run starts from; None if there are none.
        teacher: The teacher of the run; None if there is none.
        always_measure: Whether to measure how well the anchors fit even if that does not affect the choice.

    Returns:
        The anchors, as part of the spec, and what to say about them.
    """
    if spec.head.anchor_free:
        text = describe_missing_anchors(spec)
        return StartAnchors(spec, text, (text,) if settings.anchors == "fit" else ())
    given_px = None if weights is None else _comparable_anchors(weights, spec)
    notes: tuple[str, ...] = ()
    if (shared := anchors_to_share(teacher, spec, settings)) is not None:
        chosen, notes = with_anchors(spec, shared.numpy()), ("the anchors are those of the teacher",)
        fit = _describe_fit(chosen, index, settings) if always_measure else ""
    elif settings.anchors == "spec" and not always_measure:
        chosen, fit = spec, ""
    else:
        base, owner = spec, "spec"
        if given_px is not None and settings.anchors != "spec" and not _are_same(given_px, _anchors_of(spec)):
            base, owner = with_anchors(spec, given_px), "weights"
        choice = replace(_compare(base, index, settings), owner=owner)
        chosen, fit = with_anchors(base, choice.fitted_px) if choice.uses_fitted else base, str(choice)
        if settings.anchors != "spec" and (chosen is not spec or not choice.own.is_sufficient):
            notes = (fit,)
    if given_px is not None and not _are_same(given_px, _anchors_of(chosen)):
        notes += (_describe_other_anchors(settings),)
    return StartAnchors(chosen, fit, notes)


def describe_missing_anchors(spec: ModelSpec) -> str:
    """Say that a model has no anchors that could fit the data or be fitted to them.

    Args:
        spec: A specification with an anchor-free head.

    Returns:
        The sentence.
    """
    return f"the head {spec.head.block!r} of spec {spec.name!r} has no anchors"


def set_anchors(model: DetectionModel, spec: ModelSpec) -> None:
    """Replace the anchors of a model by those of a spec.

    Args:
        model: The model, whose weights stay the same.
        spec: The spec of the model with other anchors, or the same spec.
    """
    model.spec = spec
    if not spec.head.anchor_free:
        model.anchors_px = torch.tensor(_anchors_of(spec), dtype=torch.float32)


def _compare(spec: ModelSpec, index: ImageIndex, settings: TrainSettings) -> AnchorChoice:
    threshold = settings.loss.anchor_threshold
    return choose_anchors(spec, index, image_size=settings.image_size, threshold=threshold, mode=settings.anchors)


def _describe_fit(spec: ModelSpec, index: ImageIndex, settings: TrainSettings) -> str:
    sizes = box_sizes(index, image_size=settings.image_size)
    fit = measure_anchors(sizes, _anchors_of(spec), threshold=settings.loss.anchor_threshold)
    return f"anchors of the teacher: {fit}"


def _describe_other_anchors(settings: TrainSettings) -> str:
    remedy = "" if settings.anchors == "auto" else "; anchors: auto takes over those of the weights if they fit"
    return f"the outputs of the head of the weights were trained for other anchors than those of this run{remedy}"


def _comparable_anchors(weights: ModelSpec, spec: ModelSpec) -> Sides | None:
    """Return the anchors (levels, anchors, 2) of weights; None unless the spec's head is of the same kind and shape."""
    if weights.head.block != spec.head.block or _strides_of(weights) != _strides_of(spec):
        return None
    anchors_px = _anchors_of(weights)
    return anchors_px if anchors_px.shape == _anchors_of(spec).shape else None


def _strides_of(spec: ModelSpec) -> list[int]:
    shapes = infer_shapes(spec)
    return [shapes[source].stride for source in spec.head.sources]


def _anchors_of(spec: ModelSpec) -> Sides:
    anchors = anchor_based_head(spec).anchors
    return np.array(anchors, np.float64).reshape(len(anchors), -1, 2)


def _are_same(first: Sides, second: Sides) -> bool:
    return np.allclose(first, second, rtol=_SAME, atol=0)
