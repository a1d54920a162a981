"""Export a weight file, verify the result, and write both or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yolov7.data.augment.letterbox import FILL, letterbox
from yolov7.data.images import Image, read_image
from yolov7.data.index import ImageIndex
from yolov7.data.synthetic.scene import draw_scene
from yolov7.engines.metadata import ExportMetadata
from yolov7.engines.proof import PROOF, read_proof
from yolov7.errors import ArtifactError, SettingError, shown
from yolov7.export.formats import FORMATS, ExportSettings, Format, check_settings, engines_of, installed
from yolov7.export.graph import ExportedGraph, count_boxes
from yolov7.export.quantise import float_layer_sets, quantise_openvino, rank_layers, write_int8_onnx
from yolov7.export.report import ExportReport, write_proof
from yolov7.export.verify import Reference, Verified, check_fusing, verify
from yolov7.export.writers import save_openvino, write_onnx, write_openvino, write_tensorrt, write_torchscript
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.nn.regroup import regroup
from yolov7.settings import LetterboxMode, NmsSettings
from yolov7.spec.spec_files import spec_to_json
from yolov7.system.files import sha256_of
from yolov7.weights.weight_files import Weights, load_weights

MOST_TRAINING_IMAGES = 1000
"""The largest number of training images on which AP is measured if a project has no validation split."""

_IMAGES = 16  # on which outputs are compared
_CALIBRATION_IMAGES = 160
_SCENES = 8  # that are drawn if there are no images
_LARGEST_BATCH = 16  # of a TensorRT engine
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt")


@dataclass(frozen=True)
class ExportData:
    """What an export is verified on.

    Attributes:
        index: A split on which AP is measured, whose classes are those of the model; None if there is none. INT8 needs
            one.
        images: Image files on which outputs are compared if there is no split. Without both, images are drawn.
        calibration: Image files from which the ranges of INT8 are taken. Without them, the other images are used.
        name: Where the images are from, for the report.
    """

    index: ImageIndex | None = None
    images: Sequence[Path] = ()
    calibration: Sequence[Path] = ()
    name: str = "drawn images"


def export_model(
    weights_path: str | os.PathLike[str],
    *,
    format: str,
    output: str | os.PathLike[str] | None = None,
    nms: NmsSettings | None = None,
    dynamic: bool = False,
    precision: str = "float32",
    layout: str = "rgb_nchw",
    data: ExportData = ExportData(),
    tolerance_ap: float | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[ExportReport, Path]:
    """Export a model, and verify the file against torch in float32 before it gets its name.

    A model that is not re-parameterised is re-parameterised first, and the result is compared with the original.

    Args:
        weights_path: A weight file.
        format: The format.
        output: The file to write, or a folder for it; None for a folder beside the weight file.
        nms: Settings of the suppression inside the file; None for decoded predictions as output.
        dynamic: Whether the file takes images of any size whose sides are multiples of the largest stride; the size of
            the batch is always dynamic.
        precision: Type of the stored numbers; `FORMATS` lists those of each format.
        layout: Order of the channels and axes of the input.
        data: What the file is verified on.
        tolerance_ap: Largest change of AP, as a fraction; None for the default of each precision.
        progress: Called with the name of each step.

    Returns:
        The report, and the path of the file; `export.json` lies beside it.

    Raises:
        ArtifactError: If the weights cannot be used, or if a difference exceeds its tolerance.
        SettingError: If the format cannot be written as asked.
    """
    weights_path = Path(weights_path)
    settings = check_settings(format, nms=nms, dynamic=dynamic, precision=precision, layout=layout)
    weights = load_weights(weights_path)
    target = _target(weights_path, output, settings.format)
    _check_data(data, weights, weights_path, precision=settings.precision)
    images = _sample(data, weights.image_size, weights.letterbox)
    deployed, fuse_error = _deploy(weights.model, images)
    metadata = _describe(weights, weights_path, settings)
    with _draft(target, PROOF) as draft:
        reference = Reference(weights.model, images, data.index, nms, fuse_error, weights.letterbox)
        checked, float_layers = _write_verified(
            draft / target.name, deployed, metadata, settings.format, reference, data, tolerance_ap, progress
        )
        report = _report(
            draft / target.name, weights_path, settings, metadata, checked, data=data.name, float_layers=float_layers
        )
        write_proof(draft / PROOF, report)
    return report, target


def _check_data(data: ExportData, weights: Weights, path: Path, *, precision: str) -> None:
    """Raise SettingError if the data do not suffice to verify a file of this precision."""
    if data.index is not None and data.index.class_names != weights.class_names:
        raise SettingError(
            f"data={data.name} has the classes {shown(list(data.index.class_names))}, and {path} has "
            f"{shown(list(weights.class_names))}; name data with the classes of the weights"
        )
    if precision == "int8" and (data.index is None or not data.index.num_boxes):
        raise SettingError(
            "precision='int8' needs annotated images with the classes of the weights, because AP decides which layers "
            "stay in floating point; name them with --data"
        )


def _report(
    file: Path,
    weights: Path,
    settings: ExportSettings,
    metadata: ExportMetadata,
    checked: Verified,
    *,
    data: str,
    float_layers: tuple[str, ...] | None,
) -> ExportReport:
    files = sorted(file.parent.iterdir())
    return ExportReport(
        file=file.name,
        files={path.name: sha256_of(path) for path in files},
        bytes=sum(path.stat().st_size for path in files),
        format=settings.format,
        model=metadata.model_dump(mode="json", exclude={"spec"}),
        outputs=metadata.outputs,
        spec=metadata.spec_name,
        weights=weights.name,
        fuse_error=checked.fuse_error,
        float_layers=float_layers,
        images=checked.images,
        data=data,
        AP_images=checked.AP_images,
        AP=checked.AP,
        torch_ms=checked.torch_ms,
        checks=checked.checks,
        tolerances=checked.tolerances,
        versions={name: found for name in _VERSIONS if (found := installed(name))},
    )


def _describe(weights: Weights, path: Path, settings: ExportSettings) -> ExportMetadata:
    return ExportMetadata(
        class_names=weights.class_names,
        image_size=weights.image_size,
        letterbox=weights.letterbox,
        strides=weights.model.strides,
        letterbox_value=FILL,
        fixed_size=not settings.dynamic and settings.format != "torchscript",
        input=settings.layout,
        precision=settings.precision,
        engines=engines_of(settings.format, settings.precision),
        nms=settings.nms,
        spec=spec_to_json(weights.model.spec),
        weights_sha256=sha256_of(path),
    )


def _target(weights: Path, output: str | os.PathLike[str] | None, format: Format) -> Path:
    """Return the file to write; raise SettingError if its name does not fit or its folder has another export."""
    suffix = FORMATS[format].suffix
    chosen = weights.with_name(f"{weights.stem}-{format}") if output is None else Path(output)
    if chosen.suffix != suffix and (chosen.is_file() or chosen.suffix in {info.suffix for info in FORMATS.values()}):
        raise SettingError(f"output={chosen} must end in {suffix} or be a folder; try {chosen.with_suffix(suffix)}")
    target = chosen if chosen.suffix == suffix else chosen / f"model{suffix}"
    other = read_proof(target.parent).get("file", target.name)
    if other != target.name:
        raise SettingError(f"output={chosen}: {target.parent} contains the export {other}; choose another folder")
    return target


def _sample(data: ExportData, size: int, mode: LetterboxMode, *, count: int = _IMAGES) -> Tensor:
    """Return letterboxed images (n, 3, S, S) uint8: spread over the data, or drawn."""
    paths = data.images if data.index is None else data.index.paths
    if paths:
        step = max(1, len(paths) // count)
        images: list[Image] = [read_image(path) for path in paths[::step][:count]]
    else:
        generator = np.random.default_rng(0)
        images = [draw_scene(size, generator=generator).image for _ in range(_SCENES)]
    return torch.from_numpy(np.stack([letterbox(image, size=size, mode=mode)[0] for image in images])).permute(
        0, 3, 1, 2
    )


def _deploy(model: DetectionModel, images: Tensor) -> tuple[DetectionModel, float | None]:
    """Return the re-parameterised model with its E-ELANs side by side, and its error."""
    fused = model if model.fused else fuse(model)
    deployed = regroup(fused, grouped=False).eval()
    return deployed, None if model.fused else check_fusing(model, deployed, images)


def _write_verified(
    file: Path,
    model: DetectionModel,
    metadata: ExportMetadata,
    format: Format,
    reference: Reference,
    data: ExportData,
    tolerance_ap: float | None,
    progress: Callable[[str], None],
) -> tuple[Verified, tuple[str, ...] | None]:
    """Write and verify the file; keep more layers of an INT8 file in floating point until it passes.

    Returns:
        What was measured, and the layers outside of the head that stay in floating point; None if none is quantised.
    """
    if metadata.precision != "int8":
        progress("writing the file")
        _write(file, model, metadata, format)
        return verify(file, metadata, reference, tolerance_ap=tolerance_ap, progress=progress), None
    float_file = file.with_name("graph.onnx")
    progress("writing the graph in float32")
    _write(float_file, model, metadata.model_copy(update={"precision": "float32"}), "onnx")
    calibration = reference.images
    if data.calibration:
        chosen = ExportData(images=data.calibration)
        calibration = _sample(chosen, metadata.image_size, metadata.letterbox, count=_CALIBRATION_IMAGES)
    failure: ArtifactError | None = None
    sets = float_layer_sets(
        lambda: rank_layers(model, calibration, progress=lambda done, of: progress(f"layer {done} of {of}"))
    )
    try:
        for float_layers in sets:
            progress(f"quantising, {len(float_layers)} layers in floating point")
            if format == "onnx":
                write_int8_onnx(file, float_file, metadata, images=calibration, float_layers=float_layers)
            else:
                quantised = quantise_openvino(float_file, images=calibration, float_layers=float_layers)
                save_openvino(file, quantised, metadata)
            try:
                return verify(file, metadata, reference, tolerance_ap=tolerance_ap, progress=progress), float_layers
            except ArtifactError as error:
                failure = error
    finally:
        float_file.unlink(missing_ok=True)
    raise failure or AssertionError("no set of layers was tried")


def _write(file: Path, model: DetectionModel, metadata: ExportMetadata, format: Format) -> None:
    # OpenVINO converts the numbers itself, when it saves the model.
    dtype = torch.float32 if format == "openvino" else getattr(torch, metadata.precision)
    boxes = count_boxes(model, metadata.image_size) if metadata.fixed_size else None
    graph = ExportedGraph(model, dtype=dtype, nms=metadata.nms, num_boxes=boxes)
    onnx_file = file.with_name("graph.onnx")
    match format:
        case "onnx":
            write_onnx(file, graph, metadata)
        case "openvino":
            write_onnx(onnx_file, graph, metadata)
            write_openvino(file, onnx_file, metadata)
        case "torchscript":
            write_torchscript(file, graph, metadata)
        case "tensorrt":
            write_onnx(onnx_file, graph, metadata)
            write_tensorrt(file, onnx_file, metadata, largest_batch=_LARGEST_BATCH)
    if format != "onnx":
        onnx_file.unlink(missing_ok=True)


@contextmanager
def _draft(target: Path, *last: str) -> Iterator[Path]:
    """Provide a folder whose files move beside `target` when the body ends, and are removed if it fails.

    Args:
        target: The file that the body writes.
        last: Names of the files that move last.
    """
    created = [folder for folder in target.parents if not folder.exists()]
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of an export that was killed
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in sorted(draft.iterdir(), key=lambda path: path.name in last):
            path.replace(target.with_name(path.name))
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for folder in created:
            if not any(folder.iterdir()):
                folder.rmdir()
