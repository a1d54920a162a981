"""One chart of the page, and the look that all of them share."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.canvas import COLOURS

INK = "#7d868e"  # readable on light and on dark pages
_WIDTH = 4.2  # inches; the page scales charts, and at this width their text is about as large as its own


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        title: The heading.
        svg: The SVG element.
        names: The names in its legend.
        colours: The colour of each of them, as in HTML.
        note: A remark below the chart; empty for none.
    """

    title: str
    svg: str
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    note: str = ""


def colour_of(i: int) -> str:
    """Return the colour of the variant or class number i."""
    return COLOURS[i % len(COLOURS)]


def new_chart(*, height: float, x: str = "", y: str = "") -> tuple[Figure, Axes]:
    """Return an empty chart that is readable on light and on dark pages.

    Args:
        height: Its height in inches.
        x: The name of the horizontal axis.
        y: The name of the vertical axis.

    Returns:
        The figure and its axes.
    """
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    style_axes(axes, x=x, y=y)
    return figure, axes


def style_axes(axes: Axes, *, x: str = "", y: str = "") -> None:
    """Give axes the look of the page.

    Args:
        axes: The axes.
        x: The name of the horizontal axis.
        y: The name of the vertical axis.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8)
    axes.set_xlabel(x, color=INK, fontsize=8.5)
    axes.set_ylabel(y, color=INK, fontsize=8.5)
    axes.grid(alpha=0.3, color=INK, linewidth=0.5)
    axes.set_axisbelow(True)
