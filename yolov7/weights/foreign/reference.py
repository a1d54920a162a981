"""Import models from files of other implementations, and export models in the reference implementation's format."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from yolov7.data.coco_names import COCO_NAMES
from yolov7.errors import ArtifactError, one_line
from yolov7.nn.model import DetectionModel
from yolov7.nn.regroup import regroup, regroup_spec
from yolov7.spec.anchor_free import anchor_based_head
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import load_spec
from yolov7.system.files import is_file, write_whole
from yolov7.weights.foreign.anchor_free import Family, find_family, find_specs_of_family, fit_family, read_tensors
from yolov7.weights.foreign.darknet import DARKNET_SPECS, find_darknet_specs, is_darknet, misfit, read_darknet
from yolov7.weights.foreign.detection_head import BUFFERS, Head, read_head
from yolov7.weights.foreign.fitting import find_specs, fit
from yolov7.weights.foreign.model_file import ForeignModel, open_safetensors_model, open_torch_model
from yolov7.weights.foreign.pixels import take_rgb
from yolov7.weights.foreign.reference_names import reference_names
from yolov7.weights.foreign.torch_file import naming_file
from yolov7.weights.weight_files import FORMAT, Weights, load_weights, stated_format

_TORCH_STARTS = (b"PK", b"\x80")  # the first bytes of a zip archive and of a pickle
_PADDLE = ".pdparams"
_OWN_SPEC = "give the spec that it was trained with"
_ChooseNames = Callable[..., tuple[str, ...]]


class Imported(NamedTuple):
    """An imported model.

    Attributes:
        weights: The model, in evaluation mode and float32, with its class names.
        remarks: One phrase for each way in which the model differs from the requested spec, and for what the user
            should know about the implementation that wrote the file.
    """

    weights: Weights
    remarks: tuple[str, ...]


def import_checkpoint(
    path: str | os.PathLike[str],
    *,
    spec: ModelSpec | None = None,
    class_names: tuple[str, ...] | None = None,
    take_rgb: bool = False,
) -> Imported:
    """Import a model from a file of another implementation. Nothing in a pickle is executed.

    The content of the file decides how it is read. It can be a checkpoint or a state dict of the reference
    implementation, as it is or re-parameterised, written by torch.save or in a safetensors file; a file of
    MultimediaTechLab/YOLO or LibreYOLO; a state dict of YOLOv5, YOLOX, PP-YOLOE or YOLOv7-u6; or a weight file of
    darknet. The model follows the file in its number of
    classes, its anchors, and whether it has implicit knowledge and an auxiliary head, so that training and deploy forms
    fit the same spec.

    Args:
        path: The file.
        spec: The spec that the model was trained with. By default, it is the packaged spec that the file fits.
        class_names: The names of the classes. By default, they are the file's own; if it has none but has 80 classes,
            they are COCO's.
        take_rgb: Whether to change the first convolution of a model that was trained with other pixels (YOLOX,
            PP-YOLOE), so that it takes RGB images in 0..1, as the detector, training and evaluation of this library
            give them. Without it, the model computes exactly what the original does, for the original's pixels.

    Returns:
        The model and the ways in which it differs from the spec.

    Raises:
        ArtifactError: The file is missing or damaged, or fits no spec or several ones.
        SpecError: The spec has a module that the reference implementation does not have.
    """
    return _import(Path(path), spec=spec, fallback=None, class_names=class_names, unnamed=False, rgb=take_rgb)


def open_weights(path: str | os.PathLike[str], *, spec: ModelSpec | None) -> Weights:
    """Open a file of any kind that this library reads: its own weight files and those of other implementations.

    Args:
        path: The file.
        spec: The spec of a foreign file that fits several packaged specs, or none; None if it is unknown.

    Returns:
        The model. Its classes are named by their numbers if the file does not have their names.

    Raises:
        ArtifactError: The file is missing or damaged, or does not fit the spec.
        SpecError: The spec has a module that the reference implementation does not have.
    """
    path = Path(path)
    if _is_foreign(path):
        return _import(path, spec=None, fallback=spec, class_names=None, unnamed=True, rgb=True).weights
    return load_weights(path)


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
    anchor_based_head(model.spec)
    own = model.state_dict()
    names = reference_names(model.spec, own)
    anchors_px = model.anchors_px.float()  # levels anchors 2
    strides = torch.tensor(model.strides, dtype=torch.float32, device=anchors_px.device).view(-1, 1, 1)
    anchors = (anchors_px / strides, anchors_px[:, None, :, None, None, :])
    state: dict[str, Tensor] = {}
    for name, key in names.weights.items():
        if name.startswith(names.head):  # the buffers precede the first of them
            state |= {names.head + buffer: tensor.contiguous() for buffer, tensor in zip(BUFFERS, anchors, strict=True)}
        state[name] = own[key].detach()
    return state


def _import(
    path: Path,
    *,
    spec: ModelSpec | None,
    fallback: ModelSpec | None,
    class_names: tuple[str, ...] | None,
    unnamed: bool,
    rgb: bool,
) -> Imported:
    """Import a file of any kind; `fallback` is the spec of a file that fits several packaged specs, or none."""
    choose_names = partial(_choose_names, path, given=class_names, unnamed=unnamed)
    start, format_ = _read_start(path), stated_format(path)
    if path.suffix == _PADDLE and is_file(path):
        raise ArtifactError(
            f"{path}: is a file of PaddlePaddle, whose pickles are not read; load it there, and write its arrays with "
            "safetensors.numpy.save_file"
        )
    if format_ == FORMAT:
        raise ArtifactError(f"{path}: is a weight file of this program already; use it as it is")
    if format_ is not None:
        return _import_named(open_safetensors_model(path), spec, fallback, choose_names, rgb=rgb)
    if start.startswith(_TORCH_STARTS):
        return _import_named(open_torch_model(path), spec, fallback, choose_names, rgb=rgb)
    if is_darknet(start) or (start and path.suffix == ".weights"):
        return _import_darknet(path, spec, fallback, choose_names)
    # The reader says what is wrong with the file.
    return _import_named(open_torch_model(path), spec, fallback, choose_names, rgb=rgb)


def _is_foreign(path: Path) -> bool:
    start, format_ = _read_start(path), stated_format(path)
    if format_ is not None:  # the length of its header may look like the start of another kind of file
        return format_ == ""
    return start.startswith(_TORCH_STARTS) or is_darknet(start)


def _read_start(path: Path) -> bytes:
    if not is_file(path):
        return b""  # the reader of the file says what is wrong with it
    with naming_file(path), path.open("rb") as file:
        return file.read(16)


def _import_named(
    foreign: ForeignModel, spec: ModelSpec | None, fallback: ModelSpec | None, choose_names: _ChooseNames, *, rgb: bool
) -> Imported:
    """Import a model whose tensors have names."""
    if family := find_family(foreign):
        return _import_anchor_free(foreign, family, spec, fallback, choose_names, rgb=rgb)
    head = read_head(foreign)
    if spec is None:
        spec = _only_spec(foreign.path, find_specs(foreign, head), fallback)
    model, adapted, names, fault = fit(spec, foreign, head)
    if fault:
        raise _misfit(foreign, spec, fault, fitting=find_specs(foreign, head))
    class_names = choose_names(foreign.class_names, num_classes=model.num_classes)
    own = model.state_dict()
    model.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in foreign.read(names).items()}, assign=True)
    if model.spec != adapted:
        model = regroup(model, grouped=True)
    weights = Weights(model.eval(), class_names, spec.image_size, {"imported": foreign.path.name})
    return Imported(weights, (*_remarks(spec, adapted, head), *foreign.remarks))


def _import_anchor_free(
    foreign: ForeignModel,
    family: Family,
    spec: ModelSpec | None,
    fallback: ModelSpec | None,
    choose_names: _ChooseNames,
    *,
    rgb: bool,
) -> Imported:
    if spec is None:
        spec = _only_spec(foreign.path, find_specs_of_family(foreign, family), fallback)
    fitted = fit_family(spec, foreign, family)
    if fitted.fault:
        raise _misfit(foreign, spec, fitted.fault, fitting=find_specs_of_family(foreign, family))
    model = fitted.model
    class_names = choose_names(foreign.class_names, num_classes=model.num_classes)
    model.load_state_dict(read_tensors(foreign, fitted), assign=True)
    origin = {"imported": foreign.path.name}
    weights = Weights(model.eval(), class_names, spec.image_size, origin, letterbox=family.letterbox)
    if family.pixels is None or not rgb:
        return Imported(weights, foreign.remarks)
    take_rgb(model, family.pixels)
    remark = f"its first convolution was changed to take RGB in 0..1 instead of {family.pixels.text}"
    return Imported(weights, (*foreign.remarks, remark))


def _misfit(foreign: ForeignModel, spec: ModelSpec, fault: str, *, fitting: list[str]) -> ArtifactError:
    advice = f"it fits spec {fitting[0]!r}" if fitting else f"{_OWN_SPEC}; no packaged one fits"
    return ArtifactError(f"{foreign.path}: does not fit spec {spec.name!r} ({one_line(fault)}); {advice}")


def _import_darknet(
    path: Path, spec: ModelSpec | None, fallback: ModelSpec | None, choose_names: _ChooseNames
) -> Imported:
    if spec is None:
        fitting = find_darknet_specs(path)
        if not fitting and fallback is None:
            raise misfit(path, [load_spec(name) for name in DARKNET_SPECS])
        spec = _only_spec(path, fitting, fallback)
    model, remarks, letterbox = read_darknet(path, spec=spec)
    class_names = choose_names(None, num_classes=model.num_classes)
    weights = Weights(model.eval(), class_names, spec.image_size, {"imported": path.name}, letterbox=letterbox)
    return Imported(weights, remarks)


def _only_spec(path: Path, fitting: list[str], fallback: ModelSpec | None) -> ModelSpec:
    """Return the only spec that a file fits, or else the fallback."""
    if len(fitting) == 1:
        return load_spec(fitting[0])
    if fallback is not None:
        return fallback
    if fitting:
        raise ArtifactError(f"{path}: fits the specs {' and '.join(fitting)}; give the one that it was trained with")
    raise ArtifactError(f"{path}: fits no packaged spec; {_OWN_SPEC}")


def _choose_names(
    path: Path, own: tuple[str, ...] | None, *, given: tuple[str, ...] | None, unnamed: bool, num_classes: int
) -> tuple[str, ...]:
    names = given or own or (COCO_NAMES if num_classes == len(COCO_NAMES) else None)
    if names is None and unnamed:
        return tuple(str(number) for number in range(num_classes))
    if names is None:
        raise ArtifactError(f"{path}: has {num_classes} classes but not their names; give the names")
    if len(names) != num_classes:
        source = "are given" if given else "are in it"
        raise ArtifactError(
            f"{path}: {len(names)} class names {source}, but it has {num_classes} classes; give one name per class"
        )
    return names


def _remarks(spec: ModelSpec, adapted: ModelSpec, head: Head) -> Iterable[str]:
    asked, found = anchor_based_head(spec), anchor_based_head(adapted)
    if found.anchors != asked.anchors:
        yield f"its anchors differ from the spec's: {[list(level) for level in found.anchors]}"
    if head.fused:
        yield "it is re-parameterised: it can be evaluated and exported, but not trained further"
    elif found.implicit != asked.implicit:
        yield f"it has {'' if found.implicit else 'no '}implicit knowledge"
    if (found.auxiliary is None) != (asked.auxiliary is None) and not head.fused:
        yield f"it has {'no' if found.auxiliary is None else 'an'} auxiliary head"
