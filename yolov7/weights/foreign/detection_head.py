"""What the detection layer of a foreign model says about the model, and a spec that is adapted to it."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from yolov7.errors import ArtifactError, SpecError, one_line
from yolov7.spec.anchor_free import anchor_based_head
from yolov7.spec.auxiliary import with_auxiliary, without_auxiliary
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.weights.foreign.model_file import ForeignModel

BUFFERS = ("anchors", "anchor_grid")
"""The anchors in the detection layer: in units of the stride, and in pixels."""

_DETECTION = re.compile(r"(model\.\d+\.)m\.0\.bias")
_FOLDED = ".conv.bias"  # the end of the name of a bias that only a convolution with folded batch norm has
_ROUNDING = 2.0**-10  # relative rounding error of half precision
_NUM_BOX_OUTPUTS = 5  # outputs of an anchor before those of the classes: box and objectness
_MAX_ANCHOR_SIDES = 2000
_MAX_OUTPUTS = 2**20  # of the detection layer at one level


class Head(NamedTuple):
    """The detection layer of a foreign model.

    Attributes:
        layer: The prefix of the names of its tensors.
        num_outputs: The outputs of its first level.
        widths: The channels of its input maps.
        implicit: Whether it has implicit knowledge.
        auxiliary: Whether it has an auxiliary head.
        fused: Whether the model is re-parameterised. Its implicit knowledge is then folded into the convolutions.
        anchors: Anchors (levels, anchors, 2) in units of the stride; None if the file does not have them.
        anchors_px: The same anchors (levels, 1, anchors, 1, 1, 2) in pixels; None if the file does not have them, like
            those of YOLOv5.
    """

    layer: str
    num_outputs: int
    widths: list[int]
    implicit: bool
    auxiliary: bool
    fused: bool
    anchors: Tensor | None
    anchors_px: Tensor | None


def read_head(model: ForeignModel) -> Head:
    """Read what the detection layer says about a model.

    Args:
        model: The opened file.

    Returns:
        The description of the layer.

    Raises:
        ArtifactError: The model has no detection layer, or more anchors or outputs than a detector has.
    """
    shapes = model.shapes
    found = next((match for match in map(_DETECTION.fullmatch, shapes) if match), None)
    if found is None:
        raise ArtifactError(
            f"{model.path}: none of its {len(shapes)} tensors belongs to a detection layer (model.N.m.0.bias); "
            "give a checkpoint of the YOLOv7 or YOLOR family"
        )
    layer, shape = found[1], shapes[found[0]]
    weights = [shapes.get(f"{layer}m.{i}.weight", ()) for i in range(len(shapes))]
    if len(shape) != 1 or shape[0] > _MAX_OUTPUTS:
        raise _not_a_detector(model, found[0], shape)
    anchors, anchors_px = _read_anchors(model, layer)
    fused = any(name.endswith(_FOLDED) for name in shapes)
    return Head(
        layer=layer,
        num_outputs=shape[0],
        widths=[weight[1] for weight in weights if len(weight) > 1],
        implicit=f"{layer}ia.0.implicit" in shapes and not fused,
        auxiliary=f"{layer}m2.0.bias" in shapes,
        fused=fused,
        anchors=anchors,
        anchors_px=anchors_px,
    )


def count_classes(model: ForeignModel, head: Head, spec: ModelSpec) -> int:
    """Return the number of classes of a model.

    Args:
        model: The opened file.
        head: Its detection layer.
        spec: The spec, whose number of anchors is used if the file has no anchors.

    Raises:
        ArtifactError: The outputs are not those of box, objectness and classes.
        SpecError: The head of the spec is anchor-free.
    """
    own = anchors_of(model, head, spec)
    num_anchors = len(anchor_based_head(spec).anchors[0]) // 2 if own is None else own.shape[1]
    outputs, rest = divmod(head.num_outputs, num_anchors)
    if rest or outputs <= _NUM_BOX_OUTPUTS:
        raise _not_a_detector(model, f"{head.layer}m.0.bias", (head.num_outputs,), num_anchors=num_anchors)
    return outputs - _NUM_BOX_OUTPUTS


def anchors_of(model: ForeignModel, head: Head, spec: ModelSpec) -> Tensor | None:
    """Return the anchors in pixels (levels, anchors, 2); None if the file does not have them for the spec's levels.

    Args:
        model: The opened file.
        head: Its detection layer.
        spec: The spec, which knows the strides.

    Raises:
        ArtifactError: The anchors in units of the stride and those in pixels disagree.
    """
    shapes = infer_shapes(spec)
    strides = torch.tensor([float(shapes[source].stride) for source in spec.head.sources])
    if head.anchors is None or head.anchors.shape[:1] != strides.shape:
        return None
    in_pixels = (head.anchors * strides.view(-1, 1, 1))[:, None, :, None, None] if head.anchors.dim() == 3 else None
    grid = in_pixels if head.anchors_px is None else head.anchors_px
    if grid is None or in_pixels is None or not _are_same_anchors(in_pixels, grid):
        raise ArtifactError(
            f"{model.path}: {head.layer}anchors and {head.layer}anchor_grid are not the same anchors; give another file"
        )
    return grid.view_as(head.anchors)


def adapt(spec: ModelSpec, head: Head, *, anchors_px: Tensor | None) -> ModelSpec:
    """Return the spec with the head of a foreign model.

    Args:
        spec: The spec that the model was made from.
        head: The detection layer of the model.
        anchors_px: Its anchors (levels, anchors, 2); None keeps those of the spec. Anchors that differ from the spec's
            by no more than the rounding of half precision stay the spec's.

    Returns:
        The spec.

    Raises:
        SpecError: The anchors cannot be used, the spec has no place for the auxiliary head, or its head is anchor-free.
    """
    given = anchor_based_head(spec)
    row = given.model_copy(update={"implicit": head.implicit})
    if anchors_px is not None:
        own = torch.tensor(given.anchors).view(len(given.anchors), -1, 2)
        if own.shape != anchors_px.shape or not torch.allclose(own, anchors_px, rtol=_ROUNDING):
            # as short as float32 allows: 12.34, not 12.34000015
            levels = ([float(str(side)) for side in level] for level in anchors_px.flatten(1).numpy())
            row = row.model_copy(update={"anchors": tuple(tuple(level) for level in levels)})
    try:
        changed = ModelSpec.model_validate({**dict(spec), "rows": spec.rows | {spec.head_name: row}})
    except ValidationError as error:
        raise SpecError(f"its anchors cannot be used ({one_line(error.errors()[0]['msg'])})") from None
    return with_auxiliary(changed) if head.auxiliary else without_auxiliary(changed)


def _read_anchors(model: ForeignModel, layer: str) -> tuple[Tensor | None, Tensor | None]:
    names = {name: layer + name for name in BUFFERS if layer + name in model.shapes}
    if "anchors" not in names:
        return None, None
    if any(math.prod(model.shapes[name]) > _MAX_ANCHOR_SIDES for name in names.values()):
        raise ArtifactError(f"{model.path}: {layer}anchors are far more than a detection layer has; give another file")
    tensors = model.read(names)
    return tensors["anchors"].float(), tensors["anchor_grid"].float() if "anchor_grid" in tensors else None


def _are_same_anchors(pixels: Tensor, grid: Tensor) -> bool:
    """Return whether both buffers have the same valid anchors, (levels, 1, anchors, 1, 1, 2) in pixels."""
    if grid.shape != pixels.shape or grid.shape[-1] != 2 or not grid.numel():
        return False
    return bool((grid.isfinite() & (grid > 0)).all()) and torch.allclose(grid, pixels, rtol=4 * _ROUNDING)


def _not_a_detector(
    model: ForeignModel, name: str, shape: tuple[int, ...], *, num_anchors: int | str = "any number of"
) -> ArtifactError:
    return ArtifactError(
        f"{model.path}: {name} of shape {shape} does not hold box, objectness and classes of {num_anchors} anchors; "
        "only detection heads can be imported"
    )
