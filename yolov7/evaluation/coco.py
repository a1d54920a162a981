"""COCO's evaluation of boxes by one of two libraries with equal figures: hotcoco, which is fast, or pycocotools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolov7.data.index import ImageIndex, to_xywh
from yolov7.settings import COCO_ENGINE, CocoEngine
from yolov7.structures import Detections


@dataclass(frozen=True)
class CocoCurves:
    """The values whose means are COCO's figures; -1 for a class and size without objects.

    The axes are: 10 IoU thresholds from .50 to .95; 101 recalls; the classes; the sizes all, small (below 32 x 32
    pixels), medium and large (above 96 x 96); at most 1, 10 and 100 detections for an image and class.

    Attributes:
        precision: (IoU, recall, class, size, limit).
        recall: (IoU, class, size, limit).
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


@dataclass(frozen=True)
class FoundBoxes:
    """The n detections of a split in columns.

    Attributes:
        image: The place of the image in the index (n,) int64.
        boxes_xywh: x, y, width, height (n, 4) float64, in pixels of the image.
        scores: Scores (n,) float64.
        labels: Labels (n,) int64.
    """

    image: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class _Columns:
    """The boxes of all images: `image` (n,) ids, `boxes_xywh` (n, 4), `areas`, `labels`, `scores` (n,)."""

    image: NDArray[Any]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]


def coco_curves(
    index: ImageIndex, detections: Sequence[Detections] | FoundBoxes, *, engine: CocoEngine = COCO_ENGINE
) -> CocoCurves:
    """Compare detections with the objects of a split.

    The boxes and areas of the objects are those that the annotation file states. Where scores tie, images count in the
    order of their ids. The figures are therefore those of pycocotools on the annotation file, if no box and no image
    of the file was left out.

    Args:
        index: The split.
        detections: The detections of each image, in its pixels, or all of them in columns.
        engine: The library that computes the figures.

    Returns:
        The curves.
    """
    if not isinstance(detections, FoundBoxes):
        assert len(detections) == len(index), f"{len(detections)} detections for {len(index)} images"
        detections = columns(detections)
    order = _rank(index)
    found, objects = _detected(detections, order), _objects(index, order)
    match engine:
        case "hotcoco":
            evaluation = _with_hotcoco(index, objects, found)
            evaluation.accumulate()
            tables = evaluation.eval
        case "pycocotools":
            tables = _with_pycocotools(index, objects, found)
    return CocoCurves(tables["precision"], tables["recall"])


def matched(index: ImageIndex, detections: Sequence[Detections]) -> Any:
    """Match detections with the objects of a split.

    Args:
        index: The split.
        detections: The detections of each image, in its pixels.

    Returns:
        An evaluated `hotcoco.COCOeval`. Its ids of detections and objects count from 1, in the order of the images and
        of the boxes within each image.
    """
    order = _rank(index)
    return _with_hotcoco(index, _objects(index, order), _detected(columns(detections), order))


def columns(detections: Sequence[Detections]) -> FoundBoxes:
    """Return the detections of all images in columns.

    Args:
        detections: The detections of each image.

    Returns:
        The columns, in the order of the images.
    """
    images = np.repeat(np.arange(len(detections)), [len(found) for found in detections])
    boxes = torch.cat([torch.zeros(0, 4), *(found.boxes_xyxy.cpu().float() for found in detections)])
    scores = torch.cat([torch.zeros(0), *(found.scores.cpu().float() for found in detections)])
    labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(found.labels.cpu() for found in detections)])
    return FoundBoxes(images, to_xywh(boxes.numpy()), scores.double().numpy(), labels.numpy())


def _rank(index: ImageIndex) -> NDArray[np.int64]:
    """Return the place of each image in the order of the ids, numbers before text."""
    order = sorted(range(len(index)), key=lambda i: (isinstance(index.image_ids[i], str), index.image_ids[i]))
    rank = np.empty(len(index), np.int64)
    rank[order] = np.arange(len(index))
    return rank


def _detected(found: FoundBoxes, rank: NDArray[np.int64]) -> _Columns:
    return _Columns(rank[found.image], found.boxes_xywh, found.boxes_xywh[:, 2:].prod(1), found.labels, found.scores)


def _objects(index: ImageIndex, rank: NDArray[np.int64]) -> _Columns:
    images = np.repeat(rank, np.diff(index.box_offsets))
    return _Columns(images, index.objects_xywh, index.object_areas, index.labels, np.zeros(len(images)))


def _images_and_categories(index: ImageIndex) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the tables with the ranks of the images and the labels as ids."""
    return [{"id": i} for i in range(len(index))], [{"id": k, "name": n} for k, n in enumerate(index.class_names)]


def _with_hotcoco(index: ImageIndex, objects: _Columns, found: _Columns) -> Any:
    import hotcoco

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
    return evaluation


def _with_pycocotools(index: ImageIndex, objects: _Columns, found: _Columns) -> Any:
    from pycocotools import cocoeval

    with _quiet():
        truth = _table(index, objects, crowd=index.crowd.astype(int).tolist())
        evaluation = cocoeval.COCOeval(truth, _table(index, found, crowd=[0] * len(found.image)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def _table(index: ImageIndex, boxes: _Columns, *, crowd: list[int]) -> Any:
    """Return a table of pycocotools; the ids of boxes start at 1, since 0 would count as no match."""
    from pycocotools import coco

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
    """Silence the prints of pycocotools only; redirecting the standard output would silence other threads too."""
    from pycocotools import coco, cocoeval

    modules: tuple[Any, ...] = (coco, cocoeval)
    for module in modules:
        module.print = lambda *_: None
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("print", None)
