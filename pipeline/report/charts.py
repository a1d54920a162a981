"""The charts of the report page: AP by epoch, and FPS before and after re-parameterisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.canvas import COLOURS, drawing, svg_text
from pipeline.report.summary import SummaryRow

_INK = "#7d868e"  # readable on light and on dark pages
_WIDTH = 4.2  # inches; the page scales charts, and at this width their text is about as large as its own

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        title: The heading.
        names: The variants in its legend.
        colours: The colour of each of them, as in HTML.
        svg: The SVG element.
    """

    title: str
    names: tuple[str, ...]
    colours: tuple[str, ...]
    svg: str


def make_charts(curves: Mapping[str, Sequence[Curve]], rows: Sequence[SummaryRow]) -> tuple[Chart, ...]:
    """Draw all charts for which there are figures.

    Args:
        curves: Pairs of epoch and AP; one curve per variant and seed.
        rows: The summary of the variants.

    Returns:
        The charts.
    """
    measured = {name: [curve for curve in seeds if curve] for name, seeds in curves.items()}
    timed = [row for row in rows if row.fps_before is not None and row.fps_after is not None]
    charts = []
    with drawing():
        if any(measured.values()):
            charts.append(_curve_chart(measured))
        if timed:
            charts.append(_fps_chart(timed))
    return tuple(charts)


def _curve_chart(curves: Mapping[str, Sequence[Curve]]) -> Chart:
    title = "AP on val by epoch"
    figure, axes = _new_chart(height=2.1)
    colours = tuple(COLOURS[i % len(COLOURS)] for i in range(len(curves)))
    for seeds, colour in zip(curves.values(), colours, strict=True):
        for curve in seeds:
            mark = "o" if len(curve) == 1 else None
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.6, marker=mark)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.grid(axis="y", color=_INK, alpha=0.3, linewidth=0.6)
    return Chart(title, tuple(curves), colours, svg_text(figure, title=title))


def _fps_chart(rows: Sequence[SummaryRow]) -> Chart:
    title = "FPS as trained (pale) and re-parameterised"
    figure, axes = _new_chart(height=0.4 + 0.46 * len(rows))
    for i, row in enumerate(rows):
        for fps, y, alpha in ((row.fps_before or 0.0, i - 0.2, 0.4), (row.fps_after or 0.0, i + 0.2, 1.0)):
            axes.barh(y, fps, height=0.36, color=COLOURS[i % len(COLOURS)], alpha=alpha, linewidth=0)
            axes.annotate(f" {fps:.0f}", (fps, y), va="center", color=_INK, fontsize=8)
    axes.set_yticks(range(len(rows)), [_shortened(row.variant) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return Chart(title, (), (), svg_text(figure, title=title))


def _new_chart(*, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=8)
    return figure, axes


def _shortened(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:20]}..."
