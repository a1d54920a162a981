"""Weights that are used as they are: the check that they are of a spec, and the order of their classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from yolov7.data.class_names import match_names
from yolov7.errors import ArtifactError, shown
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.graph import ModelSpec

_HEAD = "head."
_OF_TRAINING = ("anchors", "implicit", "auxiliary")  # parts of a head in which weights of one spec may differ


def is_of_spec(found: ModelSpec, spec: ModelSpec) -> bool:
    """Return whether weights are of a spec.

    Anchors may have been fitted; implicit knowledge and the auxiliary head are missing from deployed weights.

    Args:
        found: The spec of the weights.
        spec: The wanted spec.
    """
    if type(found.head) is not type(spec.head):
        return False
    parts = [part for part in _OF_TRAINING if part in type(spec.head).model_fields]
    head = found.head.model_copy(update={part: getattr(spec.head, part) for part in parts})
    names = {"name": spec.name, "image_size": spec.image_size}
    return found.model_copy(update={**names, "rows": found.rows | {found.head_name: head}}) == spec


@torch.no_grad()
def select_classes(model: DetectionModel, names: Sequence[str], wanted: Sequence[str]) -> DetectionModel:
    """Return a model whose class outputs are those of given classes, in their order.

    Args:
        model: The model, which stays unchanged.
        names: The names of its classes.
        wanted: The names of the wanted classes; the model may have more. `yolov7.data.class_names` states which names
            are equal.

    Returns:
        The same model if its classes are these in this order; otherwise a new one.

    Raises:
        ArtifactError: A wanted class is not among the model's.
    """
    places = match_names(wanted, names)
    missing = [name for name, place in zip(wanted, places, strict=True) if place < 0]
    if missing:
        raise ArtifactError(
            f"the weights do not know {len(missing)} of the {len(wanted)} classes of the data, e.g. "
            f"{shown(missing[0])}; they know {shown(list(names))}; use data with these class names"
        )
    if places == tuple(range(len(names))):
        return model
    head = model.head
    chosen = [*range(head.num_box_outputs), *(head.num_box_outputs + place for place in places)]
    state = model.state_dict()
    for key, tensor in head.state_dict().items():
        if head.has_class_outputs(key):
            state[_HEAD + key] = _take_outputs(tensor, chosen, num_anchors=head.num_anchors)
    with torch.device("meta"):
        new = DetectionModel(model.spec, num_classes=len(wanted))
        new = fuse(new) if model.fused else new
    new.load_state_dict(state, assign=True)
    new.anchors_px = model.anchors_px.clone()
    return new.train(model.training)


def _take_outputs(tensor: Tensor, chosen: list[int], *, num_anchors: int) -> Tensor:
    """Select outputs of every anchor in a weight (outputs, C, 1, 1), bias (outputs,) or scale (1, outputs, 1, 1)."""
    if tensor.dim() == 4 and tensor.shape[0] == 1:
        return _take_outputs(tensor[0], chosen, num_anchors=num_anchors)[None]
    by_anchor = tensor.view(num_anchors, -1, *tensor.shape[1:])
    return by_anchor[:, chosen].flatten(0, 1)
