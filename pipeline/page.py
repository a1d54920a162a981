"""The one HTML page of all tables: whole in itself, readable offline; pictures lie beside it in `artifacts/`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from pipeline.render import SUMMARY_HEAD, difference_text, origin_text, ours_text, paper_text, summary_texts
from pipeline.tables import LABELS, Cell, Row, SummaryRow, Table

_TEMPLATE = Path(__file__).parent / "templates" / "tables.html"
_COLOURS = 6  # of the template's style

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """A picture beside the page; `path` is relative to it."""

    path: str
    caption: str


@dataclass(frozen=True)
class Page:
    """All that the page shows. `curves`: AP by epoch, of each variant one curve a seed."""

    title: str
    subtitle: str
    conditions: str
    summary: Sequence[SummaryRow]
    curves: Mapping[str, Sequence[Curve]]
    pictures: Sequence[Picture]
    tables: Sequence[Table]


def render_page(page: Page) -> str:
    """The page's HTML."""
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(page.title),
        subtitle=escape(page.subtitle),
        conditions=escape(page.conditions),
        summary=_summary(page.summary),
        charts=_curve_chart(page.curves) + _fps_chart(page.summary),
        pictures="".join(map(_picture, page.pictures)) or "<p class=soft>None were made.</p>",
        links=" ".join(f'<a href="#{table.name}">{escape(table.title.partition(":")[0])}</a>' for table in page.tables),
        tables="".join(map(_table, page.tables)),
    )


def _summary(rows: Sequence[SummaryRow]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in SUMMARY_HEAD)
    return (
        f"<table class=summary><thead><tr>{head}</tr></thead><tbody>{''.join(map(_summary_row, rows))}</tbody></table>"
    )


def _summary_row(row: SummaryRow) -> str:
    name, *cells = summary_texts(row)
    return f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _picture(picture: Picture) -> str:
    path, caption = escape(picture.path), escape(picture.caption)
    image = f'<img src="{path}" alt="{caption}" loading="lazy">'
    return f'<figure><a href="{path}">{image}</a><figcaption>{caption}</figcaption></figure>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(LABELS[quantity])}</th>" for quantity in table.quantities)
    rows = "".join(map(_row, table.rows))
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<section class=paper id="{table.name}"><h2>{escape(table.title)}</h2>'
        f"<label><input type=checkbox checked> only models that we have figures for</label>"
        f"<div class=scroll tabindex=0><table><thead><tr><th>model</th><th>size</th>{head}<th>ours</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div><ul class=notes>{notes}</ul></section>"
    )


def _row(row: Row) -> str:
    cells = "".join(map(_cell, row.cells))
    kind = "" if row.has_ours else " class=bare"
    where = f"<td class=origin>{escape(origin_text(row)) if row.has_ours else ''}</td>"
    return f"<tr{kind}><th>{escape(row.model)}</th><td>{row.size or ''}</td>{cells}{where}</tr>"


def _cell(cell: Cell) -> str:
    paper = f"<span>{escape(paper_text(cell))}</span>"
    if cell.ours is None:
        return f"<td>{paper}</td>"
    kind = "measured" if cell.origin == "measured here" else "computed"
    title = escape(cell.note or cell.origin)
    return f'<td title="{title}">{paper}<b class={kind}>{ours_text(cell)}</b><i>{difference_text(cell)}</i></td>'


def _curve_chart(curves: Mapping[str, Sequence[Curve]]) -> str:
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


def _fps_chart(rows: Sequence[SummaryRow]) -> str:
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
