"""Plots as CSV files and as pictures, also for class names that matplotlib would misread or could not draw."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib import font_manager, get_data_path
from matplotlib.figure import Figure

from pipeline.report import canvas
from pipeline.report.canvas import drawable_names, drawing, svg_text
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


def test_a_class_may_have_the_name_of_a_column(tmp_path: Path) -> None:
    curves = PrecisionRecall(np.linspace(0, 1, 101), np.ones((101, 2)), ("all", "recall"))
    write_precision_recall(tmp_path, curves)
    assert list(read_lines(tmp_path / "precision_recall.csv")[0]) == ["recall", "all", "all (class)", "recall (class)"]


def test_the_confusion_file_has_one_line_per_object(tmp_path: Path) -> None:
    matrix = np.array([[3, 1, 0], [0, 2, 4], [5, 0, 0]])
    write_confusion(tmp_path, matrix, class_names=("a", "b"))
    lines = Counter((line["actual"], line["predicted"]) for line in read_lines(tmp_path / "confusion.csv"))
    assert lines == {("a", "a"): 3, ("a", "b"): 1, ("b", "b"): 2, ("b", "background"): 4, ("background", "a"): 5}
    assert is_picture(tmp_path / "confusion.png")


def test_confusion_without_objects(tmp_path: Path) -> None:
    write_confusion(tmp_path, np.zeros((2, 2), np.int64), class_names=("a",))
    assert read_lines(tmp_path / "confusion.csv") == []


def test_figures_may_be_missing_in_some_epochs(tmp_path: Path) -> None:
    epochs = [{"epoch": "1", "box": "0.5", "AP": ""}, {"epoch": 2, "box": 0.4, "AP": 0.1, "AP50": None}]
    draw_training(tmp_path / "curve.png", epochs)
    assert is_picture(tmp_path / "curve.png")


@pytest.fixture
def bundled_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave only the fonts that come with matplotlib, as on a machine without any others."""
    entries = font_manager.fontManager.ttflist
    monkeypatch.setattr(
        font_manager.fontManager, "ttflist", [entry for entry in entries if entry.fname.startswith(get_data_path())]
    )
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    canvas._fonts_for.cache_clear()
    yield
    canvas._fonts_for.cache_clear()


@pytest.mark.parametrize(
    "names",
    [
        ("$5", "Ba$$in", "US$ 100%$", "$\\frac$", "a$_$b"),
        ("_hidden", "\\n", "{x}", "%s"),
        ("a\nb\x1b[31m", " ", ""),
        ("x" * 300, "y" * 300),
        ("猫", "犬", "고양이"),
    ],
)
def test_every_class_name_can_be_drawn(
    names: tuple[str, ...], tmp_path: Path, bundled_fonts: None, recwarn: pytest.WarningsRecorder
) -> None:
    curves = PrecisionRecall(np.linspace(0, 1, 101), np.ones((101, len(names))), names)
    write_precision_recall(tmp_path, curves)
    write_confusion(tmp_path, np.ones((len(names) + 1, len(names) + 1), np.int64), class_names=names)
    assert is_picture(tmp_path / "precision_recall.png")
    assert is_picture(tmp_path / "confusion.png")
    assert list(read_lines(tmp_path / "precision_recall.csv")[0])[2:] == list(names)
    assert not recwarn.list


def test_dollar_signs_are_text_in_charts() -> None:
    with drawing():
        figure = Figure()
        figure.text(0.5, 0.5, "a $x^2$ & <b>")
        assert ">a $x^2$ &amp; &lt;b&gt;</text>" in svg_text(figure, title="names")


def test_a_name_that_no_font_can_draw_is_replaced_by_its_number(bundled_fonts: None) -> None:
    names = drawable_names(("cat", "猫", "dog"))
    assert names.texts == ("cat", "class 1", "dog")
    assert names.note == "No installed font has the characters of some names: class 1 = \\u732b."


def test_another_installed_font_draws_what_the_default_one_lacks(bundled_fonts: None) -> None:
    names = drawable_names(("cat", "\u231a"))  # a watch, which DejaVu Sans lacks
    assert (names.texts, names.fonts, names.note) == (("cat", "\u231a"), ("DejaVu Sans", "STIXGeneral"), "")


def test_a_note_makes_the_picture_say_which_names_are_replaced(tmp_path: Path, bundled_fonts: None) -> None:
    pictures = []
    for name in ("class 0", "猫"):
        write_confusion(tmp_path, np.ones((2, 2), np.int64), class_names=(name,))
        pictures.append(cv2.imread(str(tmp_path / "confusion.png")))
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()
