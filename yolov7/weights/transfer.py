"""Transfer of weights for fine-tuning: from one model to another, whose classes may differ."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from yolov7.errors import ArtifactError
from yolov7.nn.anchor_free_heads import DflHead
from yolov7.nn.fuse import fuse_detect, fuse_dfl_head
from yolov7.nn.heads import Detect, Head
from yolov7.nn.model import DetectionModel

_HEAD = "head."


def transfer(
    model: DetectionModel, source: DetectionModel, *, weights: str | os.PathLike[str], places: Sequence[int]
) -> int:
    """Copy every tensor of one model to the tensor of another one that has the same name and shape.

    In tensors of the head that have class outputs, the outputs for box and objectness are copied, and those of the
    classes that the source has too; other class outputs are left as they are. A head of another kind is left as it is.
    Implicit knowledge that only the source has is folded into its convolutions, except for the vectors that an
    anchor-free head adds before padding, which are dropped. Implicit knowledge that only the target has is set to
    neutral values.

    Args:
        model: The target, which is changed.
        source: The source; it may be changed and must not be used afterwards.
        weights: The file that the source was read from, for error messages.
        places: For each class of the target the class of the source whose outputs are copied; -1 if none is (see
            `adaptation.match_classes`).

    Returns:
        The number of tensors that were copied, at least in part.

    Raises:
        ArtifactError: The source is re-parameterised, or fewer than half of the target's tensors have a counterpart,
            those of a head of another kind not counted.
    """
    if source.fused:
        raise ArtifactError(
            f"{weights}: is re-parameterised and cannot be trained further; name the weights that training has written"
        )
    has_same_head = type(source.head) is type(model.head)
    num_copied = _copy(source, model, places)
    num_own = len((model if has_same_head else model.rows).state_dict())
    if num_copied < num_own // 2:
        raise ArtifactError(
            f"{weights}: its spec is {source.spec.name!r}, and it fits only {num_copied} of the {num_own} tensors of "
            f"spec {model.spec.name!r}; name weights of that spec"
        )
    return num_copied


def describe_new_head(model: DetectionModel, source: DetectionModel) -> str:
    """Say why `transfer` takes no class outputs from a source.

    Args:
        model: The target.
        source: The source.

    Returns:
        One sentence; empty if the class outputs fit.
    """
    own, theirs = model.spec.head.block, source.spec.head.block
    if type(source.head) is not type(model.head):
        return f"the head starts anew, because that of the weights is {theirs!r} and that of the model {own!r}"
    if source.head.num_anchors != model.head.num_anchors:
        return (
            "the outputs of the head start anew, because the weights have another number of anchors "
            f"({source.head.num_anchors} per cell and not {model.head.num_anchors})"
        )
    return ""


@torch.no_grad()
def _copy(source: DetectionModel, model: DetectionModel, places: Sequence[int]) -> int:
    has_same_head = type(source.head) is type(model.head)
    if has_same_head:
        _match_implicit(source.head, model.head)
    given, num_copied = source.state_dict(), 0
    for name, own in model.state_dict().items():  # the tensors share memory with the model
        part = name.removeprefix(_HEAD)
        if name not in given or (name != part and not has_same_head):
            continue
        if name != part and model.head.has_class_outputs(part):
            num_copied += _copy_outputs(part, given[name], own, heads=(source.head, model.head), places=places)
        elif given[name].shape == own.shape:
            own.copy_(given[name])
            num_copied += 1
    return num_copied


def _match_implicit(source: Head, own: Head) -> None:
    """Fold the implicit knowledge that only the source has, and set what only the target has to neutral values."""
    match source, own:
        case Detect(), Detect() if len(source.ia) != len(own.ia):
            fuse_detect(source)
            _neutralise(own.ia, own.im)
        case DflHead(), DflHead() if len(source.im_box) != len(own.im_box):
            fuse_dfl_head(source)
            _neutralise(own.ia_box, own.im_box)
            _neutralise(own.ia_class, own.im_class)


def _copy_outputs(name: str, given: Tensor, own: Tensor, *, heads: tuple[Head, Head], places: Sequence[int]) -> bool:
    """Copy the outputs of a tensor of the head for box, objectness and known classes; return whether there are any."""
    source, head = heads
    if given.dim() != own.dim() or source.num_anchors != head.num_anchors:
        return False
    theirs, ours = source.by_anchor(name, given), head.by_anchor(name, own)
    if theirs.shape[2:] != ours.shape[2:]:
        return False
    boxes = head.num_box_outputs
    pairs = [(i, i) for i in range(boxes)]
    pairs += [(boxes + i, boxes + place) for i, place in enumerate(places) if place >= 0]
    ours[:, [i for i, _ in pairs]] = theirs[:, [j for _, j in pairs]]
    return bool(pairs)


def _neutralise(shifts: Iterable[Tensor], scales: Iterable[Tensor]) -> None:
    for shift in shifts:
        shift.zero_()
    for scale in scales:
        scale.fill_(1.0)
