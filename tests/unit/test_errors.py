"""The analysis of errors: their kinds, the best and worst images of each class, and labels that may be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from yolov7.data.index import ImageIndex
from yolov7.evaluation.errors import ErrorReport, analyse_errors
from yolov7.structures import Detections

LABELS = [
    [(0, 0, 10, 10, 0), (50, 50, 70, 70, 1)],
    [(5, 5, 35, 35, 0)],
    [(60, 60, 90, 90, 1)],
]


def index_of(labels: list[list[tuple[int, int, int, int, int]]], *, crowd: bool = False) -> ImageIndex:
    rows = [row for image in labels for row in image]
    sides = np.full(len(labels), 100, np.int32)
    return ImageIndex(
        class_names=("a", "b"),
        paths=tuple(Path(f"/data/{i}.png") for i in range(len(labels))),
        widths=sides,
        heights=sides,
        hashes=tuple(map(str, range(len(labels)))),
        box_offsets=np.cumsum([0, *map(len, labels)]),
        boxes_xyxy=np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        labels=np.array([row[4] for row in rows], np.int64),
        crowd=np.full(len(rows), crowd),
    )


def found(*rows: tuple[float, ...]) -> Detections:
    """Detections from rows of left, top, right, bottom, score and label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


@pytest.fixture(scope="module")
def report() -> ErrorReport:
    """A correct detection, one of the wrong class, a duplicate, one that is inexact, and one in the background."""
    detections = [
        found((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 70, 0.8, 0), (0, 1, 10, 11, 0.7, 0)),
        found((5, 5, 35, 35, 0.6, 0), (5, 20, 35, 70, 0.4, 0)),
        found((5, 5, 35, 35, 0.95, 1), (5, 5, 35, 36, 0.01, 1)),
    ]
    return analyse_errors(index_of(LABELS), detections, split="val")


def test_errors_are_counted_by_kind(report: ErrorReport) -> None:
    counts = {name: kind.count for name, kind in report.kinds.items()}
    assert counts == {"class": 1, "localisation": 1, "both": 0, "duplicate": 1, "background": 1, "missed": 1}
    assert report.kinds["class"].AP50_lost > 0  # type: ignore[operator]


def test_the_best_and_worst_images_of_a_class(report: ErrorReport) -> None:
    first = [one for one in report.examples if one.label == 0]
    assert [(one.image, one.best, one.correct, one.wrong, one.missed) for one in first] == [
        (1, True, 1, 1, 0),
        (0, True, 1, 2, 0),
    ]
    second = [one for one in report.examples if one.label == 1]
    assert [(one.image, one.best, one.wrong, one.missed) for one in second] == [(2, False, 1, 1), (0, False, 0, 1)]


def test_labels_that_may_be_wrong(report: ErrorReport) -> None:
    found = [(one.kind, one.image, one.label, one.found_label) for one in report.suspects]
    assert found == [("unlabelled", 2, None, 1), ("other class", 0, 1, 0), ("never found", 2, 1, None)]
    assert report.suspect_counts == {"unlabelled": 1, "other class": 1, "never found": 1}


def test_only_detections_that_are_shown_are_kept(report: ErrorReport) -> None:
    assert [len(report.detections[i]) for i in (0, 1, 2)] == [3, 2, 1]
    assert report.files == {0: "0.png", 1: "1.png", 2: "2.png"}
    assert ErrorReport.model_validate_json(report.model_dump_json()) == report


def test_crowd_regions_are_no_labels_to_check() -> None:
    crowded = analyse_errors(index_of(LABELS, crowd=True), [found()] * 3, split="val")
    assert not crowded.suspects
    assert {kind.AP50_lost for kind in crowded.kinds.values()} == {None}


def test_a_split_without_labels_and_detections() -> None:
    empty = analyse_errors(index_of([[], []]), [found(), found()], split="val")
    assert not empty.examples
    assert not empty.suspects
