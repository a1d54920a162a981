"""Figures of detections whose value is known: perfect ones, none, crowds, absent classes, confusions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from yolov7.data.index import ImageIndex
from yolov7.evaluation.coco import coco_curves
from yolov7.evaluation.figures import (
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


def test_results_keep_the_ids_of_the_source_and_all_digits() -> None:
    index = replace(TWO, image_ids=(7, "b"), category_ids=(0, "dog", 90))
    rows = coco_results(index, [found(), found((1.23456, 2, 11, 22, 2, 0.123456), (1, 2, 3, 4, 1, 0.1))])
    assert [(row["image_id"], row["category_id"]) for row in rows] == [("b", 90), ("b", "dog")]
    assert rows[0]["bbox"] == pytest.approx([1.23456, 2, 9.76544, 20], abs=1e-6)
    assert np.float32(rows[0]["bbox"][0]) == np.float32(1.23456)
    assert np.float32(rows[0]["score"]) == np.float32(0.123456)


def test_an_index_without_ids_counts_from_one() -> None:
    (row,) = coco_results(TWO, [found(), found((1, 2, 3, 4, 0, 0.5))])
    assert (row["image_id"], row["category_id"]) == (2, 1)


def test_tied_scores_count_in_the_order_of_the_image_ids() -> None:
    """A hit and a miss of equal score: precision depends on which counts first, so the order must be fixed."""
    index = index_of([CAT], [CAT])
    detections = [found((*CAT, 0.5)), found((300, 300, 330, 330, 0, 0.5))]
    hit_first = figures(replace(index, image_ids=(1, 2)), *detections)
    miss_first = figures(replace(index, image_ids=(2, 1)), *detections)
    assert pytest.approx(51 / 101) == hit_first.AP
    assert pytest.approx(51 / 101 / 2) == miss_first.AP
    turned = figures(replace(index, image_ids=(2, 1)), *detections[::-1])
    assert turned == hit_first
