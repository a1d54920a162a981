"""Weights that meet other data or another spec: the check that they are of a spec, and the match of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from yolov7.data.class_names import match_names
from yolov7.errors import ArtifactError, counted, shown
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
        which = f"{', e.g.' if len(missing) > 1 else ':'} {shown(missing[0])}"
        raise ArtifactError(
            f"the weights lack {len(missing)} of the {len(wanted)} classes of the data{which}; their classes are "
            f"{shown(list(names))}; use data with these class names"
        )
    if places == tuple(range(len(names))):
        return model
    head = model.head
    chosen = [*range(head.num_box_outputs), *(head.num_box_outputs + place for place in places)]
    state = model.state_dict()
    for key, tensor in head.state_dict().items():
        if head.has_class_outputs(key):
            taken = head.by_anchor(key, tensor)[:, chosen].flatten(0, 1)
            state[_HEAD + key] = taken if taken.dim() == tensor.dim() else taken[None]
    with torch.device("meta"):
        new = DetectionModel(model.spec, num_classes=len(wanted))
        new = fuse(new) if model.fused else new
    new.load_state_dict(state, assign=True)
    new.anchors_px = model.anchors_px.clone()
    return new.train(model.training)


@dataclass(frozen=True)
class ClassMatch:
    """The classes of weights for the classes of data on which the weights are trained further.

    Attributes:
        places: For each class of the data the class of the weights whose outputs it takes; -1 if its outputs start
            anew.
        note: One sentence about the match; empty if the classes are the same in the same order.
    """

    places: tuple[int, ...]
    note: str


def match_classes(names: Sequence[str], known: Sequence[str]) -> ClassMatch:
    """Match the classes of data with those of weights by their names.

    A file without class names has numbers in their place (see `open_weights`). Unless these are the names of all
    classes of the data, the classes are matched by number, provided that there are equally many.

    Args:
        names: The names of the classes of the data.
        known: The names of the classes of the weights. `yolov7.data.class_names` states which names are equal.

    Returns:
        The match.
    """
    count = len(names)
    if tuple(names) == tuple(known):
        return ClassMatch(tuple(range(count)), "")
    places = match_names(names, known)
    new = [name for name, place in zip(names, places, strict=True) if place < 0]
    has_numbers = tuple(known) == tuple(map(str, range(len(known))))
    if new and has_numbers and len(known) == count:
        note = f"the weights have no class names; their {count} class outputs are taken by number"
        return ClassMatch(tuple(range(count)), note)
    if len(new) == count and has_numbers:
        reason = f" (the weights have {counted(len(known), 'class', 'classes')} and no class names)"
    else:
        reason = f"{', e.g.' if len(new) > 1 else ':'} that of {shown(new[0])}" if new else ""
    taken = f"{count - len(new)} {'is' if count - len(new) == 1 else 'are'} taken from the weights by name"
    anew = f"{len(new)} {'starts' if len(new) == 1 else 'start'} anew"
    return ClassMatch(places, f"of {counted(count, 'class output')}, {taken} and {anew}{reason}")
