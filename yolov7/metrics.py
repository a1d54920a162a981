"""How good detections are: COCO's figures (by pycocotools), precision over recall, and what is taken for what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import coco, cocoeval

from yolov7.boxes import pairwise_iou
from yolov7.data.labels import ImageIndex
from yolov7.structures import Detections

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # COCO's order
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


class CocoGroundTruth:
    """The objects of a split in the form that pycocotools wants; built once, compared with many times.

    An object's area is its box's, as the index holds no outlines.
    """

    def __init__(self, index: ImageIndex) -> None:
        self.index = index
        images = np.repeat(np.arange(len(index)), np.diff(index.box_offsets))
        with _quiet():
            self.coco = _table(index, images, index.boxes_xyxy, index.labels, crowd=index.crowd)


def coco_metrics(ground_truth: CocoGroundTruth, detections: Sequence[Detections]) -> CocoFigures:
    """The figures of the detections of every image of a split, in its order and in its images' pixels."""
    with _quiet():
        evaluation = _evaluation(ground_truth, detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = dict(zip(FIGURES, map(_defined, evaluation.stats), strict=True))
    by_class = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class
    names = ground_truth.index.class_names
    return CocoFigures(**figures, per_class_AP={name: _mean(by_class[:, :, k]) for k, name in enumerate(names)})


def precision_recall(index: ImageIndex, detections: Sequence[Detections]) -> PrecisionRecall:
    """The precision of each class at 101 recalls, for objects of all sizes at IoU .5."""
    ground_truth = CocoGroundTruth(index)
    with _quiet():
        evaluation = _evaluation(ground_truth, detections)
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    return PrecisionRecall(evaluation.params.recThrs, np.where(precision < 0, np.nan, precision), index.class_names)


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
    images, boxes, scores, labels = _columns(detections)
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


def _evaluation(ground_truth: CocoGroundTruth, detections: Sequence[Detections]) -> Any:
    index = ground_truth.index
    assert len(detections) == len(index), f"{len(detections)} detections for {len(index)} images"
    images, boxes, scores, labels = _columns(detections)
    found = _table(index, images, boxes, labels, scores=scores)
    return cocoeval.COCOeval(ground_truth.coco, found, "bbox")


def _table(
    index: ImageIndex,
    images: NDArray[Any],
    boxes_xyxy: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    scores: NDArray[np.float64] | None = None,
    crowd: NDArray[np.bool_] | None = None,
) -> Any:
    """Boxes as a pycocotools table; ids of images and classes are their positions, those of boxes start at 1."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    areas = sides.astype(np.float64).prod(1).tolist()
    bboxes = np.concatenate((boxes_xyxy[:, :2], sides), axis=1).tolist()
    rows = zip(images.tolist(), labels.tolist(), bboxes, areas, strict=True)
    annotations: list[dict[str, Any]] = [
        {"id": k, "image_id": image, "category_id": label, "bbox": bbox, "area": area, "iscrowd": 0}
        for k, (image, label, bbox, area) in enumerate(rows, start=1)
    ]
    for annotation, score in zip(annotations, () if scores is None else scores.tolist(), strict=False):
        annotation["score"] = score
    for k in () if crowd is None else np.flatnonzero(crowd).tolist():
        annotations[k]["iscrowd"] = 1
    table = coco.COCO()
    table.dataset = {
        "images": [{"id": i} for i in range(len(index))],
        "categories": [{"id": k, "name": name} for k, name in enumerate(index.class_names)],
        "annotations": annotations,
    }
    table.createIndex()
    return table


def _columns(detections: Sequence[Detections]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Image (n,), boxes xyxy (n, 4), scores (n,) and labels (n,) of all detections, one below the other."""
    images = np.repeat(np.arange(len(detections)), [len(found) for found in detections])
    boxes = torch.cat([torch.zeros(0, 4), *(found.boxes_xyxy.cpu().float() for found in detections)])
    scores = torch.cat([torch.zeros(0), *(found.scores.cpu().float() for found in detections)])
    labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(found.labels.cpu() for found in detections)])
    return images, boxes.double().numpy(), scores.double().numpy(), labels.numpy()


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


def _defined(value: float) -> float | None:
    """A figure of pycocotools, which says -1 where there are no objects."""
    return None if value < 0 else float(value)


def _mean(precision: NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences pycocotools' prints alone: redirecting the standard output would silence other threads too."""
    modules: tuple[Any, ...] = (coco, cocoeval)
    for module in modules:
        module.print = lambda *_: None
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("print", None)
