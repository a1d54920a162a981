"""Draw AP over the number of training images, from the table in accuracy.md.

`python docs/design/learning_curves.py` reads the table of the page and writes docs/pictures/learning-curves.svg.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from matplotlib import rcParams
from matplotlib.figure import Figure

from pipeline.report.chart import INK, colour_of, style_axes

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parent / "pictures" / "learning-curves.svg"
ALL = {"BCCD": 292, "Dice": 200}  # images of the training splits
_TABLE = re.compile(r"^\| Data \| Training \| (.+) \|\n\|[-:|]+\|\n((?:\|.*\n)+)", re.MULTILINE)


class Curve(NamedTuple):
    """A learning curve, which is one row of the table.

    Attributes:
        data: The data set.
        training: How the models were trained.
        images: The numbers of training images.
        means: The mean AP over seeds for each of them.
        deviations: The standard deviations of AP.
    """

    data: str
    training: str
    images: tuple[int, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]


def read_curves(page: str) -> list[Curve]:
    """Read the learning curves from the page.

    Args:
        page: The text of accuracy.md.

    Returns:
        One curve for each row.

    Raises:
        ValueError: If the page has no such table, or a cell is no figure.
    """
    table = _TABLE.search(page)
    if table is None:
        raise ValueError("accuracy.md has no table of learning curves (columns: Data, Training, numbers of images)")
    columns = table[1].split(" | ")
    curves = []
    for row in table[2].splitlines():
        data, training, *cells = row.strip("| ").split(" | ")
        images = tuple(ALL[data] if column == "all" else int(column) for column in columns)
        figures = [cell.partition(" ± ") for cell in cells]
        means = tuple(float(mean) for mean, _, _ in figures)
        deviations = tuple(float(deviation or 0) for _, _, deviation in figures)  # a single seed has none
        curves.append(Curve(data, training.replace("`", ""), images, means, deviations))
    return curves


def describe(curves: list[Curve]) -> str:
    """Return one line with all figures, which is stored in the metadata of the picture.

    Args:
        curves: The curves.
    """
    return "; ".join(f"{curve.data}, {curve.training}: {' '.join(map(str, curve.means))}" for curve in curves)


def draw(curves: list[Curve], path: Path) -> None:
    """Draw the learning curves, with one chart for each data set.

    Args:
        curves: The curves.
        path: The picture to write.
    """
    rcParams["svg.hashsalt"] = "learning-curves"  # the same curves give the same file
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    names = list(dict.fromkeys(curve.training for curve in curves))
    for axes, data in zip(figure.subplots(1, len(ALL)), ALL, strict=True):
        style_axes(axes, x=f"training images of {data}", y="AP on the test split")
        axes.set_xscale("log")
        shown = [curve for curve in curves if curve.data == data]
        images = shown[0].images
        axes.set_xticks(images, labels=[f"all {n}" if n == ALL[data] else str(n) for n in images])
        axes.set_xticks((), minor=True)
        for curve in shown:
            colour = colour_of(names.index(curve.training))
            axes.errorbar(
                curve.images, curve.means, curve.deviations, color=colour, marker="o", capsize=3, label=curve.training
            )
        axes.set_ylim(bottom=0)
    # Every chart has the same curves.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, labelcolor=INK)
    figure.savefig(path, transparent=True, metadata={"Date": None, "Description": describe(curves)})


if __name__ == "__main__":
    draw(read_curves((FOLDER / "accuracy.md").read_text(encoding="utf-8")), PICTURE)
