"""The stage `evaluate`: COCO figures of the deployed model, its predictions and errors, plots and example pictures.

It completes the proof of `reparam`: the AP of the deployed model must equal that of the trained model. If the models
round differently in the precision of this device, their AP in float32 must be equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.artifacts.files import read_json, stage_folder, whole_folder, write_json
from pipeline.artifacts.prepared import has_split, load_split
from pipeline.artifacts.reports import Metrics, PreparedData, TrainSummary
from pipeline.artifacts.stage_weights import stage_weights
from pipeline.experiment import ResolvedVariant
from pipeline.external import ExternalVariant, external_fingerprint
from pipeline.params import EvaluateSettings
from pipeline.report import plots
from yolov7.data.images import read_image
from yolov7.data.index import ImageIndex
from yolov7.data.loader import count_workers
from yolov7.detect.drawing import contact_sheet, draw_detections, write_picture
from yolov7.errors import ArtifactError
from yolov7.evaluation.coco import FoundBoxes, coco_curves
from yolov7.evaluation.errors import analyse_errors
from yolov7.evaluation.figures import coco_figures, coco_results, confusion_matrix, precision_recall
from yolov7.evaluation.results_file import detections_of, read_results
from yolov7.evaluation.split import SplitResult, evaluate_split
from yolov7.inference.engine import ModelEngine
from yolov7.settings import COCO_NMS
from yolov7.structures import Detections
from yolov7.system.precision import precision_name, resolve_device, resolve_precision
from yolov7.weights.weight_files import Weights


def evaluate(settings: EvaluateSettings, variant: ResolvedVariant, *, seed: int) -> Metrics:
    """Measure the deployed model on the test split if there is one, else on val, and write its results.

    Args:
        settings: How to measure, and the largest change of AP that is allowed.
        variant: The variant that was trained.
        seed: The seed of its training.

    Returns:
        The COCO figures, with the AP before re-parameterisation.

    Raises:
        ArtifactError: If re-parameterisation changed AP by more than the tolerance.
    """
    split, index = _load_split()
    deployed = _load("reparam", variant, index, seed=seed)
    result = _measure(deployed, index, settings)
    before = _trained_ap(settings, variant, index, seed=seed)
    tolerance = max(settings.tolerance_ap, 1 / max(1, len(index.labels)))  # AP cannot resolve less than one box
    compared = (before, result.figures.AP)
    if not _are_close(*compared, tolerance=tolerance) and _precision() != torch.float32:
        # The two models round differently in this precision. Only float32 shows what re-parameterisation changes.
        trained = _load("train", variant, index, seed=seed)
        first, second = (_measure(one, index, settings, dtype=torch.float32) for one in (trained, deployed))
        compared = (first.figures.AP, second.figures.AP)
    if not _are_close(*compared, tolerance=tolerance):
        raise ArtifactError(
            f"evaluate of {variant.name}/{seed}: AP is {compared[1]:.4f} after re-parameterisation and was "
            f"{compared[0]:.4f} before, on the same data; the change exceeds evaluate.tolerance_ap={tolerance:.2g}"
        )
    metrics = Metrics(**result.figures.as_dict(), AP_before_reparam=before, split=split, images=len(index))
    _write(stage_folder("evaluate", variant.name, seed), metrics, index, result, settings)
    return metrics


def evaluate_external(
    settings: EvaluateSettings, variant: ExternalVariant, *, seed: int
) -> tuple[Metrics, tuple[str, ...]]:
    """Measure the results file of an external variant in the way of `evaluate`, and write the same files.

    Args:
        settings: Which engine computes the figures, and how many examples are drawn. The suppression is not applied.
        variant: The external variant.
        seed: The seed in whose folder the results are written.

    Returns:
        The COCO figures, which are None if only the cost of the system is known, and what was left out of the file, in
        sentences.

    Raises:
        ArtifactError: If `train` has not seen the results file as it is now.
        DataError: If the file is no results file, or if none of its ids belongs to the data.
    """
    summary = read_json(
        stage_folder("train", variant.name, seed) / "train.json", TrainSummary, made_by=f"train {variant.name}"
    )
    prepared = read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    if summary.fingerprint != external_fingerprint(variant, seed=seed, content_hash=prepared.content_hash):
        raise ArtifactError(
            f"{variant.source} or the data changed after `yolov7 train {variant.name}` ran; run it again, or "
            "`dvc repro` to run every stale stage"
        )
    split, index = _load_split()
    notes: tuple[str, ...]
    if variant.predictions is None:
        found, notes = _nothing_found(), (f"{variant.source} has no results file, so AP is not measured",)
    else:
        found, notes = read_results(variant.predictions, index)
    curves = coco_curves(index, found, engine=settings.engine)
    result = SplitResult(detections_of(found, images=len(index)), curves, coco_figures(curves, index.class_names))
    figures = result.figures.as_dict()
    if variant.predictions is None:
        figures = dict.fromkeys(figures) | {"per_class_AP": {}}
    metrics = Metrics(**figures, AP_before_reparam=None, split=split, images=len(index))
    _write(stage_folder("evaluate", variant.name, seed), metrics, index, result, settings, found=found)
    return metrics, notes


def _nothing_found() -> FoundBoxes:
    return FoundBoxes(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


def _write(
    final: Path,
    metrics: Metrics,
    index: ImageIndex,
    result: SplitResult,
    settings: EvaluateSettings,
    *,
    found: FoundBoxes | None = None,
) -> None:
    with whole_folder(final) as folder:
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "predictions.json", coco_results(index, found or result.detections))
        write_json(folder / "errors.json", analyse_errors(index, result.detections, split=metrics.split))
        _write_plots(folder, index, result)
        _draw_examples(folder / "examples.jpg", index, result.detections, settings)


def _load(stage: Literal["train", "reparam"], variant: ResolvedVariant, index: ImageIndex, *, seed: int) -> Weights:
    return stage_weights(stage, variant, seed=seed, class_names=index.class_names, device=resolve_device())


def _load_split() -> tuple[str, ImageIndex]:
    for split in ("test", "val"):
        if has_split(split):
            return split, load_split(split)
    read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    raise ArtifactError(
        "the prepared data have no test and no val split to evaluate on; name one in data.test or data.val of "
        "params.yaml, then run `yolov7 prepare`"
    )


def _measure(
    weights: Weights, index: ImageIndex, settings: EvaluateSettings, *, dtype: torch.dtype | None = None
) -> SplitResult:
    return evaluate_split(
        ModelEngine(weights.model, dtype or _precision()),
        index,
        image_size=weights.image_size,
        letterbox=weights.letterbox,
        batch_size=settings.batch_size,
        nms=settings.nms,
        coco_engine=settings.engine,
        loader_workers=count_workers("auto", cpus=torch.get_num_threads()),
    )


def _trained_ap(settings: EvaluateSettings, variant: ResolvedVariant, index: ImageIndex, *, seed: int) -> float | None:
    """Return the AP before re-parameterisation: that of training if data and settings are the same, else measured."""
    folder = stage_folder("train", variant.name, seed)
    summary = read_json(folder / "train.json", TrainSummary, made_by=f"train {variant.name}")
    is_comparable = summary.precision == precision_name(_precision()) and settings.nms == COCO_NMS
    if is_comparable and summary.val_hash == index.evaluation_hash() and summary.AP is not None:
        return summary.AP
    return _measure(_load("train", variant, index, seed=seed), index, settings).figures.AP


def _are_close(before: float | None, after: float | None, *, tolerance: float) -> bool:
    return before is None or after is None or abs(after - before) <= tolerance


def _precision() -> torch.dtype:
    return resolve_precision("auto", resolve_device())


def _write_plots(folder: Path, index: ImageIndex, result: SplitResult) -> None:
    plots.write_precision_recall(folder, precision_recall(result.curves, index.class_names))
    plots.write_confusion(folder, confusion_matrix(index, result.detections), class_names=index.class_names)


def _draw_examples(
    path: Path, index: ImageIndex, detections: tuple[Detections, ...], settings: EvaluateSettings
) -> None:
    """Draw images spread over the split, with detections above `example_confidence`."""
    step = max(1, len(index) // settings.examples)
    chosen = list(range(0, len(index), step))[: settings.examples]
    pictures = []
    for i in chosen:
        shown = _above(detections[i], settings.example_confidence)
        pictures.append(draw_detections(read_image(index.paths[i]), shown, index.class_names))
    write_picture(path, contact_sheet(pictures, columns=min(4, len(pictures))))


def _above(detections: Detections, confidence: float) -> Detections:
    keep = detections.scores >= confidence
    return Detections(detections.boxes_xyxy[keep], detections.scores[keep], detections.labels[keep])
