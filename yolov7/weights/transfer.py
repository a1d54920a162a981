"""Transfer of weights for fine-tuning: from one model to another, whose classes may differ."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from yolov7.errors import ArtifactError
from yolov7.nn.fuse import fuse_detect
from yolov7.nn.heads import Detect
from yolov7.nn.model import DetectionModel

_NUM_BOX_OUTPUTS = 5  # outputs of an anchor before those of the classes: box and objectness
_BY_CLASS = ("head.convs.", "head.auxiliary_convs.", "head.im.")  # tensors with an output for every class


def transfer(model: DetectionModel, source: DetectionModel, *, weights: str | os.PathLike[str]) -> int:
    """Copy every tensor of one model to the tensor of another one that has the same name and shape.

    If the number of classes differs, the outputs of the head for box and objectness are copied, and those for classes
    are left as they are. Implicit knowledge that only the source has is folded into its convolutions. Implicit
    knowledge that only the target has is set to neutral values.

    Args:
        model: The target, which is changed.
        source: The source; it may be changed and must not be used afterwards.
        weights: The file that the source was read from, for error messages.

    Returns:
        The number of copied tensors.

    Raises:
        ArtifactError: The source is re-parameterised, or fewer than half of the target's tensors have a counterpart.
    """
    if source.fused:
        raise ArtifactError(
            f"{weights}: is re-parameterised and cannot be trained further; name the weights that training has written"
        )
    num_copied, num_own = _copy(source, model), len(model.state_dict())
    if num_copied < num_own // 2:
        raise ArtifactError(
            f"{weights}: its spec is {source.spec.name!r}, and it fits only {num_copied} of the {num_own} tensors of "
            f"spec {model.spec.name!r}; name weights of that spec"
        )
    return num_copied


@torch.no_grad()
def _copy(source: DetectionModel, model: DetectionModel) -> int:
    if len(source.head.ia) and not len(model.head.ia):
        fuse_detect(source.head)
    if len(model.head.ia) and not len(source.head.ia):
        _neutralise(model.head)
    given, own = source.state_dict(), model.state_dict()  # they share memory with the models
    num_anchors = model.head.num_anchors
    by_class = _BY_CLASS if source.head.num_anchors == num_anchors else ()
    return sum(
        _copy_tensor(given[name], tensor, num_anchors if name.startswith(by_class) else None)
        for name, tensor in own.items()
        if name in given
    )


def _copy_tensor(given: Tensor, own: Tensor, num_anchors: int | None) -> bool:
    """Copy a tensor, or its outputs for box and objectness; return whether that was possible."""
    if given.shape == own.shape:
        own.copy_(given)
        return True
    if num_anchors is None or given.dim() != own.dim():
        return False
    theirs, ours = _by_anchor(given, num_anchors), _by_anchor(own, num_anchors)
    if theirs.shape[2:] != ours.shape[2:]:
        return False
    ours[:, :_NUM_BOX_OUTPUTS] = theirs[:, :_NUM_BOX_OUTPUTS]
    return True


def _by_anchor(tensor: Tensor, num_anchors: int) -> Tensor:
    """View a weight (outputs, C, 1, 1), bias (outputs,) or scale (1, outputs, 1, 1) as (anchors, 5 + classes, ...)."""
    outputs = tensor[0] if tensor.shape[0] == 1 else tensor
    return outputs.view(num_anchors, -1, *outputs.shape[1:])


def _neutralise(head: Detect) -> None:
    for shift, scale in zip(head.ia, head.im, strict=True):
        shift.zero_()
        scale.fill_(1.0)
