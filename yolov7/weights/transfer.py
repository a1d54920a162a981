"""Fine-tuning: a model starts from the weights of another one, which may know other classes."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from yolov7.errors import ArtifactError
from yolov7.nn.fuse import fuse_detect
from yolov7.nn.heads import Detect
from yolov7.nn.model import DetectionModel

_NO_CLASSES = 5  # outputs of an anchor that are no classes: box and objectness
_BY_CLASS = ("head.convs.", "head.auxiliary_convs.", "head.im.")  # what has an output for every class


def transfer(model: DetectionModel, source: DetectionModel, *, weights: str | os.PathLike[str]) -> int:
    """Copies into a model every tensor of another that has the name and shape of its own; returns how many.

    `weights` is the file that `source` was read from, for the messages; `source` is not to be used afterwards.

    Of a head with another number of classes, the outputs for box and objectness are copied; those for classes stay
    as they are. Implicit knowledge that only `source` has is folded into its convolutions; where only the model has
    it, it starts neutral. ArtifactError for weights of another model, and for re-parameterised ones.
    """
    if source.fused:
        raise ArtifactError(f"{weights}: is re-parameterised and cannot be trained on; name the weights of a training")
    num_copied, num_own = _copy(source, model), len(model.state_dict())
    if num_copied < num_own // 2:
        raise ArtifactError(
            f"{weights}: of spec {source.spec.name!r}, fits {num_copied} of the {num_own} tensors of spec "
            f"{model.spec.name!r}; name weights of that spec"
        )
    return num_copied


@torch.no_grad()
def _copy(source: DetectionModel, model: DetectionModel) -> int:
    if len(source.head.ia) and not len(model.head.ia):
        fuse_detect(source.head)
    if len(model.head.ia) and not len(source.head.ia):
        _neutralise(model.head)
    given, own = source.state_dict(), model.state_dict()  # the tensors' own memory
    num_anchors = model.head.num_anchors
    by_class = _BY_CLASS if source.head.num_anchors == num_anchors else ()
    return sum(
        _copy_tensor(given[name], tensor, num_anchors if name.startswith(by_class) else None)
        for name, tensor in own.items()
        if name in given
    )


def _copy_tensor(given: Tensor, own: Tensor, num_anchors: int | None) -> bool:
    """Whether the tensor could be copied, at least without its classes; `num_anchors` of one that has outputs."""
    if given.shape == own.shape:
        own.copy_(given)
        return True
    if num_anchors is None or given.dim() != own.dim():
        return False
    theirs, ours = _by_anchor(given, num_anchors), _by_anchor(own, num_anchors)
    if theirs.shape[2:] != ours.shape[2:]:
        return False
    ours[:, :_NO_CLASSES] = theirs[:, :_NO_CLASSES]
    return True


def _by_anchor(tensor: Tensor, num_anchors: int) -> Tensor:
    """A weight (outputs, C, 1, 1), bias (outputs,) or scale (1, outputs, 1, 1) as (anchors, 5 + classes, ...)."""
    outputs = tensor[0] if tensor.shape[0] == 1 else tensor
    return outputs.view(num_anchors, -1, *outputs.shape[1:])


def _neutralise(head: Detect) -> None:
    for shift, scale in zip(head.ia, head.im, strict=True):
        shift.zero_()
        scale.fill_(1.0)
