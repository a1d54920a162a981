"""COCO's evaluation of boxes, by one of two libraries with the same figures: hotcoco, the fast one, or pycocotools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import coco, cocoeval

from yolov7.data.index import ImageIndex
from yolov7.settings import COCO_ENGINE, CocoEngine
from yolov7.structures import Detections


@dataclass(frozen=True)
class CocoCurves:
    """What COCO's figures are means of; -1 where a split has no objects of a class and size.

    `precision` (IoU, recall, class, size, limit) and `recall` (IoU, class, size, limit), of 10 IoUs .50 to .95, 101
    recalls, the sizes all, small (below 32 x 32 pixels), medium and large (above 96 x 96), and at most 1, 10 and 100
    detections an image and class.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


@dataclass(frozen=True)
class _Columns:
    """Boxes one below the other: `image` (n,) positions, `boxes_xywh` (n, 4), `areas`, `labels`, `scores` (n,)."""

    image: NDArray[Any]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]


def coco_curves(index: ImageIndex, detections: Sequence[Detections], *, engine: CocoEngine = COCO_ENGINE) -> CocoCurves:
    """Compares the detections of every image of a split, in its order and its images' pixels, with its objects.

    An object is small, medium or large by `index.object_areas`, a detection by its box.
    """
    assert len(detections) == len(index), f"{len(detections)} detections for {len(index)} images"
    found, objects = _detected(detections), _objects(index)
    match engine:
        case "hotcoco":
            evaluation = _with_hotcoco(index, objects, found)
        case "pycocotools":
            evaluation = _with_pycocotools(index, objects, found)
    return CocoCurves(evaluation["precision"], evaluation["recall"])


def columns(
    detections: Sequence[Detections],
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Image (n,), boxes xyxy (n, 4), scores (n,) and labels (n,) of all detections, one below the other."""
    images = np.repeat(np.arange(len(detections)), [len(found) for found in detections])
    boxes = torch.cat([torch.zeros(0, 4), *(found.boxes_xyxy.cpu().float() for found in detections)])
    scores = torch.cat([torch.zeros(0), *(found.scores.cpu().float() for found in detections)])
    labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(found.labels.cpu() for found in detections)])
    return images, boxes.double().numpy(), scores.double().numpy(), labels.numpy()


def _detected(detections: Sequence[Detections]) -> _Columns:
    images, boxes, scores, labels = columns(detections)
    boxes = _xywh(boxes)
    return _Columns(images, boxes, boxes[:, 2:].prod(1), labels, scores)


def _objects(index: ImageIndex) -> _Columns:
    images = np.repeat(np.arange(len(index)), np.diff(index.box_offsets))
    return _Columns(images, _xywh(index.boxes_xyxy), index.object_areas, index.labels, np.zeros(len(images)))


def _xywh(boxes_xyxy: NDArray[Any]) -> NDArray[np.float64]:
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]  # before they are widened: the index's are float32
    return np.concatenate((boxes_xyxy[:, :2], sides), axis=1).astype(np.float64)


def _images_and_categories(index: ImageIndex) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Their ids are their positions."""
    return [{"id": i} for i in range(len(index))], [{"id": k, "name": n} for k, n in enumerate(index.class_names)]


def _with_hotcoco(index: ImageIndex, objects: _Columns, found: _Columns) -> Any:
    images, categories = _images_and_categories(index)
    truth = hotcoco.COCO.from_arrays(
        images,
        categories,
        objects.image,
        objects.labels,
        objects.boxes_xywh,
        area=objects.areas,
        iscrowd=index.crowd.astype(np.int64),
    )
    rows = np.column_stack((found.image, found.boxes_xywh, found.scores, found.labels))
    evaluation = hotcoco.COCOeval(truth, truth.load_res(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def _with_pycocotools(index: ImageIndex, objects: _Columns, found: _Columns) -> Any:
    with _quiet():
        truth = _table(index, objects, crowd=index.crowd.astype(int).tolist())
        evaluation = cocoeval.COCOeval(truth, _table(index, found, crowd=[0] * len(found.image)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def _table(index: ImageIndex, boxes: _Columns, *, crowd: list[int]) -> Any:
    """A table of pycocotools; the ids of boxes start at 1."""
    images, categories = _images_and_categories(index)
    rows = zip(
        boxes.image.tolist(),
        boxes.labels.tolist(),
        boxes.boxes_xywh.tolist(),
        boxes.areas.tolist(),
        boxes.scores.tolist(),
        crowd,
        strict=True,
    )
    names = ("id", "image_id", "category_id", "bbox", "area", "score", "iscrowd")
    annotations = [dict(zip(names, (k, *row), strict=True)) for k, row in enumerate(rows, start=1)]
    table = coco.COCO()
    table.dataset = {"images": images, "categories": categories, "annotations": annotations}
    table.createIndex()
    return table


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
