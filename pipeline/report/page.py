"""The one HTML page of all tables: whole in itself, readable offline; pictures lie beside it in `artifacts/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from pipeline.report.charts import Curve, curve_chart, fps_chart
from pipeline.report.paper.counting import conventions
from pipeline.report.paper.errata import Erratum
from pipeline.report.paper.improvement import Improvement
from pipeline.report.paper.printed import LABELS
from pipeline.report.summary import SummaryRow
from pipeline.report.tables import Cell, Row, Table
from pipeline.report.text_tables import (
    ERRATA_HEAD,
    IMPROVEMENT_NOTE,
    SUMMARY_HEAD,
    counted_text,
    difference_text,
    improvement_head,
    improvement_texts,
    open_lines,
    ours_text,
    summary_texts,
)

_TEMPLATE = Path(__file__).parent / "templates" / "tables.html"


@dataclass(frozen=True)
class Picture:
    """A picture beside the page; `path` is relative to it."""

    path: str
    caption: str


@dataclass(frozen=True)
class Page:
    """All that the page shows. `curves`: AP by epoch, of each variant one curve a seed; `outcome`: of the check."""

    title: str
    subtitle: str
    conditions: str
    missing: Sequence[str]
    summary: Sequence[SummaryRow]
    curves: Mapping[str, Sequence[Curve]]
    pictures: Sequence[Picture]
    tables: Sequence[Table]
    improvements: Sequence[Improvement]
    errata: Sequence[Erratum]
    outcome: str


def render_page(page: Page) -> str:
    """The page's HTML."""
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(page.title),
        subtitle=escape(page.subtitle),
        conditions=escape(page.conditions),
        outcome=escape(page.outcome),
        missing=_missing(page.missing),
        summary=_plain_table(SUMMARY_HEAD, map(summary_texts, page.summary)),
        charts=curve_chart(page.curves) + fps_chart(page.summary),
        pictures="".join(map(_picture, page.pictures)) or "<p class=soft>None were made.</p>",
        links=" ".join(f'<a href="#{table.name}">{escape(table.title.partition(":")[0])}</a>' for table in page.tables),
        tables="".join(map(_table, page.tables)),
        improvements=_improvements(page.improvements),
        errata=_errata(page.errata),
        conventions="".join(f"<dt>{escape(k)}<dd>{escape(text)}" for k, text in conventions().items()),
    )


def _missing(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in missing)
    head = f"{len(missing)} not there yet, left open below"
    return f"<details class=open><summary>{head}</summary><ul>{lines}</ul></details>"


def _plain_table(head: Iterable[str], rows: Iterable[Iterable[str]], *, kind: str = "") -> str:
    """The first cell of each row is its head."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(_plain_cell(text, first=not i) for i, text in enumerate(row))}</tr>" for row in rows)
    table = f'<table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f"<div class=scroll tabindex=0>{table}</div>"


def _plain_cell(text: str, *, first: bool) -> str:
    lines = escape(text).replace("\n", "<br>")
    return f"<th>{lines}</th>" if first else f"<td>{lines}</td>"


def _picture(picture: Picture) -> str:
    path, caption = escape(picture.path), escape(picture.caption)
    image = f'<img src="{path}" alt="{caption}" loading="lazy">'
    return f'<figure><a href="{path}">{image}</a><figcaption>{caption}</figcaption></figure>'


def _table(table: Table) -> str:
    """Where a quantity has figures of ours, three columns: the paper's, ours, the difference; otherwise the paper's."""
    filled = {cell.quantity for row in table.rows for cell in row.cells if cell.ours is not None}
    groups = "".join(
        f"<th colspan=3 class=group>{escape(LABELS[q])}</th>" if q in filled else f"<th>{escape(LABELS[q])}</th>"
        for q in table.quantities
    )
    kinds = "".join(
        "<th class=group>paper</th><th>ours</th><th>Δ</th>" if q in filled else "<th>paper</th>"
        for q in table.quantities
    )
    notes = {note: i for i, note in enumerate(dict.fromkeys(row.note for row in table.rows if row.note), start=1)}
    listed = "".join(f"<li><sup>{number}</sup> {escape(note)}</li>" for note, number in notes.items())
    listed += "".join(f"<li>{escape(note)}</li>" for note in (*table.notes, *open_lines(table)))
    tagged = any(map(counted_text, table.rows))
    tag = "<th rowspan=2 class=tag>counted</th>" if tagged else ""
    hide = "<label><input type=checkbox> hide the rows that are cited only</label>"
    return (
        f'<section class=paper id="{table.name}"><h3>{escape(table.title)}</h3>'
        f"{hide if any(row.cited for row in table.rows) else ''}<div class=scroll tabindex=0>"
        f"<table><thead><tr><th rowspan=2>model</th><th rowspan=2>size</th>{tag}{groups}"
        f"<th rowspan=2 class=variant>variant</th></tr><tr>{kinds}</tr></thead>"
        f"<tbody>{''.join(_row(row, filled, notes, tagged=tagged) for row in table.rows)}</tbody></table></div>"
        f"<ul class=notes>{listed}</ul></section>"
    )


def _row(row: Row, filled: Iterable[str], notes: Mapping[str, int], *, tagged: bool) -> str:
    cells = "".join(_cell(cell, wide=cell.quantity in filled) for cell in row.cells)
    kind = " class=cited" if row.cited else ""
    mark = f'<sup title="{escape(row.note)}">{notes[row.note]}</sup>' if row.note else ""
    tag = f"<td class=tag>{escape(counted_text(row))}</td>" if tagged else ""
    return (
        f"<tr{kind}><th>{escape(row.model)}{mark}</th><td>{row.size or ''}</td>{tag}{cells}"
        f"<td class=variant>{escape(row.variant)}</td></tr>"
    )


def _cell(cell: Cell, *, wide: bool) -> str:
    mark = '<a href="#errata" title="a listed erratum">†</a>' if cell.erratum else ""
    paper = f"{escape(cell.printed) or '–'}{mark}"
    if not wide:
        return f'<td class=figure title="{escape(cell.note)}">{paper}</td>'
    if cell.ours is None:
        return f'<td class="figure group">{paper}</td><td class=blank title="{escape(cell.note)}">·</td><td></td>'
    kind = "measured" if cell.origin == "measured here" else "computed"
    ours = f'<td class={kind} title="{escape(cell.note)}">{ours_text(cell)}</td>'
    return f'<td class="figure group">{paper}</td>{ours}<td class=delta>{difference_text(cell)}</td>'


def _improvements(rows: Sequence[Improvement]) -> str:
    table = _plain_table(improvement_head(rows), map(improvement_texts, rows))
    return f"{table}<p class=soft>{escape(IMPROVEMENT_NOTE)}</p>"


def _errata(errata: Sequence[Erratum]) -> str:
    lines = [[one.where, one.printed, one.found, "\n".join(one.arithmetic)] for one in errata]
    return _plain_table(ERRATA_HEAD, lines, kind="texts")
