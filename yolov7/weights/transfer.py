"""Transfer of weights for fine-tuning: from one model to another, whose classes may differ."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor

from yolov7.errors import ArtifactError
from yolov7.nn.anchor_free_heads import DflHead
from yolov7.nn.fuse import fuse_detect, fuse_dfl_head
from yolov7.nn.heads import Detect, Head
from yolov7.nn.model import DetectionModel

_HEAD = "head."


def transfer(model: DetectionModel, source: DetectionModel, *, weights: str | os.PathLike[str]) -> int:
    """Copy every tensor of one model to the tensor of another one that has the same name and shape.

    If the number of classes differs, the outputs of the head for box and objectness are copied, and those for classes
    are left as they are. A head of another kind is left as it is. Implicit knowledge that only the source has is folded
    into its convolutions, except for the vectors that an anchor-free head adds before padding, which are dropped.
    Implicit knowledge that only the target has is set to neutral values.

    Args:
        model: The target, which is changed.
        source: The source; it may be changed and must not be used afterwards.
        weights: The file that the source was read from, for error messages.

    Returns:
        The number of copied tensors.

    Raises:
        ArtifactError: The source is re-parameterised, or fewer than half of the target's tensors have a counterpart,
            those of a head of another kind not counted.
    """
    if source.fused:
        raise ArtifactError(
            f"{weights}: is re-parameterised and cannot be trained further; name the weights that training has written"
        )
    has_same_head = type(source.head) is type(model.head)
    num_copied, num_own = _copy(source, model), len((model if has_same_head else model.rows).state_dict())
    if num_copied < num_own // 2:
        raise ArtifactError(
            f"{weights}: its spec is {source.spec.name!r}, and it fits only {num_copied} of the {num_own} tensors of "
            f"spec {model.spec.name!r}; name weights of that spec"
        )
    return num_copied


@torch.no_grad()
def _copy(source: DetectionModel, model: DetectionModel) -> int:
    has_same_head = type(source.head) is type(model.head)
    if has_same_head:
        _match_implicit(source.head, model.head)
    given, own = source.state_dict(), model.state_dict()  # they share memory with the models
    head = model.head if source.head.num_anchors == model.head.num_anchors else None
    return sum(
        _copy_tensor(given[name], tensor, head if head and head.has_class_outputs(name.removeprefix(_HEAD)) else None)
        for name, tensor in own.items()
        if name in given and (has_same_head or not name.startswith(_HEAD))
    )


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


def _copy_tensor(given: Tensor, own: Tensor, head: Head | None) -> bool:
    """Copy a tensor, or its outputs for box and objectness if it is of a head; return whether that was possible."""
    if given.shape == own.shape:
        own.copy_(given)
        return True
    if head is None or not head.num_box_outputs or given.dim() != own.dim():
        return False
    theirs, ours = _by_anchor(given, head.num_anchors), _by_anchor(own, head.num_anchors)
    if theirs.shape[2:] != ours.shape[2:]:
        return False
    ours[:, : head.num_box_outputs] = theirs[:, : head.num_box_outputs]
    return True


def _by_anchor(tensor: Tensor, num_anchors: int) -> Tensor:
    """View a weight (outputs, C, 1, 1), bias (outputs,) or scale (1, outputs, 1, 1) as (anchors, 5 + classes, ...)."""
    outputs = tensor[0] if tensor.shape[0] == 1 else tensor
    return outputs.view(num_anchors, -1, *outputs.shape[1:])


def _neutralise(shifts: Iterable[Tensor], scales: Iterable[Tensor]) -> None:
    for shift in shifts:
        shift.zero_()
    for scale in scales:
        scale.fill_(1.0)
