"""How good detections are: COCO's figures, precision over recall, and what is taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolov7.boxes import pairwise_iou
from yolov7.data.index import ImageIndex
from yolov7.evaluation.coco import CocoCurves, coco_curves, columns
from yolov7.settings import COCO_ENGINE, CocoEngine
from yolov7.structures import Detections

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # COCO's order
_RECALLS = np.linspace(0.0, 1.0, 101)
_NUM_COCO_CLASSES = 80
_IDS_WITHOUT_OBJECTS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})  # of COCO's 90 categories


@dataclass(frozen=True)
class CocoFigures:
    """COCO's twelve figures as fractions, and AP of each class; None where the split has no objects for it.

    AP is the mean over IoU .50 to .95. Sizes: small below 32 x 32 pixels, large above 96 x 96. AR1: recall with
    at most one detection an image.
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
        """The figures by name."""
        return asdict(self)


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision at IoU .5: `precision` (101, classes) at the recalls `recall` (101,); NaN for absent classes."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    class_names: tuple[str, ...]


def coco_metrics(
    index: ImageIndex, detections: Sequence[Detections], *, engine: CocoEngine = COCO_ENGINE
) -> CocoFigures:
    """The figures of the detections of every image of a split, in its order and in its images' pixels."""
    return coco_figures(coco_curves(index, detections, engine=engine), index.class_names)


def coco_figures(curves: CocoCurves, class_names: Sequence[str]) -> CocoFigures:
    """The means that COCO reports of these curves, and the AP of each class."""
    precision, recall = curves.precision, curves.recall  # IoU, recall, class, size, limit; without recall
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
    """The precision of each class at 101 recalls, for objects of all sizes at IoU .5."""
    precision = curves.precision[0, :, :, 0, 2]
    return PrecisionRecall(_RECALLS, np.where(precision < 0, np.nan, precision), class_names)


def confusion_matrix(
    index: ImageIndex, detections: Sequence[Detections], *, confidence: float = 0.25, iou: float = 0.5
) -> NDArray[np.int64]:
    """Counts (classes + 1, classes + 1): rows are the truth, columns the predictions, the last of each is background.

    Detections of at least `confidence` and objects are paired by falling IoU, above `iou`, whichever their classes.
    What is left and lies in a crowd region, by a share of more than `iou`, counts as nothing.
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


def coco_results(index: ImageIndex, detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """The detections in COCO's results format: boxes x, y, w, h to the thousandth of a pixel.

    An image's id is the number that its file is named by, where all are, else its place in the split, from 1;
    a category's id is COCO's own for the 80 classes of COCO, else the label + 1.
    """
    image_ids, category_ids = _image_ids(index), _category_ids(index.class_names)
    images, boxes, scores, labels = columns(detections)
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(images.tolist(), boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    return [
        {
            "image_id": image_ids[image],
            "category_id": category_ids[label],
            "bbox": [round(value, 3) for value in box],
            "score": round(score, 5),
        }
        for image, box, score, label in rows
    ]


def _pair(overlaps: NDArray[np.float64], *, above: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the entries above a value, the largest first, each row and column once at most."""
    rows, columns = np.nonzero(overlaps > above)
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    taken: dict[int, int] = {}
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken and column not in taken.values():
            taken[row] = column
    return np.array(list(taken), np.intp), np.array(list(taken.values()), np.intp)


def _share_inside(boxes: NDArray[np.float64], regions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest share of each box xyxy that lies in one of the regions xyxy."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    inside = (high - low).clip(min=0).prod(-1)  # boxes x regions
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).clip(min=np.finfo(np.float64).tiny)
    return np.asarray(inside.max(axis=1, initial=0.0) / area)


def _image_ids(index: ImageIndex) -> list[int]:
    stems = [path.stem for path in index.paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(stems) + 1))


def _category_ids(class_names: tuple[str, ...]) -> list[int]:
    is_coco = len(class_names) == _NUM_COCO_CLASSES and class_names[0] == "person" and class_names[-1] == "toothbrush"
    skipped = _IDS_WITHOUT_OBJECTS if is_coco else frozenset()
    ids = (number for number in range(1, len(class_names) + len(skipped) + 1) if number not in skipped)
    return list(ids)


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean of what is defined; None where there are no objects, of which COCO says -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None
