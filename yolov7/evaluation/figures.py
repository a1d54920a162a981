"""Measures of detections: COCO's figures, precision over recall, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolov7.boxes import pairwise_iou
from yolov7.data.index import ImageIndex
from yolov7.evaluation.coco import CocoCurves, FoundBoxes, coco_curves, columns
from yolov7.settings import COCO_ENGINE, CocoEngine
from yolov7.structures import Detections

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # COCO's order
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class CocoFigures:
    """COCO's twelve figures as fractions, and the AP of each class; None if the split has no objects for a figure.

    Attributes:
        AP: Average precision, the mean over the IoU thresholds .50 to .95.
        AP50: Average precision at IoU .50.
        AP75: Average precision at IoU .75.
        APs: AP of small objects, below 32 x 32 pixels.
        APm: AP of medium objects.
        APl: AP of large objects, above 96 x 96 pixels.
        AR1: Average recall with at most one detection for an image and class.
        AR10: Average recall with at most ten.
        AR100: Average recall with at most a hundred.
        ARs: AR100 of small objects.
        ARm: AR100 of medium objects.
        ARl: AR100 of large objects.
        per_class_AP: AP of each class by name.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    ARs: float | None
    ARm: float | None
    ARl: float | None
    per_class_AP: dict[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision over recall at IoU .5.

    Attributes:
        recall: (101,) recalls from 0 to 1.
        precision: (101, classes) precision at these recalls; NaN for classes without objects.
        class_names: The names of the classes.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    class_names: tuple[str, ...]


def coco_metrics(
    index: ImageIndex, detections: Sequence[Detections], *, engine: CocoEngine = COCO_ENGINE
) -> CocoFigures:
    """Compute COCO's figures of the detections of a split.

    Args:
        index: The split.
        detections: The detections of each image, in its pixels.
        engine: The library that computes the figures.

    Returns:
        The figures.
    """
    return coco_figures(coco_curves(index, detections, engine=engine), index.class_names)


def coco_figures(curves: CocoCurves, class_names: Sequence[str]) -> CocoFigures:
    """Return the means that COCO reports.

    Args:
        curves: The curves of a split.
        class_names: The names of the classes, by label.

    Returns:
        The figures.
    """
    precision, recall = curves.precision, curves.recall
    per_class = {name: _mean(precision[:, :, k, 0, 2]) for k, name in enumerate(class_names)}
    return CocoFigures(
        AP=_mean(precision[..., 0, 2]),
        AP50=_mean(precision[0, ..., 0, 2]),
        AP75=_mean(precision[5, ..., 0, 2]),
        APs=_mean(precision[..., 1, 2]),
        APm=_mean(precision[..., 2, 2]),
        APl=_mean(precision[..., 3, 2]),
        AR1=_mean(recall[..., 0, 0]),
        AR10=_mean(recall[..., 0, 1]),
        AR100=_mean(recall[..., 0, 2]),
        ARs=_mean(recall[..., 1, 2]),
        ARm=_mean(recall[..., 2, 2]),
        ARl=_mean(recall[..., 3, 2]),
        per_class_AP=per_class,
    )


def precision_recall(curves: CocoCurves, class_names: tuple[str, ...]) -> PrecisionRecall:
    """Return the precision of each class at 101 recalls, for objects of all sizes at IoU .5.

    Args:
        curves: The curves of a split.
        class_names: The names of the classes, by label.

    Returns:
        Precision over recall.
    """
    precision = curves.precision[0, :, :, 0, 2]
    return PrecisionRecall(_RECALLS, np.where(precision < 0, np.nan, precision), class_names)


def confusion_matrix(
    index: ImageIndex, detections: Sequence[Detections], *, confidence: float = 0.25, iou: float = 0.5
) -> NDArray[np.int64]:
    """Count which class is detected as which.

    Detections and objects are paired by descending IoU, whichever their classes. A detection that is not paired and
    lies in a crowd region does not count.

    Args:
        index: The split.
        detections: The detections of each image, in its pixels.
        confidence: The lowest score of a detection that counts.
        iou: The IoU that a pair must exceed, and the share of a detection that must lie in a crowd region.

    Returns:
        Counts (classes + 1, classes + 1): rows are the truth, columns the detections, and the last of each is the
        background.
    """
    background = len(index.class_names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    for i, found in enumerate(detections):
        sure = found.scores >= confidence
        boxes, labels = found.boxes_xyxy[sure].cpu().double(), found.labels[sure].cpu().numpy()
        truth, crowd = torch.from_numpy(index.boxes_of(i)).double(), index.crowd_of(i)
        overlaps = pairwise_iou(truth, boxes).numpy()
        objects = np.flatnonzero(~crowd)
        rows, columns = _pair(overlaps[objects], above=iou)
        np.add.at(matrix, (index.labels_of(i)[objects[rows]], labels[columns]), 1)
        missed = np.delete(objects, rows)
        matrix[:, background] += np.bincount(index.labels_of(i)[missed], minlength=background + 1)
        is_excused = _share_inside(boxes.numpy(), truth.numpy()[crowd]) > iou
        is_excused[columns] = True
        matrix[background] += np.bincount(labels[~is_excused], minlength=background + 1)
    return matrix


def coco_results(index: ImageIndex, detections: Sequence[Detections] | FoundBoxes) -> list[dict[str, Any]]:
    """Return detections in COCO's results format.

    Ids are those of the annotation file. Numbers are written with all their digits, so that pycocotools computes the
    same figures from them.

    Args:
        index: The split.
        detections: The detections of each image, in its pixels, or all of them in columns.

    Returns:
        A mapping for each detection: image_id, category_id, bbox (x, y, width, height in pixels) and score.
    """
    found = detections if isinstance(detections, FoundBoxes) else columns(detections)
    table = (found.image, found.boxes_xywh, found.scores, found.labels)
    rows = zip(*(column.tolist() for column in table), strict=True)
    return [
        {
            "image_id": index.image_ids[image],
            "category_id": index.category_ids[label],
            "bbox": box,
            "score": score,
        }
        for image, box, score, label in rows
    ]


def _pair(overlaps: NDArray[np.float64], *, above: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of entries above a value, the largest first, each row and column at most once."""
    rows, columns = np.nonzero(overlaps > above)
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    taken: dict[int, int] = {}
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken and column not in taken.values():
            taken[row] = column
    return np.array(list(taken), np.intp), np.array(list(taken.values()), np.intp)


def _share_inside(boxes: NDArray[np.float64], regions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest share of each box xyxy that lies in one of the regions xyxy."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    inside = (high - low).clip(min=0).prod(-1)  # boxes x regions
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).clip(min=np.finfo(np.float64).tiny)
    return np.asarray(inside.max(axis=1, initial=0.0) / area)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the defined values; None if there are none. COCO marks undefined values by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None
