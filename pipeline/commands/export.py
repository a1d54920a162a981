"""The command `export`: a weight file as a file for another program or engine, with a proof that it is equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline.commands.model_file import model_file
from pipeline.console import console, stage_line
from yolov7.data.find_data import find_data, parse_split, read_split
from yolov7.data.images import IMAGE_SUFFIXES
from yolov7.data.index import load_index
from yolov7.data.selection import keep_images
from yolov7.errors import DataError, SettingError, counted
from yolov7.export.export_model import MOST_TRAINING_IMAGES, ExportData, export_model
from yolov7.export.report import ExportReport
from yolov7.settings import NmsSettings
from yolov7.weights.weight_files import load_weights

_PREPARED = Path("artifacts") / "prepare"


def export(
    name: str,
    *,
    format: str,
    output: Path | None,
    nms: bool,
    nms_options: Mapping[str, float],
    dynamic: bool,
    precision: str,
    layout: str,
    data: Path | None,
    calibrate: Path | None,
    tolerance: float | None,
) -> None:
    """Export a weight file, and print what was measured.

    Args:
        name: The weight file, a variant, or a registered model.
        format: The format.
        output: The file or folder to write; None for a folder beside the weights.
        nms: Whether the file contains the suppression.
        nms_options: Keys of `NmsSettings` that are stated.
        dynamic: Whether the file takes images of any size.
        precision: Type of the stored numbers.
        layout: Order of the channels and axes of the input.
        data: What the file is verified on: a data set, the index of a prepared split, or a folder of images. Default:
            the project's prepared val split if it fits the weights, otherwise `calibrate`.
        calibrate: The images from which the ranges of INT8 are taken; None for the training split of the project if it
            fits the weights, otherwise for the images of the verification.
        tolerance: Largest change of AP, as a fraction; None for the default of each precision.

    Raises:
        ArtifactError: If the weights cannot be used, or if the exported model differs too much.
        DataError: If the data cannot be used.
        SettingError: If the format cannot be written as asked.
    """
    if nms_options and not nms:
        raise SettingError(f"{next(iter(nms_options))} concerns the suppression inside the file; add --nms")
    if calibrate is not None and precision != "int8":
        raise SettingError("--calibrate concerns INT8; add --precision int8")
    if tolerance is not None and not 0 <= tolerance <= 1:
        raise SettingError(f"--tolerance {tolerance:g} must be a change of AP from 0 to 1")
    weights = _weight_file(name)
    class_names = load_weights(weights).class_names
    chosen = _choose_data(data, calibrate, class_names)
    with _steps(weights.name) as show:
        report, path = export_model(
            weights,
            format=format,
            output=output,
            nms=NmsSettings(**nms_options) if nms else None,
            dynamic=dynamic,
            precision=precision,
            layout=layout,
            data=chosen,
            tolerance_ap=tolerance,
            progress=show,
        )
    console.print(_summary(report, path))


def _weight_file(name: str) -> Path:
    path = model_file(name)
    if path.is_dir():
        raise SettingError(f"{path} is a folder; name the weight file (.safetensors) that is to be exported")
    return path


def _choose_data(data: Path | None, calibrate: Path | None, class_names: tuple[str, ...]) -> ExportData:
    chosen = _prepared(class_names) if data is None else _read(data, class_names)
    if calibrate is None:
        return chosen
    if data is None and chosen.index is None:
        chosen = _annotated(calibrate, class_names)
    return replace(chosen, calibration=_calibration(calibrate))


def _prepared(class_names: tuple[str, ...]) -> ExportData:
    """Return the prepared splits of the project in this folder if their classes are those of the weights.

    Without a validation split, AP is measured on training images: any images show whether it changes. The test split is
    left alone.
    """
    split = next((split for split in ("val", "train") if (_PREPARED / f"{split}.npz").is_file()), None)
    if split is None:
        return ExportData()
    index = load_index(_PREPARED / f"{split}.npz")
    if index.class_names != class_names or not len(index):
        return ExportData()
    train = index if split == "train" else load_index(_PREPARED / "train.npz")
    measured = keep_images(index, MOST_TRAINING_IMAGES) if split == "train" else index
    return ExportData(measured, calibration=train.paths, name=f"the {split} split of {_PREPARED}")


def _read(path: Path, class_names: tuple[str, ...]) -> ExportData:
    """Return the annotated data of a path, or the images of a folder without annotations."""
    if path.suffix == ".npz":
        return ExportData(load_index(path), name=str(path))
    images = _images_in(path)
    if images and not any(one.is_dir() or one.suffix in {".json", ".yaml", ".yml"} for one in path.iterdir()):
        return ExportData(images=images, name=str(path))
    found = find_data(path)
    split = next((name for name in ("val", "test", "train") if name in found.splits), None)
    if split is None:
        raise DataError(f"{found.description}: no split was found to measure AP on")
    index, _ = read_split(found, split, class_names=class_names)
    return ExportData(index, name=f"the split {split} of {path}")


def _annotated(path: Path, class_names: tuple[str, ...]) -> ExportData:
    """Return the data of a path if it is annotated with these classes, else its images."""
    try:
        return _read(path, class_names)
    except DataError:
        return ExportData(images=_calibration(path), name=str(path))


def _calibration(path: Path) -> tuple[Path, ...]:
    """Return the images of the training split of a data set, of a prepared split, or of a folder."""
    if path.suffix == ".npz":
        return load_index(path).paths
    images = _images_in(path)
    if images:
        return images
    found = find_data(path)
    split = "train" if "train" in found.splits else next(iter(found.splits))
    return parse_split(found, split).annotations.paths


def _images_in(path: Path) -> tuple[Path, ...]:
    files = sorted(path.iterdir()) if path.is_dir() else []
    return tuple(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)


@contextmanager
def _steps(name: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step on a terminal."""
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(stage_line("export", name, "starting"), total=None)
        yield lambda step: bar.update(task, description=stage_line("export", name, step))


def _summary(report: ExportReport, path: Path) -> str:
    """Return one line: the file, its size, and errors, AP and time in the engine that is chosen by default."""
    check = report.checks[0]
    raw = "" if check.output_error is None else f"output error {check.output_error:.1e}, "
    found = f"{check.detections - check.unmatched} of {counted(check.detections, 'detection')} matched"
    ap = "AP not measured (no annotated data with these classes)"
    if report.AP is not None and check.AP is not None:
        ap = f"AP {report.AP:.4f} -> {check.AP:.4f} on {counted(report.AP_images, 'image')} ({report.data})"
    speed = f"{check.ms:.1f} ms by {check.engine} in {check.precision} (torch {report.torch_ms:.1f} ms)"
    kept = "" if not report.float_layers else f"{counted(len(report.float_layers), 'layer')} kept in floating point, "
    return f"{path}: {kept}{report.bytes / 1e6:.1f} MB, {raw}{found}, {ap}, {speed}"
