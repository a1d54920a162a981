"""Plots as data and as pictures."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.report.plots import draw_training, write_confusion, write_precision_recall
from yolov7.evaluation.figures import PrecisionRecall


def read_lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def is_picture(path: Path) -> bool:
    picture = cv2.imread(str(path))
    return picture is not None and picture.std() > 0


@pytest.mark.parametrize("num_classes", [1, 3, 40])
def test_precision_and_recall(tmp_path: Path, num_classes: int) -> None:
    recall = np.linspace(0, 1, 101)
    precision = np.repeat(1 - recall[:, None], num_classes, axis=1)
    precision[:, -1] = np.nan  # no objects of this class
    names = tuple(f"class {i}" for i in range(num_classes))
    write_precision_recall(tmp_path, PrecisionRecall(recall, precision, names))
    lines = read_lines(tmp_path / "precision_recall.csv")
    assert len(lines) == 101
    assert list(lines[0]) == ["recall", "all", *names]
    assert lines[50][names[-1]] == ""
    if num_classes > 1:
        assert float(lines[50]["all"]) == float(lines[50]["class 0"]) == 0.5
    assert is_picture(tmp_path / "precision_recall.png")


def test_a_class_may_be_called_like_a_column(tmp_path: Path) -> None:
    curves = PrecisionRecall(np.linspace(0, 1, 101), np.ones((101, 2)), ("all", "recall"))
    write_precision_recall(tmp_path, curves)
    assert list(read_lines(tmp_path / "precision_recall.csv")[0]) == ["recall", "all", "all (class)", "recall (class)"]


def test_confusion_has_a_line_for_each_object(tmp_path: Path) -> None:
    matrix = np.array([[3, 1, 0], [0, 2, 4], [5, 0, 0]])
    write_confusion(tmp_path, matrix, class_names=("a", "b"))
    lines = Counter((line["actual"], line["predicted"]) for line in read_lines(tmp_path / "confusion.csv"))
    assert lines == {("a", "a"): 3, ("a", "b"): 1, ("b", "b"): 2, ("b", "background"): 4, ("background", "a"): 5}
    assert is_picture(tmp_path / "confusion.png")


def test_confusion_of_nothing(tmp_path: Path) -> None:
    write_confusion(tmp_path, np.zeros((2, 2), np.int64), class_names=("a",))
    assert read_lines(tmp_path / "confusion.csv") == []


def test_a_training_run_with_gaps(tmp_path: Path) -> None:
    epochs = [{"epoch": "1", "box": "0.5", "AP": ""}, {"epoch": 2, "box": 0.4, "AP": 0.1, "AP50": None}]
    draw_training(tmp_path / "curve.png", epochs)
    assert is_picture(tmp_path / "curve.png")
