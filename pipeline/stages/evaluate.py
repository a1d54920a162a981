"""The stage `evaluate`: COCO figures of the deployed model, its predictions, plots, and pictures of them.

It also completes the proof of `reparam`: the deployed model's AP must be that of the model that was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2

from pipeline.artifacts.files import (
    Metrics,
    TrainSummary,
    read_json,
    stage_folder,
    whole_folder,
    write_json,
)
from pipeline.artifacts.stage_weights import stage_weights
from pipeline.params import EvaluateSettings, Params
from pipeline.report import plots
from yolov7.data.images import read_image
from yolov7.data.index import ImageIndex, load_index
from yolov7.detect.drawing import contact_sheet, draw_detections
from yolov7.errors import ArtifactError
from yolov7.evaluation.figures import coco_results, confusion_matrix, precision_recall
from yolov7.evaluation.split import SplitResult, evaluate_split
from yolov7.settings import COCO_NMS
from yolov7.structures import Detections
from yolov7.system.precision import precision_name, resolve_device, resolve_precision
from yolov7.weights.weight_files import Weights


def evaluate(params: Params, *, variant: str, seed: int) -> Metrics:
    """Measures on the test split where there is one, else on val; ArtifactError where AP changed by fusing."""
    split, index = _load_split()
    deployed = _load(params, "reparam", index, variant=variant, seed=seed)
    result = _measure(deployed, index, params.evaluate)
    before = _trained_ap(params, index, split=split, variant=variant, seed=seed)
    tolerance = max(params.evaluate.tolerance_ap, 1 / max(1, len(index.labels)))  # no AP resolves less than a box
    _check_ap(before, result.figures.AP, tolerance=tolerance, name=f"{variant}/{seed}")
    metrics = Metrics(**result.figures.as_dict(), AP_before_reparam=before, split=split, images=len(index))
    with whole_folder(stage_folder("evaluate", variant, seed)) as folder:
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "predictions.json", coco_results(index, result.detections))
        _write_plots(folder, index, result)
        _draw_examples(folder / "examples.jpg", index, result.detections, params.evaluate)
    return metrics


def _load(params: Params, stage: Literal["train", "reparam"], index: ImageIndex, *, variant: str, seed: int) -> Weights:
    device, names = resolve_device(), index.class_names
    return stage_weights(stage, params, variant=variant, seed=seed, class_names=names, device=device)


def _load_split() -> tuple[str, ImageIndex]:
    for split in ("test", "val"):
        path = stage_folder("prepare") / f"{split}.npz"
        if path.is_file():
            return split, load_index(path)
    raise ArtifactError(
        "there is no prepared test or val split to evaluate on; "
        "name one in data.test or data.val, then `yolov7 prepare`"
    )


def _measure(weights: Weights, index: ImageIndex, settings: EvaluateSettings) -> SplitResult:
    return evaluate_split(
        weights.model,
        index,
        image_size=weights.image_size,
        batch_size=settings.batch_size,
        nms=settings.nms,
        engine=settings.engine,
    )


def _trained_ap(params: Params, index: ImageIndex, *, split: str, variant: str, seed: int) -> float | None:
    """The AP of the weights before fusing: training's own last figure where it is comparable, else measured here."""
    folder = stage_folder("train", variant, seed)
    summary = read_json(folder / "train.json", TrainSummary, made_by=f"train {variant}")
    precision = precision_name(resolve_precision("auto", resolve_device()))  # as _measure has it
    same_way = summary.precision == precision and params.evaluate.nms == COCO_NMS
    if split == "val" and same_way and summary.AP is not None:
        return summary.AP
    trained = _load(params, "train", index, variant=variant, seed=seed)
    return _measure(trained, index, params.evaluate).figures.AP


def _check_ap(before: float | None, after: float | None, *, tolerance: float, name: str) -> None:
    if before is None or after is None:
        return
    if not abs(after - before) <= tolerance:
        raise ArtifactError(
            f"evaluate of {name}: AP is {after:.4f} after re-parameterisation and was {before:.4f} before; "
            f"allowed evaluate.tolerance_ap={tolerance:.2g}"
        )


def _write_plots(folder: Path, index: ImageIndex, result: SplitResult) -> None:
    plots.write_precision_recall(folder, precision_recall(result.curves, index.class_names))
    plots.write_confusion(folder, confusion_matrix(index, result.detections), class_names=index.class_names)


def _draw_examples(
    path: Path, index: ImageIndex, detections: tuple[Detections, ...], settings: EvaluateSettings
) -> None:
    """A sheet of images spread over the split, with what was found above `example_confidence`."""
    step = max(1, len(index) // settings.examples)
    chosen = list(range(0, len(index), step))[: settings.examples]
    pictures = []
    for i in chosen:
        shown = _above(detections[i], settings.example_confidence)
        pictures.append(draw_detections(read_image(index.paths[i]), shown, index.class_names))
    sheet = contact_sheet(pictures, columns=min(4, len(pictures)))
    if not cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90]):
        raise OSError(f"{path} cannot be written; is the disk full?")


def _above(detections: Detections, confidence: float) -> Detections:
    keep = detections.scores >= confidence
    return Detections(detections.boxes_xyxy[keep], detections.scores[keep], detections.labels[keep])
