"""Weight files: safetensors whose metadata holds everything that is needed to rebuild the model.

Two saves of equal content give equal bytes. Reading never builds anything larger than what the file contains: the
metadata is validated first, then the names, shapes and types of the tensors, and only then their values are read.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Json, ValidationError
from safetensors.torch import save as to_bytes

from yolov7.errors import ArtifactError, SettingError, SpecError, one_line
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.settings import LetterboxMode
from yolov7.spec.block_schema import BottleneckRow, CspRepRow, CspRow, ElanRow
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import spec_from_json, spec_to_json
from yolov7.system.files import is_file, why_no_file, write_whole

FORMAT = "yolov7-pipeline weights 1"
"""What the metadata of a weight file state as its format."""

_REMEDY = "train again, or name another file"
_TORCH_STARTS = (b"PK", *(bytes((0x80, protocol)) for protocol in range(2, 6)))  # a zip archive, and pickles
_MAX_CLASSES = 100_000
_MAX_IMAGE_SIZE = 8192  # pixels, as for training
_SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


@dataclass(frozen=True)
class Weights:
    """The content of a weight file.

    Attributes:
        model: The model, in evaluation mode.
        class_names: The names of the classes, in the order of the model's outputs.
        image_size: The side of the square training images in pixels.
        training: How the model was trained, such as `epochs`, `seed` and `ancestors` (see `averaging.lineage`).
        letterbox: How the model expects images to be brought to a square.
    """

    model: DetectionModel
    class_names: tuple[str, ...]
    image_size: int
    training: dict[str, Any]
    letterbox: LetterboxMode = "centre"


def _check_training(training: dict[str, Any]) -> dict[str, Any]:
    for key in ("ancestors", "soup"):
        ids = training.get(key, [])
        if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
            raise ValueError(f"{key} must be a list of texts")
    return training


class _Metadata(BaseModel):
    """The metadata of a weight file, whose values are texts; all but `spec` are JSON."""

    model_config = ConfigDict(strict=True, frozen=True)
    format: Literal["yolov7-pipeline weights 1"]
    spec: str
    fused: Json[bool]
    class_names: Json[Annotated[tuple[str, ...], Field(min_length=1, max_length=_MAX_CLASSES)]]
    image_size: Json[Annotated[int, Field(ge=1, le=_MAX_IMAGE_SIZE)]]
    training: Json[Annotated[dict[str, Any], AfterValidator(_check_training)]]
    letterbox: Json[LetterboxMode] = "centre"


def save_weights(
    path: str | os.PathLike[str],
    model: DetectionModel,
    *,
    class_names: tuple[str, ...],
    image_size: int,
    training: Mapping[str, Any],
    letterbox: LetterboxMode = "centre",
) -> None:
    """Write a model to a weight file. The file appears complete or not at all.

    Args:
        path: The file to write, usually `*.safetensors`; missing parent folders are created.
        model: The model, re-parameterised or not, on any device.
        class_names: One name per class of the model.
        image_size: The side of the square training images in pixels.
        training: How the model was trained; values that JSON can represent.
        letterbox: How the model expects images to be brought to a square. Training centres them.

    Raises:
        ValueError: The number of class names is not the model's number of classes.
        OSError: The file cannot be written.
    """
    if len(class_names) != model.num_classes:
        raise ValueError(f"{len(class_names)} class names for a model of {model.num_classes} classes")
    metadata = {
        "format": FORMAT,
        "spec": spec_to_json(model.spec),
        "fused": json.dumps(model.fused),
        "class_names": json.dumps(class_names, ensure_ascii=False),
        "image_size": json.dumps(image_size),
        "training": json.dumps(training),
    }
    if letterbox != "centre":
        metadata["letterbox"] = json.dumps(letterbox)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    write_whole(Path(path), _sort_header(to_bytes(state, metadata)))


def load_weights(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Weights:
    """Read a file that `save_weights` wrote.

    Args:
        path: The weight file.
        device: The device that the model is moved to.

    Returns:
        The model in evaluation mode, with what the metadata says about it.

    Raises:
        ArtifactError: The file is missing, damaged, or not a weight file of this program.
    """
    path = Path(path)
    _check_kind(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = _read_metadata(path, file.metadata() or {})
            names = list(file.keys())
            model = _build(path, metadata, num_tensors=len(names))
            slices = {name: file.get_slice(name) for name in names}
            _check_tensors(path, model, {k: (tuple(s.get_shape()), s.get_dtype()) for k, s in slices.items()})
            state = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: is damaged or not a weight file ({one_line(error)}); {_REMEDY}") from None
    model.load_state_dict(state, assign=True)
    model = model.to(device).eval()
    return Weights(model, metadata.class_names, metadata.image_size, dict(metadata.training), metadata.letterbox)


def stated_format(path: str | os.PathLike[str]) -> str | None:
    """Read which format a safetensors file states.

    Args:
        path: Any file.

    Returns:
        `FORMAT` for weight files of this program; another or an empty text for other safetensors files; None for a
        file that is missing, damaged or not in the safetensors format.
    """
    if not is_file(Path(path)):
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return str((file.metadata() or {}).get("format", ""))
    except (safetensors.SafetensorError, OSError):
        return None


def first_difference(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Describe the first tensor whose shape differs, or that only one of two mappings has.

    Args:
        expected: Shapes by the name of their tensor, in the order in which they are compared.
        found: Shapes by the name of their tensor.

    Returns:
        A phrase for an error message; an empty string if all shapes are equal.
    """
    for key in (*expected, *found):
        if expected.get(key) != found.get(key):
            return f"{key} is {found.get(key, 'missing')}, its spec asks for {expected.get(key, 'none')}"
    return ""


def _sort_header(content: bytes) -> bytes:
    """Return the bytes of a safetensors file with the keys of its header sorted.

    The library writes the metadata in random order. A file is the length of the header (8 bytes), the header (JSON),
    and the values of the tensors, whose places the header gives relative to its own end.
    """
    (length,) = struct.unpack_from("<Q", content)
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)  # the values must start at a multiple of 8 bytes
    return b"".join((struct.pack("<Q", len(encoded)), encoded, memoryview(content)[8 + length :]))


def _check_kind(path: Path) -> None:
    """Raise ArtifactError for files that are known to be something else."""
    if not is_file(path):
        is_folder = why_no_file(path) == "is a folder"
        fault = "is a folder, not a weight file" if is_folder else "there is no such weight file"
        raise ArtifactError(f"{path}: {fault}; {_REMEDY}")
    with path.open("rb") as file:
        if file.read(2) in _TORCH_STARTS:
            raise ArtifactError(
                f"{path}: is a PyTorch checkpoint, not a weight file; `yolov7 import-weights` converts it"
            )


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> _Metadata:
    if metadata.get("format") != FORMAT:
        raise ArtifactError(f"{path}: is not a weight file of this program ({FORMAT!r}); {_REMEDY}")
    try:
        return _Metadata.model_validate(metadata)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in details["loc"])
        raise _unusable(path, f"{key}: {details['msg']}") from None


def _build(path: Path, metadata: _Metadata, *, num_tensors: int) -> DetectionModel:
    """Build the modules of the model; their tensors are on the meta device and take no memory."""
    try:
        spec = spec_from_json(metadata.spec)
        if _fewest_tensors(spec) > num_tensors:
            raise _unusable(path, f"its spec needs at least {_fewest_tensors(spec)} tensors, it holds {num_tensors}")
        with torch.device("meta"):
            model = DetectionModel(spec, num_classes=len(metadata.class_names))
            return fuse(model) if metadata.fused else model
    except SpecError as error:
        raise _unusable(path, error) from None
    except SettingError as error:  # a block of a package that is missing or not allowed
        raise ArtifactError(one_line(f"{path}: {error}")) from None


def _fewest_tensors(spec: ModelSpec) -> int:
    """Count the convolutions of the rows that can have many of them: a lower bound that takes no time to find."""
    count = 0
    for row in spec.rows.values():
        if isinstance(row, ElanRow):
            count += row.num_convs * (1 if row.grouped else row.cardinality)
        elif isinstance(row, (CspRow, CspRepRow, BottleneckRow)):
            count += 2 * row.depth
    return count


def _check_tensors(path: Path, model: DetectionModel, found: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Raise ArtifactError if a tensor is missing, unknown, or has another shape or type than the model's."""
    own = model.state_dict()
    shapes = {name: shape for name, (shape, _) in found.items()}
    fault = first_difference({name: tuple(tensor.shape) for name, tensor in own.items()}, shapes)
    for name, tensor in own.items():
        if not fault and found[name][1] != _SAFETENSORS_TYPES[tensor.dtype]:
            fault = f"{name} has values of type {found[name][1]}, its spec asks for {_SAFETENSORS_TYPES[tensor.dtype]}"
    if fault:
        raise ArtifactError(f"{path}: tensors and spec disagree ({fault}); {_REMEDY}")


def _unusable(path: Path, fault: object) -> ArtifactError:
    return ArtifactError(f"{path}: its metadata cannot be used ({one_line(fault)}); {_REMEDY}")
