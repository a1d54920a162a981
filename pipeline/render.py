"""Tables as CSV and Markdown. CSV has one line a figure, for machines; Markdown one line a model, for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.tables import LABELS, Cell, Row, SummaryRow, Table, fraction_text, number_text

SUMMARY_HEAD = ("variant", "AP", "AP50", "parameters", "GFLOPs", "size", "FPS before", "FPS after", "seeds")


def table_csv(table: Table) -> str:
    """One line for each model and quantity."""
    lines = [_csv_line(row, cell) for row in table.rows for cell in row.cells]
    return _to_csv(lines)


def table_markdown(table: Table) -> str:
    """The paper's figure in each cell, and ours in bold with the difference where there is one."""
    head = ["model", "size", *(LABELS[quantity] for quantity in table.quantities), "ours"]
    rows = [[row.model, str(row.size or "-"), *map(cell_text, row.cells), origin_text(row)] for row in table.rows]
    notes = "".join(f"- {note}\n" for note in table.notes)
    legend = "A cell holds the paper's figure; where we have one: **ours** (difference)."
    return f"# {table.title}\n\n{legend}\n\n{_to_markdown(head, rows)}\n{notes}"


def summary_csv(rows: Sequence[SummaryRow]) -> str:
    """All fields of all variants."""
    return _to_csv([row.model_dump() for row in rows])


def summary_markdown(rows: Sequence[SummaryRow], *, conditions: str) -> str:
    """The variants side by side."""
    return f"# Variants\n\n{_to_markdown(SUMMARY_HEAD, [summary_texts(row) for row in rows])}\n{conditions}\n"


def summary_texts(row: SummaryRow) -> list[str]:
    """The cells of a variant under `SUMMARY_HEAD`."""
    return [
        row.variant,
        fraction_text(row.AP, row.AP_spread),
        fraction_text(row.AP50, row.AP50_spread),
        f"{row.parameters:,}",
        f"{row.gflops:.2f}",
        str(row.image_size),
        number_text(row.fps_before, 0),
        number_text(row.fps_after, 0),
        str(row.seeds),
    ]


def cell_text(cell: Cell) -> str:
    """`36.9`, or `36.9 **36.91** (+0.01)`."""
    ours = "" if cell.ours is None else f" **{ours_text(cell)}**"
    difference = "" if cell.difference is None else f" ({difference_text(cell)})"
    return f"{paper_text(cell)}{ours}{difference}"


def paper_text(cell: Cell) -> str:
    """As the paper prints it."""
    return "-" if cell.paper is None else f"{cell.paper:g}" if "fps" in cell.quantity else f"{cell.paper:.1f}"


def ours_text(cell: Cell) -> str:
    """One digit more than the paper's."""
    return number_text(cell.ours, _digits(cell))


def difference_text(cell: Cell) -> str:
    """With its sign."""
    return "" if cell.difference is None else f"{cell.difference:+.{_digits(cell)}f}".replace("-", "−")


def origin_text(row: Row) -> str:
    """`computed: #Param (M), FLOPs (G); not measured: ...`: where ours came from, and why the rest is left open."""
    parts = []
    for origin in ("computed", "measured here"):
        names = [LABELS[cell.quantity] for cell in row.cells if cell.ours is not None and cell.origin == origin]
        parts += [f"{origin}: {', '.join(names)}"] if names else []
    reasons = dict.fromkeys(cell.note for cell in row.cells if cell.ours is None and "_test" not in cell.quantity)
    parts += [f"not measured: {reason}" for reason in reasons if reason]
    return "; ".join(parts)


def _digits(cell: Cell) -> int:
    return 1 if "fps" in cell.quantity else 2


def _csv_line(row: Row, cell: Cell) -> dict[str, Any]:
    difference = None if cell.difference is None else round(cell.difference, 6)
    figures = {"paper": cell.paper, "ours": cell.ours, "difference": difference}
    return {"model": row.model, "size": row.size, "quantity": cell.quantity} | figures | _origin(cell)


def _origin(cell: Cell) -> dict[str, str]:
    return {"origin": cell.origin, "note": cell.note}


def _to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _to_markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
