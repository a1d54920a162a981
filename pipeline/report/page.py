"""The HTML page with all tables. It is one file that needs no network; its pictures are files of other stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.charts import Curve, make_charts
from pipeline.report.html import render_template
from pipeline.report.paper.counting import conventions
from pipeline.report.paper.errata import Erratum
from pipeline.report.paper.improvement import Improvement
from pipeline.report.paper.printed import LABELS
from pipeline.report.summary import SummaryRow
from pipeline.report.tables import Table
from pipeline.report.text_tables import (
    ERRATA_HEAD,
    IMPROVEMENT_NOTE,
    SUMMARY_HEAD,
    counting_text,
    difference_text,
    empty_lines,
    improvement_head,
    improvement_texts,
    ours_text,
    summary_texts,
)


@dataclass(frozen=True)
class Picture:
    """A picture that the page shows.

    Attributes:
        path: The file, relative to the page.
        caption: What it shows.
    """

    path: str
    caption: str


@dataclass(frozen=True)
class Page:
    """The content of the page.

    Attributes:
        title: The heading.
        subtitle: The data.
        conditions: Under which conditions the summary was measured.
        missing: Files that no stage has written yet, one per line.
        summary: The comparison of the variants.
        curves: Pairs of epoch and AP by variant, one curve per seed.
        pictures: The pictures.
        tables: The paper's tables with our figures.
        improvements: The improvement rows of Table 1.
        errata: The errata of the paper's tables.
        outcome: The result of comparing #Param and FLOPs with the paper.
    """

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


@dataclass(frozen=True)
class _TableView:
    """A table with what its columns and notes need.

    Attributes:
        table: The table.
        filled: Quantities with figures of ours; they have three columns: the paper's figure, ours, the difference.
        row_notes: The number of each remark on rows.
        notes: Remarks on the whole table.
        has_countings: Whether the table says how rows were counted.
    """

    table: Table
    filled: frozenset[str]
    row_notes: Mapping[str, int]
    notes: Sequence[str]
    has_countings: bool


def render_page(page: Page) -> str:
    """Return the page as HTML.

    Args:
        page: The content.

    Returns:
        The text of the file.
    """
    return render_template(
        "tables.html",
        page=page,
        charts=make_charts(page.curves, page.summary),
        tables=[_view(table) for table in page.tables],
        labels=LABELS,
        summary_head=SUMMARY_HEAD,
        summary_rows=[summary_texts(row) for row in page.summary],
        improvement_head=improvement_head(page.improvements),
        improvement_rows=[improvement_texts(row) for row in page.improvements],
        improvement_note=IMPROVEMENT_NOTE,
        errata_head=ERRATA_HEAD,
        conventions=conventions(),
        counting_text=counting_text,
        ours_text=ours_text,
        difference_text=difference_text,
    )


def _view(table: Table) -> _TableView:
    remarks = dict.fromkeys(row.note for row in table.rows if row.note)
    return _TableView(
        table=table,
        filled=frozenset(cell.quantity for row in table.rows for cell in row.cells if cell.ours is not None),
        row_notes={note: number for number, note in enumerate(remarks, start=1)},
        notes=(*table.notes, *empty_lines(table)),
        has_countings=any(map(counting_text, table.rows)),
    )
