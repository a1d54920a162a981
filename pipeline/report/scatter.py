"""Speed against accuracy: the variants in colour, and the models of the paper's Table 2 in grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pipeline.artifacts.reports import Benchmark
from pipeline.report.canvas import drawing, svg_text
from pipeline.report.chart import INK, Chart, colour_of, new_chart
from pipeline.report.paper.printed import printed_table, value_of
from pipeline.report.summary import SummaryRow, headline_row

_FAMILY = "YOLOv7"  # the models of the paper whose names the charts show


@dataclass(frozen=True)
class _Point:
    """A model of the paper: cost in GFLOPs or milliseconds, and AP in percent."""

    name: str
    cost: float
    AP: float


def scatter_charts(rows: Sequence[SummaryRow], benchmark: Benchmark | None, *, is_coco: bool) -> list[Chart]:
    """Draw AP over GFLOPs and over milliseconds.

    Args:
        rows: The summary.
        benchmark: The benchmark; None if it was not run.
        is_coco: Whether the variants were evaluated on the data of the paper.

    Returns:
        The charts for which any variant has figures.
    """
    times = {
        row.variant: 1000 / measured.fps
        for row in rows
        if (measured := headline_row(benchmark, variant=row.variant, form="deployed")) is not None
    }
    costs = {row.variant: row.gflops for row in rows if row.gflops}
    data = (
        ""
        if is_coco
        else "The paper's models were measured on COCO: their AP cannot be compared with AP on other data."
    )
    device = "The paper's times are those of a V100."
    return [
        *_scatter("AP over GFLOPs", rows, costs, quantity="gflops", x="GFLOPs of the deployed model", note=data),
        *_scatter(
            "AP over time per image",
            rows,
            times,
            quantity="fps_v100",
            x="milliseconds per image, without NMS",
            note=f"{device} {data}".strip(),
        ),
    ]


def _scatter(
    title: str, rows: Sequence[SummaryRow], costs: dict[str, float], *, quantity: str, x: str, note: str
) -> list[Chart]:
    measured = [(i, row) for i, row in enumerate(rows) if row.AP is not None and costs.get(row.variant)]
    if not measured:
        return []
    with drawing():
        figure, axes = new_chart(height=2.6, x=x, y="AP in percent")
        _draw_paper(axes, quantity)
        for i, row in measured:
            spread = None if row.AP_spread is None else 100 * row.AP_spread
            AP = 100 * (row.AP or 0.0)
            axes.errorbar(costs[row.variant], AP, spread, fmt="o", color=colour_of(i), markersize=6, capsize=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        svg = svg_text(figure, title=title)
    names = (*(row.variant for _, row in measured), "the paper's models")
    return [Chart(title, svg, names, (*(colour_of(i) for i, _ in measured), INK), note)]


def _draw_paper(axes: Axes, quantity: str) -> None:
    for point in _paper_points(quantity):
        is_named = point.name.startswith(_FAMILY)
        axes.plot(point.cost, point.AP, "o", color=INK, alpha=0.9 if is_named else 0.4, markersize=3)
    family = sorted((one for one in _paper_points(quantity) if one.name.startswith(_FAMILY)), key=lambda one: one.AP)
    for point, side, shift in ((family[0], "left", (4, -7)), (family[-1], "right", (0, 4))):
        axes.annotate(
            point.name, (point.cost, point.AP), shift, textcoords="offset points", ha=side, color=INK, fontsize=7
        )


def _paper_points(quantity: str) -> tuple[_Point, ...]:
    """Return the models of Table 2 with AP on val2017 and a cost; FPS become milliseconds."""
    points = []
    for row in printed_table("table2").rows:
        cost, AP = row.figures.get(quantity), row.figures.get("ap_val")
        if cost and AP:
            value = value_of(cost)
            points.append(_Point(row.model, 1000 / value if quantity.startswith("fps") else value, value_of(AP)))
    return tuple(points)
