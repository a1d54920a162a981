"""The page's charts as SVG: AP by epoch, and FPS before and after re-parameterisation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.report.summary import SummaryRow

_COLOURS = 6  # of the template's style

Curve = Sequence[tuple[float, float]]


def curve_chart(curves: Mapping[str, Sequence[Curve]]) -> str:
    """AP by epoch, a colour a variant; empty where training measured none."""
    points = [point for seeds in curves.values() for curve in seeds for point in curve]
    if not points:
        return ""
    last, top = max(x for x, _ in points), _round_up(max(y for _, y in points))
    to_x, to_y = _axis(0, last, 44, 590), _axis(0, top, 216, 12)
    grid = "".join(
        f'<path class=grid d="M44 {to_y(y):.1f}H590"/><text x=38 y={to_y(y) + 4:.1f} text-anchor=end>{y:.2f}</text>'
        for y in (0, top / 2, top)
    )
    ticks = "".join(
        f"<text x={to_x(x):.1f} y=234 text-anchor=middle>{x:.0f}</text>" for x in dict.fromkeys((0, last // 2, last))
    )
    lines = "".join(
        f'<path class="line c{i % _COLOURS}" d="M{"L".join(f"{to_x(x):.1f} {to_y(y):.1f}" for x, y in curve)}"/>'
        for i, seeds in enumerate(curves.values())
        for curve in seeds
        if curve
    )
    return _chart("AP on val by epoch", curves, f"<svg viewBox='0 0 600 240' role=img>{grid}{ticks}{lines}</svg>")


def _round_up(value: float) -> float:
    """The next even tenth, or hundredth of small figures, so that the middle is a round number too."""
    unit = 0.2 if value > 0.1 else 0.02
    return max(math.ceil(value / unit), 1) * unit


def _axis(low: float, high: float, start: float, end: float) -> Axis:
    return Axis(low, max(high - low, 1e-9), start, end - start)


@dataclass(frozen=True)
class Axis:
    """A scale from values to the picture's units."""

    low: float
    extent: float
    start: float
    length: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / self.extent * self.length


def fps_chart(rows: Sequence[SummaryRow]) -> str:
    """Two bars a variant; empty where nothing was measured."""
    measured = [row for row in rows if row.fps_before is not None and row.fps_after is not None]
    if not measured:
        return ""
    to_x = _axis(0, max(max(row.fps_before or 0, row.fps_after or 0) for row in measured), 0, 400)
    bars = "".join(_bars(row, i, to_x) for i, row in enumerate(measured))
    drawn = f"<svg viewBox='0 0 600 {52 * len(measured)}' role=img>{bars}</svg>"
    return _chart("FPS as trained (pale) and re-parameterised", (), drawn)


def _bars(row: SummaryRow, i: int, to_x: Axis) -> str:
    top = 52 * i
    name = f"<text x=112 y={top + 27} text-anchor=end>{escape(row.variant[:18])}</text>"
    bars = "".join(
        f'<rect class="c{i % _COLOURS} {kind}" x=120 y={top + y} width={to_x(fps):.1f} height=18 rx=2 />'
        f"<text x={126 + to_x(fps):.1f} y={top + y + 14}>{fps:.0f}</text>"
        for kind, y, fps in (("pale", 4, row.fps_before or 0), ("", 24, row.fps_after or 0))
    )
    return name + bars


def _chart(title: str, names: Iterable[str], drawn: str) -> str:
    legend = "".join(f'<span class="key c{i % _COLOURS}">{escape(name)}</span>' for i, name in enumerate(names))
    return f"<figure class=chart><figcaption>{escape(title)} {legend}</figcaption>{drawn}</figure>"
