"""Import checkpoints of the reference implementation as models, and export models in its format."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from yolov7.data.coco_names import COCO_NAMES
from yolov7.errors import ArtifactError, SpecError, one_line
from yolov7.nn.blocks import make_activation
from yolov7.nn.model import DetectionModel
from yolov7.nn.regroup import regroup, regroup_spec
from yolov7.spec.auxiliary import with_auxiliary, without_auxiliary
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.spec.spec_files import list_specs, load_spec
from yolov7.system.files import write_whole
from yolov7.weights.foreign.checkpoint import ForeignCheckpoint, read_checkpoint
from yolov7.weights.foreign.reference_names import ReferenceNames, reference_names
from yolov7.weights.foreign.torch_file import TorchFile, open_torch_file
from yolov7.weights.weight_files import Weights, first_difference

_DETECTION = re.compile(r"model\.\d+\.m\.0\.bias")
_BUFFERS = ("anchors", "anchor_grid")  # of the detection layer: in units of the stride, and in pixels
_ROUNDING = 2.0**-10  # relative rounding error of half precision
_NUM_BOX_OUTPUTS = 5  # outputs of an anchor before those of the classes: box and objectness
_MAX_ANCHOR_SIDES = 2000
_MAX_OUTPUTS = 2**20  # of the detection layer at one level


class Imported(NamedTuple):
    """An imported model.

    Attributes:
        weights: The model, in evaluation mode and float32, with its class names.
        remarks: One phrase for each way in which the model differs from the requested spec.
    """

    weights: Weights
    remarks: tuple[str, ...]


class _Head(NamedTuple):
    """What a checkpoint's detection layer says about its model.

    Attributes:
        num_classes: The number of classes.
        widths: The channels of its input maps.
        implicit: Whether it has implicit knowledge.
        auxiliary: Whether it has an auxiliary head.
        anchors_px: Anchors (levels, anchors, 2) in pixels; None if the checkpoint does not have them.
    """

    num_classes: int
    widths: list[int]
    implicit: bool
    auxiliary: bool
    anchors_px: Tensor | None


def import_checkpoint(
    path: str | os.PathLike[str], *, spec: ModelSpec, class_names: tuple[str, ...] | None = None
) -> Imported:
    """Import a checkpoint or a state dict of the reference implementation. Nothing in its pickle is executed.

    The model follows the checkpoint in its number of classes, its anchors, and whether it has implicit knowledge and
    an auxiliary head, so that training and deploy forms fit the same spec.

    Args:
        path: The file, which torch.save wrote.
        spec: The spec that the checkpoint was trained with.
        class_names: The names of the classes. By default, they are the checkpoint's own; if it has none but has
            80 classes, they are COCO's.

    Returns:
        The model and the ways in which it differs from the spec.

    Raises:
        ArtifactError: The file is missing or damaged, or does not fit the spec.
        SpecError: The spec has a module that the reference implementation does not have.
    """
    file = open_torch_file(path)
    checkpoint = read_checkpoint(file)
    head = _read_head(file, checkpoint, spec=spec)
    class_names = _choose_names(file.path, checkpoint.class_names, class_names, num_classes=head.num_classes)
    adapted = _adapt(spec, head)
    model, names = _build(regroup_spec(adapted, grouped=False), num_classes=head.num_classes)
    fault = _find_misfit(checkpoint, model, names) or _find_other_activation(checkpoint, spec)
    if fault:
        advice = _advise(checkpoint, head)
        raise ArtifactError(f"{file.path}: does not fit spec {spec.name!r} ({one_line(fault)}); {advice}")
    own = model.state_dict()
    tensors = file.read({key: checkpoint.tensors[name] for name, key in names.weights.items()})
    model.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in tensors.items()}, assign=True)
    if model.spec != adapted:
        model = regroup(model, grouped=True)
    weights = Weights(model.eval(), class_names, spec.image_size, {"imported": file.path.name})
    return Imported(weights, tuple(_remarks(spec, adapted)))


def export_checkpoint(path: str | os.PathLike[str], model: DetectionModel, *, class_names: Iterable[str]) -> None:
    """Write `{'model': state_dict, 'names': class names}` with the reference's names, in the format of torch.save.

    Args:
        path: The file to write.
        model: A model that is not re-parameterised.
        class_names: The names of its classes.

    Raises:
        ArtifactError: The model is re-parameterised.
        SpecError: The model has a module that the reference implementation does not have.
        OSError: The file cannot be written.
    """
    if model.fused:
        raise ArtifactError(
            "re-parameterised weights have no names in the reference implementation; export the trained weights instead"
        )
    if model.spec != regroup_spec(model.spec, grouped=False):
        model = regroup(model, grouped=False)
    state = {name: tensor.cpu().contiguous() for name, tensor in reference_state(model).items()}
    buffer = io.BytesIO()
    torch.save({"model": state, "names": list(class_names)}, buffer)
    write_whole(Path(path), buffer.getvalue())


def reference_state(model: DetectionModel) -> dict[str, Tensor]:
    """Return the model's tensors by the reference's names and in its order, including its anchor buffers.

    Args:
        model: A model that is not re-parameterised.

    Returns:
        The tensors, detached, on the model's device.

    Raises:
        SpecError: The model has a module that the reference implementation does not have.
    """
    own = model.state_dict()
    names = reference_names(model.spec, own)
    anchors_px = model.anchors_px.float()  # levels anchors 2
    strides = torch.tensor(model.strides, dtype=torch.float32, device=anchors_px.device).view(-1, 1, 1)
    anchors = (anchors_px / strides, anchors_px[:, None, :, None, None, :])
    state: dict[str, Tensor] = {}
    for name, key in names.weights.items():
        if name.startswith(names.head):  # the buffers precede the first of them
            state |= {
                names.head + buffer: tensor.contiguous() for buffer, tensor in zip(_BUFFERS, anchors, strict=True)
            }
        state[name] = own[key].detach()
    return state


def _read_head(file: TorchFile, checkpoint: ForeignCheckpoint, *, spec: ModelSpec) -> _Head:
    notes = checkpoint.tensors
    first = next((name for name in notes if _DETECTION.fullmatch(name)), None)
    if first is None:
        raise ArtifactError(
            f"{file.path}: none of its {len(notes)} tensors belongs to a detection layer (model.N.m.0.bias); "
            "give a checkpoint of the YOLOv7 or YOLOR family"
        )
    layer, shape = first.removesuffix("m.0.bias"), notes[first].shape
    anchors_px = _read_anchors(file, checkpoint, layer, spec=spec)
    num_anchors = len(spec.head.anchors[0]) // 2 if anchors_px is None else anchors_px.shape[1]
    outputs, rest = divmod(shape[0], num_anchors) if len(shape) == 1 else (0, 0)
    if rest or outputs <= _NUM_BOX_OUTPUTS or shape[0] > _MAX_OUTPUTS:
        raise ArtifactError(
            f"{file.path}: {first} of shape {shape} does not hold box, objectness and classes of {num_anchors} anchors"
            "; only detection heads can be imported"
        )
    weights = re.compile(re.escape(layer) + r"m\.\d+\.weight")
    return _Head(
        num_classes=outputs - _NUM_BOX_OUTPUTS,
        widths=[note.shape[1] for name, note in notes.items() if weights.fullmatch(name) and len(note.shape) > 1],
        implicit=f"{layer}ia.0.implicit" in notes,
        auxiliary=f"{layer}m2.0.bias" in notes,
        anchors_px=anchors_px,
    )


def _read_anchors(file: TorchFile, checkpoint: ForeignCheckpoint, layer: str, *, spec: ModelSpec) -> Tensor | None:
    """Read the anchors in pixels; return None if the checkpoint does not have them for the spec's levels."""
    notes = {name: checkpoint.tensors[layer + name] for name in _BUFFERS if layer + name in checkpoint.tensors}
    shapes = infer_shapes(spec)
    strides = torch.tensor([float(shapes[source].stride) for source in spec.head.sources])
    if len(notes) < len(_BUFFERS) or any(note.shape[:1] != strides.shape for note in notes.values()):
        return None
    if any(math.prod(note.shape) > _MAX_ANCHOR_SIDES for note in notes.values()):
        raise ArtifactError(f"{file.path}: {layer}anchors are far more than a detection layer has; give another file")
    in_strides, grid = (file.read(notes)[name].float() for name in _BUFFERS)
    if in_strides.dim() != 3 or not _are_same_anchors(in_strides, grid, strides):
        raise ArtifactError(
            f"{file.path}: {layer}anchors and {layer}anchor_grid are not the same anchors; give another file"
        )
    return grid.view_as(in_strides)


def _are_same_anchors(in_strides: Tensor, grid: Tensor, strides: Tensor) -> bool:
    """Return whether anchors (levels, anchors, 2) and (levels, 1, anchors, 1, 1, 2) in pixels are equal and valid."""
    pixels = (in_strides * strides.view(-1, 1, 1))[:, None, :, None, None]
    if grid.shape != pixels.shape or grid.shape[-1] != 2 or not grid.numel():
        return False
    return bool((grid.isfinite() & (grid > 0)).all()) and torch.allclose(grid, pixels, rtol=4 * _ROUNDING)


def _adapt(spec: ModelSpec, head: _Head) -> ModelSpec:
    """Return the spec with the checkpoint's head; anchors that differ by no more than rounding stay the spec's."""
    row = spec.head.model_copy(update={"implicit": head.implicit})
    if head.anchors_px is not None:
        own = torch.tensor(spec.head.anchors).view(len(spec.head.anchors), -1, 2)
        if own.shape != head.anchors_px.shape or not torch.allclose(own, head.anchors_px, rtol=_ROUNDING):
            # as short as float32 allows: 12.34, not 12.34000015
            levels = ([float(str(side)) for side in level] for level in head.anchors_px.flatten(1).numpy())
            row = row.model_copy(update={"anchors": tuple(tuple(level) for level in levels)})
    try:
        changed = ModelSpec.model_validate({**dict(spec), "rows": spec.rows | {spec.head_name: row}})
    except ValidationError as error:
        raise SpecError(f"its anchors cannot be used ({one_line(error.errors()[0]['msg'])})") from None
    return with_auxiliary(changed) if head.auxiliary else without_auxiliary(changed)


def _build(spec: ModelSpec, *, num_classes: int) -> tuple[DetectionModel, ReferenceNames]:
    """Build the modules, with tensors on the meta device, and find the reference's names for the tensors."""
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=num_classes)
    return model, reference_names(spec, model.state_dict())


def _find_misfit(checkpoint: ForeignCheckpoint, model: DetectionModel, names: ReferenceNames) -> str:
    """Describe the first tensor that differs between checkpoint and model; return an empty string if none does."""
    own = model.state_dict()
    expected = {name: tuple(own[key].shape) for name, key in names.weights.items()}
    buffers = {names.head + buffer for buffer in _BUFFERS}
    return first_difference(expected, {k: note.shape for k, note in checkpoint.tensors.items() if k not in buffers})


def _find_other_activation(checkpoint: ForeignCheckpoint, spec: ModelSpec) -> str:
    """Describe the activation of the checkpoint's modules if it is not the spec's, which no tensor would show."""
    expected = type(make_activation(spec.activation)).__name__
    others = sorted(checkpoint.activations - {expected, "Identity"})
    return f"its activation is {others[0]}, its spec asks for {expected}" if others else ""


def _advise(checkpoint: ForeignCheckpoint, head: _Head) -> str:
    """Return the remedy for a checkpoint that does not fit."""
    if any(name.endswith(".conv.bias") for name in checkpoint.tensors):
        return "its batch norms are folded into its convolutions; give the checkpoint as it was trained"
    for name in list_specs():
        spec, shapes = load_spec(name), infer_shapes(load_spec(name))
        if [shapes[source].channels for source in spec.head.sources] != head.widths:
            continue
        try:
            model, names = _build(_adapt(spec, head._replace(anchors_px=None)), num_classes=head.num_classes)
        except SpecError:  # such as no place for an auxiliary head
            continue
        if not (_find_misfit(checkpoint, model, names) or _find_other_activation(checkpoint, model.spec)):
            return f"it fits spec {name!r}"
    return "give the spec that it was trained with; no packaged one fits"


def _choose_names(
    path: Path, own: tuple[str, ...] | None, given: tuple[str, ...] | None, *, num_classes: int
) -> tuple[str, ...]:
    names = given or own or (COCO_NAMES if num_classes == len(COCO_NAMES) else None)
    if names is None:
        raise ArtifactError(f"{path}: has {num_classes} classes but not their names; give the names")
    if len(names) != num_classes:
        source = "are given" if given else "are in it"
        raise ArtifactError(
            f"{path}: {len(names)} class names {source}, but it has {num_classes} classes; give one name per class"
        )
    return names


def _remarks(spec: ModelSpec, adapted: ModelSpec) -> Iterable[str]:
    if adapted.head.anchors != spec.head.anchors:
        yield f"its anchors differ from the spec's: {[list(level) for level in adapted.head.anchors]}"
    if adapted.head.implicit != spec.head.implicit:
        yield f"it has {'' if adapted.head.implicit else 'no '}implicit knowledge"
    if (adapted.head.auxiliary is None) != (spec.head.auxiliary is None):
        yield f"it has {'no' if adapted.head.auxiliary is None else 'an'} auxiliary head"
