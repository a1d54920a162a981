"""The command `export`: a weight file as a file for another program or engine, with a proof that it is equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline.console import console, counted, stage_line
from yolov7.data.index import load_index
from yolov7.data.read.coco import read_coco
from yolov7.errors import DataError, SettingError
from yolov7.export.export_model import ExportData, export_model
from yolov7.export.report import ExportReport
from yolov7.settings import NmsSettings
from yolov7.weights.weight_files import load_weights

_PREPARED = Path("artifacts") / "prepare" / "val.npz"
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def export(
    weights: Path,
    *,
    format: str,
    output: Path | None,
    nms: bool,
    nms_options: Mapping[str, float],
    dynamic: bool,
    precision: str,
    layout: str,
    data: Path | None,
    tolerance: float | None,
) -> None:
    """Export a weight file, and print what was measured.

    Args:
        weights: The weight file.
        format: The format.
        output: The file to write, or a folder for it; None for a folder beside the weights.
        nms: Whether the file contains the suppression.
        nms_options: Keys of `NmsSettings` that are stated.
        dynamic: Whether the file takes images of any size.
        precision: Type of the stored numbers.
        layout: Order of the channels and axes of the input.
        data: What the file is verified on: a COCO file, the index of a prepared split, or a folder of images; None for
            the project's prepared val split if it fits the weights.
        tolerance: Largest change of AP, as a fraction; None for the default of each precision.

    Raises:
        ArtifactError: If the weights cannot be used, or if the exported model differs too much.
        DataError: If the data cannot be used.
        SettingError: If the format cannot be written as asked.
    """
    if nms_options and not nms:
        raise SettingError(f"{next(iter(nms_options))} concerns the suppression inside the file; add --nms")
    class_names = load_weights(weights).class_names
    chosen = _prepared(class_names) if data is None else _read(data, class_names)
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


def _prepared(class_names: tuple[str, ...]) -> ExportData:
    """Return the prepared val split of the project in this folder if its classes are those of the weights."""
    if not _PREPARED.is_file():
        return ExportData()
    index = load_index(_PREPARED)
    if index.class_names != class_names or not len(index):
        return ExportData()
    return ExportData(index, name=str(_PREPARED))


def _read(path: Path, class_names: tuple[str, ...]) -> ExportData:
    if path.is_dir():
        images = sorted(file for file in path.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)
        if not images:
            raise DataError(f"data={path} contains no images; name a folder of images or a COCO file")
        return ExportData(images=images, name=str(path))
    if not path.is_file():
        raise DataError(f"data={path} does not exist; name a COCO file, a prepared split (.npz) or a folder of images")
    if path.suffix == ".npz":
        return ExportData(load_index(path), name=str(path))
    return ExportData(read_coco(path, class_names=class_names)[0], name=str(path))


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
        ap = f"AP {report.AP:.4f} -> {check.AP:.4f} on {counted(report.AP_images, 'image')}"
    speed = f"{check.ms:.1f} ms by {check.engine} in {check.precision} (torch {report.torch_ms:.1f} ms)"
    return f"{path}: {report.bytes / 1e6:.1f} MB, {raw}{found}, {ap}, {speed}"
