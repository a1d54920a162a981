"""Plots of training and evaluation: as CSV files, and as pictures."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.report.canvas import DrawableNames, add_note, drawable_names, drawing, save_png

if TYPE_CHECKING:  # it imports torch, which plots of a training do not need
    from yolov7.evaluation.figures import PrecisionRecall

_MOST_NAMED = 10  # classes with a colour and a legend entry of their own
_MOST_COUNTS = 25  # classes whose cells show numbers
_MOST_LABELS = 100  # classes whose names are written at the axes
_BACKGROUND = "background"
_LOSSES = ("box", "objectness", "classification")


def write_precision_recall(folder: Path, curves: PrecisionRecall) -> None:
    """Write precision_recall.csv and precision_recall.png.

    The columns of the CSV file are `recall`, `all` (the mean over all classes), and each class.

    Args:
        folder: The folder, which must exist.
        curves: Precision over recall at IoU 0.5; NaN for classes without objects.
    """
    mean = _mean_over_classes(curves.precision)
    columns = np.column_stack([curves.recall, mean, curves.precision])
    head = ("recall", "all", *distinct_names(curves.class_names))
    rows = [[f"{value:.5g}" if np.isfinite(value) else "" for value in line] for line in columns.tolist()]
    _write_csv(folder / "precision_recall.csv", head, rows)
    names = drawable_names(curves.class_names)
    with drawing(names.fonts):
        _draw_precision_recall(folder / "precision_recall.png", curves, mean, names)


def write_confusion(folder: Path, matrix: NDArray[np.int64], *, class_names: Sequence[str]) -> None:
    """Write confusion.csv and confusion.png.

    The CSV file has one line (actual, predicted) per object, which is the form that DVC's confusion template counts.

    Args:
        folder: The folder, which must exist.
        matrix: Counts of shape (classes + 1, classes + 1). Rows are the true classes, columns the predicted ones; the
            last row and column are the background.
        class_names: The names of the classes.
    """
    names = (*distinct_names(class_names), _BACKGROUND)
    pairs = [(names[i], names[j]) for i, j in np.argwhere(matrix > 0).tolist() for _ in range(int(matrix[i, j]))]
    _write_csv(folder / "confusion.csv", ("actual", "predicted"), pairs)
    drawable = drawable_names(names)
    with drawing(drawable.fonts):
        _draw_confusion(folder / "confusion.png", matrix, drawable)


def draw_training(path: Path, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Draw losses, AP and speed of a training run by epoch.

    Args:
        path: The PNG file to write.
        epochs: The record of each epoch; any figure may be missing in some of them.
    """
    with drawing():
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        losses, accuracy, speed = figure.subplots(1, 3)
        _draw_columns(losses, epochs, _LOSSES)
        _draw_columns(accuracy, epochs, ("AP", "AP50"))
        _draw_columns(speed, epochs, ("images_per_second",))
        for axes, title in ((losses, "losses"), (accuracy, "AP on val"), (speed, "images per second")):
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel("epoch")
            axes.set_ylim(bottom=0)
        save_png(figure, path)


def _draw_columns(axes: Axes, epochs: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:
    for name in names:
        points = [(float(line["epoch"]), float(line[name])) for line in epochs if line.get(name) not in (None, "")]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else None)
    if axes.get_lines():
        axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.25)


def _draw_precision_recall(
    path: Path, curves: PrecisionRecall, mean: NDArray[np.float64], names: DrawableNames
) -> None:
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    named = len(names.texts) <= _MOST_NAMED
    entries = []
    for name, precision in zip(names.texts, curves.precision.T, strict=True):
        (line,) = axes.plot(curves.recall, precision, linewidth=1.2, color=None if named else "0.8")
        if named:
            entries.append((line, f"{name} {_average(precision)}"))
    (line,) = axes.plot(curves.recall, mean, linewidth=2.6, color="black")
    entries.append((line, f"all classes {_average(mean)}"))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("Precision over recall at IoU 0.5, and AP50", loc="left", fontsize=10)
    # The lines carry no labels of their own, because matplotlib leaves out labels that begin with an underscore.
    axes.legend(*zip(*entries, strict=True), fontsize=8, loc="lower left", framealpha=0.85)
    axes.grid(alpha=0.25)
    if named:
        add_note(figure, names.note)
    save_png(figure, path)


def _draw_confusion(path: Path, matrix: NDArray[np.int64], names: DrawableNames) -> None:
    """Draw shares of each true class as colours, and the counts in the cells."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(max(4.5, 0.42 * len(names.texts)), 24.0)
    room = 0.08 * max(map(len, names.texts))  # inches, for the names at both axes
    figure = Figure(figsize=(side + 1 + room, side + room), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if len(names.texts) <= _MOST_COUNTS:
        for i, j in np.argwhere(matrix > 0).tolist():
            colour = "white" if shares[i, j] > 0.55 else "black"
            axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", fontsize=8, color=colour)
    if len(names.texts) <= _MOST_LABELS:
        axes.set_xticks(range(len(names.texts)), names.texts, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names.texts)), names.texts, fontsize=8)
        add_note(figure, names.note)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("Detections with confidence of at least 0.25, IoU 0.5", loc="left", fontsize=10)
    save_png(figure, path)


def _mean_over_classes(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy warns if no class has objects
        return np.asarray(np.nanmean(precision, axis=1))


def _average(precision: NDArray[np.float64]) -> str:
    known = precision[np.isfinite(precision)]
    return f"{known.mean():.3f}" if known.size else "(no objects)"


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names that differ from `recall`, `all` and `background`, which the CSV files contain too.

    Args:
        names: The class names, in the order of their numbers.

    Returns:
        The names as the CSV files contain them.
    """
    taken = ["recall", "all", _BACKGROUND]
    for name in names:
        column = name
        while column in taken:
            column += " (class)"
        taken.append(column)
    return tuple(taken[3:])


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
