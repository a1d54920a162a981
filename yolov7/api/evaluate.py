"""COCO figures of any model, or of any results file, on any data set in a readable format."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yolov7.data.find_data import FoundData, find_data, find_split, read_split
from yolov7.data.flaws import Flaw
from yolov7.data.index import ImageIndex
from yolov7.engines.opened_model import OpenedModel, open_model
from yolov7.errors import DataError, SettingError
from yolov7.evaluation.class_mapping import map_classes
from yolov7.evaluation.coco import coco_curves
from yolov7.evaluation.figures import CocoFigures, coco_figures
from yolov7.evaluation.results_file import read_results
from yolov7.evaluation.split import evaluate_split
from yolov7.settings import COCO_NMS, NmsSettings
from yolov7.structures import Detections

Progress = Callable[[str, int, int], None]
"""Receives what is done (`check images` or `detect`), the number of images so far, and the number of all images."""

_PREFERRED_SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Evaluation:
    """The result of a model or a results file on a split.

    Attributes:
        figures: COCO's figures.
        split: The name of the split.
        index: The images and objects of the split.
        detections: The detections of each image with the labels of the data; empty for a results file.
        notes: What was left out, guessed or not found, in sentences.
        data: What the data are, in one line.
        model: The model; None for a results file.
    """

    figures: CocoFigures
    split: str
    index: ImageIndex
    detections: tuple[Detections, ...]
    notes: tuple[str, ...]
    data: str
    model: OpenedModel | None


def evaluate(
    weights: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    nms: NmsSettings = COCO_NMS,
    batch_size: int = 16,
    loader_workers: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on a data set.

    Classes of the model and of the data are matched by name.

    Args:
        weights: A weight file, an exported file, or a folder with an exported model.
        data: The folder of a data set, a data.yaml, or a COCO file.
        split: The split; None chooses `test`, `val` or `train`, the first that there is.
        engine: What runs the model; `auto` is the fastest engine that is installed and runs the file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `bfloat16` or `float16`.
        nms: Settings of the suppression.
        batch_size: Images in a batch.
        loader_workers: Processes that read and letterbox images; 0: this process does.
        progress: Called as the work proceeds.

    Returns:
        The figures and detections.

    Raises:
        ArtifactError: If the file is not a model.
        DataError: If the data cannot be read, or have no class in common with the model.
        SettingError: If the engine, the device, the precision or the batch size is unknown or not available.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size={batch_size} must be at least 1")
    model = open_model(weights, engine=engine, device=device, precision=precision)
    found, name, index, flaws = _read(Path(data), split, progress)
    mapping = map_classes(model.class_names, index.class_names)
    result = evaluate_split(
        model.engine,
        index,
        image_size=model.image_size,
        letterbox=model.letterbox,
        batch_size=batch_size,
        nms=nms,
        loader_workers=loader_workers,
        class_mapping=mapping.apply,
        progress=None if progress is None else lambda done: progress("detect", done, len(index)),
    )
    notes = (*model.notes, *_suppression_notes(model, nms), *_flaw_notes(flaws), *mapping.notes())
    return Evaluation(result.figures, name, index, result.detections, notes, found.description, model)


def evaluate_results(
    predictions: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Compute COCO's figures of a results file, whatever program wrote it.

    Args:
        predictions: A JSON file in COCO's results format, with the ids of the annotation file.
        data: The folder of a data set, a data.yaml, or a COCO file.
        split: The split; None chooses `test`, `val` or `train`, the first that there is.
        progress: Called as the work proceeds.

    Returns:
        The figures.

    Raises:
        DataError: If the data or the results file cannot be read, or do not fit together.
        OSError: If the results file cannot be opened.
    """
    found, name, index, flaws = _read(Path(data), split, progress)
    boxes, notes = read_results(Path(predictions), index)
    figures = coco_figures(coco_curves(index, boxes), index.class_names)
    return Evaluation(figures, name, index, (), (*_flaw_notes(flaws), *notes), found.description, None)


def _read(
    path: Path, split: str | None, progress: Progress | None
) -> tuple[FoundData, str, ImageIndex, tuple[Flaw, ...]]:
    found = find_data(path)
    name = split or next((name for name in _PREFERRED_SPLITS if name in found.splits), next(iter(found.splits), None))
    if name is None:
        raise DataError(f"{found.description}: no split was found; name one")
    index, flaws = read_split(
        found,
        name,
        progress=None if progress is None else lambda done, of: progress("check images", done, of),
    )
    if not len(index):
        raise DataError(f"the split {find_split(found, name)} of {path} has no images that can be read")
    return found, name, index, flaws


def _suppression_notes(model: OpenedModel, nms: NmsSettings) -> tuple[str, ...]:
    """Say that the suppression inside a file leaves out detections that count for AP."""
    inside = model.suppression
    if inside is None or (inside.confidence <= nms.confidence and inside.max_detections >= nms.max_detections):
        return ()
    return (
        f"the file contains its suppression (confidence {inside.confidence:g}, at most {inside.max_detections} "
        f"detections), which leaves out detections that count for AP with {nms.confidence:g} and {nms.max_detections}",
    )


def _flaw_notes(flaws: tuple[Flaw, ...]) -> tuple[str, ...]:
    """Count the flaws of the data by kind, each with its first file."""
    kinds = dict.fromkeys(flaw.kind for flaw in flaws)
    grouped = {kind: [flaw for flaw in flaws if flaw.kind == kind] for kind in kinds}
    return tuple(
        f"{len(group):,} x {kind.value}, first in {group[0].file}: {group[0].detail}" for kind, group in grouped.items()
    )
