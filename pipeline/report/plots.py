"""Plots twice: as data that `dvc plots show` draws, and as pictures that open anywhere, offline."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from yolov7.evaluation.figures import PrecisionRecall

_MOST_NAMED = 10  # classes with a colour and a name of their own
_MOST_COUNTS = 25  # classes whose cells show numbers
_MOST_LABELS = 100  # classes whose names stand at the sides
_BACKGROUND = "background"
_LOSSES = ("box", "objectness", "classification")


def write_precision_recall(folder: Path, curves: PrecisionRecall) -> None:
    """precision_recall.csv (recall, the mean of all classes as `all`, each class) and precision_recall.png."""
    mean = _mean_over_classes(curves.precision)
    columns = np.column_stack([curves.recall, mean, curves.precision])
    head = ("recall", "all", *_distinct(curves.class_names))
    rows = [[f"{value:.5g}" if np.isfinite(value) else "" for value in line] for line in columns.tolist()]
    _write_csv(folder / "precision_recall.csv", head, rows)
    _draw_precision_recall(folder / "precision_recall.png", curves, mean)


def write_confusion(folder: Path, matrix: NDArray[np.int64], *, class_names: Sequence[str]) -> None:
    """confusion.csv, a line (actual, predicted) for each object as DVC's template counts them, and confusion.png.

    `matrix`: (classes + 1, classes + 1), rows are the truth, the last row and column the background.
    """
    names = (*_distinct(class_names), _BACKGROUND)
    pairs = [(names[i], names[j]) for i, j in np.argwhere(matrix > 0).tolist() for _ in range(int(matrix[i, j]))]
    _write_csv(folder / "confusion.csv", ("actual", "predicted"), pairs)
    _draw_confusion(folder / "confusion.png", matrix, names)


def draw_training(path: Path, epochs: Sequence[Mapping[str, Any]]) -> None:
    """A picture of a training run: losses, AP and speed by epoch. A figure may be missing in some epochs."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    losses, accuracy, speed = figure.subplots(1, 3)
    _draw_columns(losses, epochs, _LOSSES)
    _draw_columns(accuracy, epochs, ("AP", "AP50"))
    _draw_columns(speed, epochs, ("images_per_second",))
    for axes, title in ((losses, "losses"), (accuracy, "AP on val"), (speed, "images a second")):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0)
    _save(figure, path)


def _draw_columns(axes: Axes, epochs: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:
    for name in names:
        points = [(float(line["epoch"]), float(line[name])) for line in epochs if line.get(name) not in (None, "")]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else None)
    if axes.get_lines():
        axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.25)


def _draw_precision_recall(path: Path, curves: PrecisionRecall, mean: NDArray[np.float64]) -> None:
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    named = len(curves.class_names) <= _MOST_NAMED
    for name, precision in zip(curves.class_names, curves.precision.T, strict=True):
        label = f"{name} {_average(precision)}" if named else None
        axes.plot(curves.recall, precision, linewidth=1.2, label=label, color=None if named else "0.8")
    axes.plot(curves.recall, mean, linewidth=2.6, color="black", label=f"all classes {_average(mean)}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("Precision over recall at IoU 0.5, and AP50", loc="left", fontsize=10)
    axes.legend(fontsize=8, loc="lower left", framealpha=0.85)
    axes.grid(alpha=0.25)
    _save(figure, path)


def _draw_confusion(path: Path, matrix: NDArray[np.int64], names: Sequence[str]) -> None:
    """Shares of each true class; the counts in the cells."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(max(4.5, 0.42 * len(names)), 24.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if len(names) <= _MOST_COUNTS:
        for i, j in np.argwhere(matrix > 0).tolist():
            colour = "white" if shares[i, j] > 0.55 else "black"
            axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", fontsize=8, color=colour)
    if len(names) <= _MOST_LABELS:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("Detections of confidence 0.25 and more, IoU 0.5", loc="left", fontsize=10)
    _save(figure, path)


def _mean_over_classes(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a split without any object
        return np.asarray(np.nanmean(precision, axis=1))


def _average(precision: NDArray[np.float64]) -> str:
    known = precision[np.isfinite(precision)]
    return f"{known.mean():.3f}" if known.size else "(no objects)"


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names as columns: a class may be called `all` or `recall` too."""
    taken = {"recall", "all", _BACKGROUND}
    return tuple(f"{name} (class)" if name in taken else name for name in names)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
