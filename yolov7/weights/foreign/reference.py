"""Reference checkpoints in and out: their tensors in our models, and ours under their names."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from yolov7.data.coco_names import COCO_NAMES
from yolov7.errors import ArtifactError, one_line
from yolov7.nn.blocks import make_activation
from yolov7.nn.model import DetectionModel
from yolov7.nn.regroup import regroup, regroup_spec
from yolov7.spec.auxiliary import with_auxiliary, without_auxiliary
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.spec.spec_files import list_specs, load_spec
from yolov7.system.files import write_whole
from yolov7.weights.foreign.checkpoint import Checkpoint, read_checkpoint
from yolov7.weights.foreign.reference_names import ReferenceNames, reference_names
from yolov7.weights.foreign.torch_file import TorchFile, open_torch_file
from yolov7.weights.weight_files import Weights, first_difference

_DETECTION = re.compile(r"model\.\d+\.m\.0\.bias")
_BUFFERS = ("anchors", "anchor_grid")  # of the detection layer: in strides, and in pixels
_ROUNDING = 2.0**-10  # relative, of half precision
_NO_CLASSES = 5  # outputs of an anchor that are no classes: box and objectness


class Imported(NamedTuple):
    """An imported model, in evaluation mode and float32, and in what it differs from the spec that was asked for."""

    weights: Weights
    remarks: tuple[str, ...]


class _Head(NamedTuple):
    """What a checkpoint's detection layer says of its model.

    `widths`: the channels of the maps that it takes; `anchors_px` (levels, anchors, 2), where it has them.
    """

    num_classes: int
    widths: list[int]
    implicit: bool
    auxiliary: bool
    anchors_px: Tensor | None


def import_checkpoint(
    path: str | os.PathLike[str], *, spec: ModelSpec, class_names: tuple[str, ...] | None = None
) -> Imported:
    """The model of a reference checkpoint or state dict; nothing of its pickle is executed.

    The model follows the checkpoint in its number of classes, its anchors, and whether it has implicit knowledge and
    an auxiliary head: training and deploy form fit the same spec. The classes' names are the checkpoint's own unless
    they are given, or COCO's where it has 80 classes. ArtifactError, in one line, for a file that does not fit.
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
    """Writes {'model': state_dict, 'names': class names} with the reference's names, as torch.save does.

    ValueError for a fused model, SpecError for one with modules that the reference lacks.
    """
    if model.fused:
        raise ValueError("re-parameterised weights have no names in the reference; export those of the training")
    if model.spec != regroup_spec(model.spec, grouped=False):
        model = regroup(model, grouped=False)
    state = {name: tensor.cpu().contiguous() for name, tensor in reference_state(model).items()}
    buffer = io.BytesIO()
    torch.save({"model": state, "names": list(class_names)}, buffer)
    write_whole(Path(path), buffer.getvalue())


def reference_state(model: DetectionModel) -> dict[str, Tensor]:
    """The model's tensors under the reference's names and in its order, its anchor buffers among them."""
    own = model.state_dict()
    names = reference_names(model.spec, own)
    anchors_px = model.anchors_px.float()  # levels anchors 2
    strides = torch.tensor(model.strides, dtype=torch.float32, device=anchors_px.device).view(-1, 1, 1)
    anchors = (anchors_px / strides, anchors_px[:, None, :, None, None, :])
    state: dict[str, Tensor] = {}
    for name, key in names.weights.items():
        if name.startswith(names.head):  # the first of them comes behind the buffers
            state |= {
                names.head + buffer: tensor.contiguous() for buffer, tensor in zip(_BUFFERS, anchors, strict=True)
            }
        state[name] = own[key].detach()
    return state


def _read_head(file: TorchFile, checkpoint: Checkpoint, *, spec: ModelSpec) -> _Head:
    notes = checkpoint.tensors
    first = next((name for name in notes if _DETECTION.fullmatch(name)), None)
    if first is None:
        raise ArtifactError(
            f"{file.path}: none of its {len(notes)} tensors is that of a detection layer (model.N.m.0.bias); "
            "give a checkpoint of the YOLOv7 or YOLOR family"
        )
    layer, shape = first.removesuffix("m.0.bias"), notes[first].shape
    anchors_px = _read_anchors(file, checkpoint, layer, spec=spec)
    num_anchors = len(spec.head.anchors[0]) // 2 if anchors_px is None else anchors_px.shape[1]
    outputs, rest = divmod(shape[0], num_anchors) if len(shape) == 1 else (0, 0)
    if rest or outputs <= _NO_CLASSES:
        raise ArtifactError(
            f"{file.path}: {first} of shape {shape} is not box, objectness and classes of {num_anchors} anchors; "
            "heads other than for detection cannot be imported"
        )
    weights = re.compile(re.escape(layer) + r"m\.\d+\.weight")
    return _Head(
        num_classes=outputs - _NO_CLASSES,
        widths=[note.shape[1] for name, note in notes.items() if weights.fullmatch(name) and len(note.shape) > 1],
        implicit=f"{layer}ia.0.implicit" in notes,
        auxiliary=f"{layer}m2.0.bias" in notes,
        anchors_px=anchors_px,
    )


def _read_anchors(file: TorchFile, checkpoint: Checkpoint, layer: str, *, spec: ModelSpec) -> Tensor | None:
    """The anchors in pixels, if the checkpoint has them for the spec's levels."""
    notes = {name: checkpoint.tensors[layer + name] for name in _BUFFERS if layer + name in checkpoint.tensors}
    shapes = infer_shapes(spec)
    strides = torch.tensor([float(shapes[source].stride) for source in spec.head.sources])
    if len(notes) < len(_BUFFERS) or any(note.shape[:1] != strides.shape for note in notes.values()):
        return None
    in_strides, grid = (file.read(notes)[name].float() for name in _BUFFERS)
    if in_strides.dim() != 3 or not _are_same_anchors(in_strides, grid, strides):
        raise ArtifactError(
            f"{file.path}: {layer}anchors and {layer}anchor_grid are not the same anchors; mend the file"
        )
    return grid.view_as(in_strides)


def _are_same_anchors(in_strides: Tensor, grid: Tensor, strides: Tensor) -> bool:
    """Whether anchors (levels, anchors, 2) and (levels, 1, anchors, 1, 1, 2) in pixels are equal, and can be sides."""
    pixels = (in_strides * strides.view(-1, 1, 1))[:, None, :, None, None]
    if grid.shape != pixels.shape or grid.shape[-1] != 2 or not grid.numel():
        return False
    return bool((grid.isfinite() & (grid > 0)).all()) and torch.allclose(grid, pixels, rtol=4 * _ROUNDING)


def _adapt(spec: ModelSpec, head: _Head) -> ModelSpec:
    """The spec with the checkpoint's head; anchors that are the spec's but for rounding stay the spec's."""
    row = spec.head.model_copy(update={"implicit": head.implicit})
    if head.anchors_px is not None:
        own = torch.tensor(spec.head.anchors).view(len(spec.head.anchors), -1, 2)
        if own.shape != head.anchors_px.shape or not torch.allclose(own, head.anchors_px, rtol=_ROUNDING):
            # as short as float32 allows: 12.34, not 12.34000015
            levels = ([float(str(side)) for side in level] for level in head.anchors_px.flatten(1).numpy())
            row = row.model_copy(update={"anchors": tuple(tuple(level) for level in levels)})
    changed = ModelSpec.model_validate({**dict(spec), "rows": spec.rows | {spec.head_name: row}})
    return with_auxiliary(changed) if head.auxiliary else without_auxiliary(changed)


def _build(spec: ModelSpec, *, num_classes: int) -> tuple[DetectionModel, ReferenceNames]:
    """The structure alone, on the meta device, and the reference's names for its tensors."""
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=num_classes)
    return model, reference_names(spec, model.state_dict())


def _find_misfit(checkpoint: Checkpoint, model: DetectionModel, names: ReferenceNames) -> str:
    """The first tensor that the checkpoint has otherwise than the model; empty if there is none."""
    own = model.state_dict()
    expected = {name: tuple(own[key].shape) for name, key in names.weights.items()}
    buffers = {names.head + buffer for buffer in _BUFFERS}
    return first_difference(expected, {k: note.shape for k, note in checkpoint.tensors.items() if k not in buffers})


def _find_other_activation(checkpoint: Checkpoint, spec: ModelSpec) -> str:
    """The activation of the checkpoint's modules where it is not the spec's; its weights would not tell."""
    expected = type(make_activation(spec.activation)).__name__
    others = sorted(checkpoint.activations - {expected, "Identity"})
    return f"its activation is {others[0]}, its spec asks for {expected}" if others else ""


def _advise(checkpoint: Checkpoint, head: _Head) -> str:
    """What to do with a checkpoint that does not fit."""
    if any(name.endswith(".conv.bias") for name in checkpoint.tensors):
        return "its batch norms are folded in; give the checkpoint as it was trained"
    for name in list_specs():
        spec, shapes = load_spec(name), infer_shapes(load_spec(name))
        if [shapes[source].channels for source in spec.head.sources] != head.widths:
            continue
        model, names = _build(_adapt(spec, head._replace(anchors_px=None)), num_classes=head.num_classes)
        if not (_find_misfit(checkpoint, model, names) or _find_other_activation(checkpoint, model.spec)):
            return f"it fits spec {name!r}"
    return "give the spec that it was trained with; no packaged one fits"


def _choose_names(
    path: Path, own: tuple[str, ...] | None, given: tuple[str, ...] | None, *, num_classes: int
) -> tuple[str, ...]:
    names = given or own or (COCO_NAMES if num_classes == len(COCO_NAMES) else None)
    if names is None:
        raise ArtifactError(f"{path}: has {num_classes} classes but not their names; give a file of names")
    if len(names) != num_classes:
        whose = "are given" if given else "are in it"
        raise ArtifactError(f"{path}: {len(names)} class names {whose}, and it has {num_classes} classes; give as many")
    return names


def _remarks(spec: ModelSpec, adapted: ModelSpec) -> Iterable[str]:
    if adapted.head.anchors != spec.head.anchors:
        yield f"its anchors are its own: {[list(level) for level in adapted.head.anchors]}"
    if adapted.head.implicit != spec.head.implicit:
        yield f"it has {'' if adapted.head.implicit else 'no '}implicit knowledge"
    if (adapted.head.auxiliary is None) != (spec.head.auxiliary is None):
        yield f"it has {'no' if adapted.head.auxiliary is None else 'an'} auxiliary head"
