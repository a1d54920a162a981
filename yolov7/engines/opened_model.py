"""Open a weight file or an exported model with the engine that runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from yolov7.data.augment.letterbox import FILL
from yolov7.engines.compiled import CompiledEngine, CudaGraphEngine
from yolov7.engines.engine_table import EngineInfo, Kind, choose_engine
from yolov7.engines.metadata import ExportMetadata, read_onnx_texts, read_texts
from yolov7.engines.onnx_runtime import OnnxRuntimeEngine
from yolov7.engines.open_vino import (
    OpenVinoEngine,
    openvino_precisions,
    read_openvino_texts,
    resolve_openvino_precision,
)
from yolov7.engines.proof import PROOF, check_proof
from yolov7.engines.tensor_rt import TensorRtEngine, read_tensorrt_texts
from yolov7.engines.torch_script import TorchScriptEngine, is_torchscript, read_torchscript_texts
from yolov7.errors import ArtifactError, SettingError
from yolov7.inference.engine import Engine, ModelEngine
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.nn.regroup import faster_form
from yolov7.settings import LetterboxMode, NmsSettings
from yolov7.system.files import sha256_of
from yolov7.system.precision import autocast, precision_name, resolve_device, resolve_precision
from yolov7.weights.weight_files import load_weights

_SUFFIXES: dict[str, Kind] = {
    ".onnx": "onnx",
    ".xml": "openvino",
    ".torchscript": "torchscript",
    ".engine": "tensorrt",
}
_READERS = {
    "onnx": read_onnx_texts,
    "openvino": read_openvino_texts,
    "torchscript": read_torchscript_texts,
    "tensorrt": read_tensorrt_texts,
}


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to run, and what its file says about it.

    Attributes:
        engine: What runs the model.
        engine_name: The engine's name, such as `torch` or `openvino`.
        precision: The floating-point type of the computation, or `int8`.
        class_names: Names by label.
        image_size: Side in pixels of the square that images are fitted into.
        path: The file or folder.
        suppression: Settings of the non-maximum suppression inside the file; None if there is none. The engine then
            returns only detections (see `engines.arrays.to_decoded`), and none below its confidence.
        fixed_size: Whether images must have the size `image_size`.
        strides: Stride of each level in pixels, finest first.
        letterbox: How images are brought to the square.
        letterbox_value: Grey level of the padding.
        source: The name of the specification (`spec`) and the hash of the weight file (`weights_sha256`).
        notes: What the user should know about the choice of the engine and the precision.
    """

    engine: Engine
    engine_name: str
    precision: str
    class_names: tuple[str, ...]
    image_size: int
    path: Path
    suppression: NmsSettings | None = None
    fixed_size: bool = False
    strides: tuple[int, ...] = (8, 16, 32)
    letterbox: LetterboxMode = "centre"
    letterbox_value: int = FILL
    source: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def check_confidence(self, nms: NmsSettings) -> None:
        """Raise SettingError if detections that were asked for are left out by the suppression inside the file.

        Args:
            nms: The thresholds; a confidence that is a default and was not stated is not checked.
        """
        if self.suppression is None or "confidence" not in nms.model_fields_set:
            return
        if nms.confidence < self.suppression.confidence:
            raise SettingError(
                f"confidence={nms.confidence:g}: {self.path} contains its suppression, which leaves out detections "
                f"below {self.suppression.confidence:g}; use at least that, or export the model again with a lower one"
            )


def open_model(
    path: str | os.PathLike[str], *, engine: str = "auto", device: str = "auto", precision: str = "auto"
) -> OpenedModel:
    """Open a weight file or an exported model.

    Args:
        path: A weight file, an exported file, or a folder with an exported model.
        engine: Name of the engine; `auto` is the fastest one that is installed and that runs the file, of those in
            which the file was verified when it was exported. A weight file is run by torch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `bfloat16` or `float16`; `auto` is the fastest of these on the device in which the
            file was verified.

    Returns:
        The model.

    Raises:
        ArtifactError: If the file is not a model, or was changed after it was verified.
        SettingError: If the engine, the device or the precision is unknown or not available.
    """
    path = Path(path)
    file = _find_file(path)
    kind = _kind_of(file)
    where = resolve_device(device)
    if kind == "weights":
        return _open_weights(path, choose_engine(engine, kind, device=where.type), where, precision)
    if kind == "openvino":
        choose_engine(engine, kind)  # before the package is needed to read the file
    metadata = read_texts(file, _READERS[kind](file))
    verified = check_proof(file)
    engines = [name for name, _ in verified or ()]
    chosen = choose_engine(engine, kind, made_for=metadata.engines, verified=engines, device=where.type)
    wanted, notes = _verified_precision(chosen, metadata, precision, verified)
    runner, computed = _start(chosen, file, metadata, device=device, precision=wanted)
    if verified is not None and (chosen.name, computed) not in verified:
        notes = (f"{file} was not verified with {chosen.name} in {computed}; export it again on this machine",)
    return OpenedModel(
        engine=runner,
        engine_name=chosen.name,
        precision=computed,
        class_names=metadata.class_names,
        image_size=metadata.image_size,
        path=path,
        suppression=metadata.nms,
        fixed_size=metadata.fixed_size,
        strides=metadata.strides,
        letterbox=metadata.letterbox,
        letterbox_value=metadata.letterbox_value,
        source={"spec": metadata.spec_name, "weights_sha256": metadata.weights_sha256},
        notes=notes,
    )


def _find_file(path: Path) -> Path:
    """Return the model of a folder; other paths are returned as they are."""
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise ArtifactError(f"{path}: must contain one exported model, and it contains {names}; name the file itself")


def _kind_of(file: Path) -> Kind:
    if file.suffix in _SUFFIXES:
        return _SUFFIXES[file.suffix]
    if file.name == PROOF:
        raise ArtifactError(f"{file}: describes an exported model; name the model or its folder instead")
    return "torchscript" if is_torchscript(file) else "weights"


def _open_weights(path: Path, chosen: EngineInfo, device: torch.device, precision: str) -> OpenedModel:
    dtype = resolve_precision(precision, device)
    weights = load_weights(path, device=device)
    deployed = weights.model if weights.model.fused else fuse(weights.model)
    with autocast(dtype, device):
        model = faster_form(deployed.eval(), torch.zeros(1, 3, *[weights.image_size] * 2, device=device))
    if device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    makers: dict[str, Callable[[DetectionModel, torch.dtype], Engine]] = {
        "torch": ModelEngine,
        "torch-compile": CompiledEngine,
        "cuda-graphs": CudaGraphEngine,
    }
    return OpenedModel(
        engine=makers[chosen.name](model, dtype),
        engine_name=chosen.name,
        precision=precision_name(dtype),
        class_names=weights.class_names,
        image_size=weights.image_size,
        path=path,
        strides=model.strides,
        letterbox=weights.letterbox,
        source={"spec": model.spec.name, "weights_sha256": sha256_of(path)},
    )


def _verified_precision(
    chosen: EngineInfo, metadata: ExportMetadata, precision: str, verified: Sequence[tuple[str, str]] | None
) -> tuple[str, tuple[str, ...]]:
    """Return the precision to use; where the fastest one was not verified, one that was, and a note about it."""
    if precision != "auto" or chosen.name != "openvino":
        return precision, ()
    able = openvino_precisions(metadata)
    wanted = next((one for one in able if (chosen.name, one) in (verified or ())), able[0])
    if wanted == able[0]:
        return wanted, ()
    note = f"{chosen.name} runs in {wanted}, because {able[0]} was not verified; export the model on this machine"
    return wanted, (note,)


def _start(
    chosen: EngineInfo, file: Path, metadata: ExportMetadata, *, device: str, precision: str
) -> tuple[Engine, str]:
    """Return the engine, and the type in which it computes."""
    where = resolve_device("cpu" if device == "auto" and not chosen.runs_on_gpu() else device)
    if where.type not in chosen.devices:
        raise SettingError(f"device={device!r}: the engine {chosen.name!r} runs only on {' and '.join(chosen.devices)}")
    if chosen.name == "openvino":
        computed = resolve_openvino_precision(precision, metadata)
        return OpenVinoEngine(file, metadata, precision=computed), computed
    if precision not in ("auto", metadata.precision):
        raise SettingError(
            f"precision={precision!r}: {file} was exported in {metadata.precision}; use 'auto', or export it again"
        )
    match chosen.name:
        case "onnxruntime":
            return OnnxRuntimeEngine(file, metadata, device=where), metadata.precision
        case "torchscript":
            return TorchScriptEngine(file, metadata, device=where), metadata.precision
        case _:
            return TensorRtEngine(file, metadata, device=where), metadata.precision
