"""Figures of detections whose value is known: perfect ones, none, crowds, absent classes, confusions."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolov7.data.index import ImageIndex
from yolov7.evaluation.coco import coco_curves
from yolov7.evaluation.figures import (
    FIGURES,
    CocoFigures,
    coco_metrics,
    coco_results,
    confusion_matrix,
    precision_recall,
)
from yolov7.settings import CocoEngine
from yolov7.structures import Detections

Row = tuple[float, float, float, float, int]


def index_of(
    *images: list[Row], names: tuple[str, ...] = ("cat", "dog", "eel"), crowd: tuple[int, ...] = ()
) -> ImageIndex:
    rows = np.array([row for image in images for row in image], np.float64).reshape(-1, 5)
    return ImageIndex(
        class_names=names,
        paths=tuple(Path(f"/images/{10 * i:06d}.jpg") for i in range(len(images))),
        widths=np.full(len(images), 640, np.int32),
        heights=np.full(len(images), 480, np.int32),
        hashes=("",) * len(images),
        box_offsets=np.cumsum([0, *map(len, images)]),
        boxes_xyxy=rows[:, :4].astype(np.float32),
        labels=rows[:, 4].astype(np.int64),
        crowd=np.isin(np.arange(len(rows)), crowd),
    )


def found(*rows: tuple[float, float, float, float, int, float]) -> Detections:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 5], table[:, 4].long())


CAT: Row = (10, 10, 30, 30, 0)  # small
DOG: Row = (100, 100, 160, 160, 1)  # medium
TWO = index_of([CAT], [DOG])


def figures(index: ImageIndex, *detections: Detections) -> CocoFigures:
    """By the fast library, and the same by the reference."""
    fast, reference = (coco_metrics(index, detections, engine=engine) for engine in get_args(CocoEngine))
    assert fast == reference
    return fast


def test_perfect_detections(capsys: pytest.CaptureFixture[str]) -> None:
    result = figures(TWO, found((*CAT, 0.9)), found((*DOG, 0.8)))
    assert pytest.approx(1.0) == result.AP
    assert result.APs == result.APm == pytest.approx(1.0)
    assert result.APl is None
    assert result.ARl is None
    assert result.per_class_AP == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0), "eel": None}
    assert capsys.readouterr().out == ""


def test_no_detections_and_no_objects() -> None:
    nothing = figures(TWO, found(), found())
    assert (nothing.AP, nothing.AR100) == (0.0, 0.0)
    empty = figures(index_of([], []), found(), found((*CAT, 0.9)))
    assert all(value is None for name, value in empty.as_dict().items() if name != "per_class_AP")


def test_half_of_the_objects() -> None:
    result = figures(index_of([CAT, (200, 200, 220, 220, 0)]), found((*CAT, 0.9)))
    assert pytest.approx(51 / 101) == result.AP50
    assert pytest.approx(0.5) == result.AR100


def test_a_loose_box_counts_at_low_thresholds_only() -> None:
    # IoU 0.81: right at .50, .55, ... .80, which are 7 of 10 thresholds.
    result = figures(index_of([(0, 0, 100, 100, 0)]), found((0, 0, 81, 100, 0, 0.9)))
    assert pytest.approx(0.7) == result.AP
    assert pytest.approx(1.0) == result.AP75


def test_detections_in_a_crowd_are_ignored() -> None:
    crowded = index_of([CAT, (300, 300, 500, 400, 0)], crowd=(1,))
    inside = found((310, 310, 340, 340, 0, 0.99), (400, 310, 440, 340, 0, 0.98), (*CAT, 0.9))
    assert pytest.approx(1.0) == figures(crowded, inside).AP
    assert confusion_matrix(crowded, [inside]).sum() == 1


def test_confusion_matrix() -> None:
    index = index_of([CAT, DOG], [DOG])
    first = found((*CAT[:4], 1, 0.9), (100, 100, 160, 150, 1, 0.6), (300, 300, 330, 330, 2, 0.5), (*DOG[:4], 0, 0.1))
    matrix = confusion_matrix(index, [first, found()])
    expected = np.zeros((4, 4), np.int64)
    expected[0, 1] = 1  # a cat taken for a dog
    expected[1, 1] = 1
    expected[1, 3] = 1  # a dog that was missed
    expected[3, 2] = 1  # an eel where nothing is
    np.testing.assert_array_equal(matrix, expected)


def test_precision_recall() -> None:
    index = index_of([CAT, (200, 200, 220, 220, 0)])
    detections = [found((*CAT, 0.9), (400, 400, 420, 420, 0, 0.8), (200, 200, 220, 220, 0, 0.7))]
    curves = precision_recall(coco_curves(index, detections), index.class_names)
    assert curves.precision.shape == (101, 3)
    np.testing.assert_allclose(curves.precision[:51, 0], 1.0)
    np.testing.assert_allclose(curves.precision[51:, 0], 2 / 3)
    assert np.isnan(curves.precision[:, 1:]).all()


def random_split(seed: int, *, images: int, classes: int) -> tuple[ImageIndex, list[Detections]]:
    """Objects of all sizes, crowds among them, and detections around them with many equal scores."""
    random = np.random.default_rng(seed)
    rows, detections = [], []
    for _ in range(images):
        count = int(random.integers(0, 6))
        low = random.uniform(0, 400, (count, 2))
        boxes = np.concatenate([low, low + np.exp(random.uniform(1.5, 5.5, (count, 2)))], axis=1)
        labels = random.integers(0, classes, count)
        rows.append([(*box, int(label)) for box, label in zip(boxes.tolist(), labels, strict=True)])
        near = np.repeat(np.arange(count), random.integers(0, 40, count))
        moved = boxes[near] + random.normal(0, 5, (len(near), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        guessed = np.where(random.random(len(near)) < 0.8, labels[near], random.integers(0, classes, len(near)))
        scores = np.round(random.random(len(near)), 2)
        order = np.argsort(-scores, kind="stable")
        found = (torch.from_numpy(moved[order]).float(), torch.from_numpy(scores[order]).float())
        detections.append(Detections(*found, torch.from_numpy(guessed[order])))
    objects = sum(map(len, rows))
    names = tuple(f"class {k}" for k in range(classes + 1))  # the last one never occurs
    return index_of(*rows, names=names, crowd=tuple(range(0, objects, 9))), detections


@pytest.mark.parametrize("seed", range(3))
def test_both_libraries_agree(seed: int) -> None:
    index, detections = random_split(seed, images=30, classes=4)
    curves, reference = (coco_curves(index, detections, engine=engine) for engine in get_args(CocoEngine))
    np.testing.assert_allclose(curves.precision, reference.precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves.recall, reference.recall, rtol=0, atol=1e-12)
    assert 0.05 < float(figures(index, *detections).AP or 0) < 0.95


def test_figures_are_those_of_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    index, detections = random_split(7, images=30, classes=4)
    rows = coco_results(index, detections)
    ids = [int(path.stem) for path in index.paths]
    images = np.repeat(ids, np.diff(index.box_offsets)).tolist()
    objects = [
        {"id": k, "image_id": image, "category_id": int(label) + 1, "iscrowd": int(crowd)}
        | {"bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()], "area": float(np.prod(box[2:] - box[:2]))}
        for k, (image, box, label, crowd) in enumerate(
            zip(images, index.boxes_xyxy, index.labels, index.crowd, strict=True), start=1
        )
    ]
    truth = COCO()
    truth.dataset = {"images": [{"id": i} for i in ids], "annotations": objects, "info": {}}
    truth.dataset["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(index.class_names)]
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ours = coco_metrics(index, detections).as_dict()
    # its results format has boxes to the thousandth of a pixel
    assert [ours[name] for name in FIGURES] == pytest.approx(evaluation.stats.tolist(), abs=2e-3)
    exact = coco_metrics(index, [_rounded(found) for found in detections]).as_dict()
    assert [exact[name] for name in FIGURES] == pytest.approx(evaluation.stats.tolist(), abs=1e-9)


def _rounded(found: Detections) -> Detections:
    low, sides = found.boxes_xyxy[:, :2], found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
    low, sides = (torch.round(part.double(), decimals=3) for part in (low, sides))
    return Detections(torch.cat((low, low + sides), dim=1).float(), found.scores, found.labels)


def test_results_format() -> None:
    rows = coco_results(TWO, [found(), found((1.23456, 2, 11, 22, 2, 0.123456))])
    assert rows == [{"image_id": 10, "category_id": 3, "bbox": [1.235, 2.0, 9.765, 20.0], "score": 0.12346}]


def test_coco_keeps_its_category_ids() -> None:
    names = ("person", *(f"class {i}" for i in range(78)), "toothbrush")
    index = index_of([CAT], names=names)
    ids = [
        row["category_id"]
        for row in coco_results(index, [found((*CAT[:4], 0, 0.9), (*CAT[:4], 11, 0.8), (*CAT[:4], 79, 0.7))])
    ]
    assert ids == [1, 13, 90]
