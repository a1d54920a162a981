"""Weight files: safetensors whose metadata says all that is needed to build the model again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from yolov7.errors import ArtifactError, SpecError, one_line
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import spec_from_json, spec_to_json
from yolov7.system.files import write_whole

_FORMAT = "yolov7-pipeline weights 1"
_REMEDY = "train again, or name another file"
_TORCH_STARTS = (b"PK", b"\x80\x02")  # of a zip, and of a pickle


@dataclass(frozen=True)
class Weights:
    """What a weight file holds. `image_size`: side of the training images in pixels; `training`: how it was trained."""

    model: DetectionModel
    class_names: tuple[str, ...]
    image_size: int
    training: dict[str, Any]


def save_weights(
    path: str | os.PathLike[str],
    model: DetectionModel,
    *,
    class_names: tuple[str, ...],
    image_size: int,
    training: Mapping[str, Any],
) -> None:
    """Writes the model, fused or not; the file appears whole or not at all."""
    if len(class_names) != model.num_classes:
        raise ValueError(f"{len(class_names)} class names for a model of {model.num_classes} classes")
    metadata = {
        "format": _FORMAT,
        "spec": spec_to_json(model.spec),
        "fused": json.dumps(model.fused),
        "class_names": json.dumps(class_names, ensure_ascii=False),
        "image_size": json.dumps(image_size),
        "training": json.dumps(training),
    }
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    write_whole(Path(path), to_bytes(state, metadata))


def load_weights(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Weights:
    """Reads what `save_weights` wrote, the model in evaluation mode; ArtifactError for any other file."""
    path = Path(path)
    metadata, state = _read(path)
    try:
        class_names = tuple(str(name) for name in json.loads(metadata["class_names"]))
        model = _build(metadata["spec"], num_classes=len(class_names), fused=json.loads(metadata["fused"]))
        image_size, training = int(json.loads(metadata["image_size"])), json.loads(metadata["training"])
    except (KeyError, TypeError, ValueError, SpecError) as error:
        raise ArtifactError(f"{path}: its metadata cannot be used ({one_line(error)}); {_REMEDY}") from None
    _fill(model, state, path=path)
    return Weights(model.to(device).eval(), class_names, image_size, dict(training))


def _build(spec: str, *, num_classes: int, fused: bool) -> DetectionModel:
    """The structure alone: its tensors hold nothing, on the meta device, until they are loaded."""
    with torch.device("meta"):
        model = DetectionModel(spec_from_json(spec), num_classes=num_classes)
        return fuse(model) if fused else model


def _fill(model: DetectionModel, state: dict[str, Tensor], *, path: Path) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    fault = first_difference(expected, found)
    if fault:
        raise ArtifactError(f"{path}: tensors and spec disagree ({fault}); {_REMEDY}")
    model.load_state_dict(state, assign=True)


def first_difference(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """The first tensor, in the order of what is expected, of another shape or in one mapping only; "" if none is."""
    for key in (*expected, *found):
        if expected.get(key) != found.get(key):
            return f"{key} is {found.get(key, 'missing')}, its spec asks for {expected.get(key, 'none')}"
    return ""


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such weight file; {_REMEDY}")
    with path.open("rb") as file:
        if file.read(2) in _TORCH_STARTS:
            raise ArtifactError(f"{path}: is a checkpoint of torch; make a weight file with `yolov7 import-weights`")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ArtifactError(f"{path}: is not a weight file of this program ({_FORMAT!r}); {_REMEDY}")
            return metadata, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: is damaged or no weight file ({one_line(error)}); {_REMEDY}") from None
