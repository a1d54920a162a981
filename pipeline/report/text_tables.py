"""The tables as CSV with one line per figure, and as Markdown with one line per model."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console import markdown_table
from pipeline.report.paper.counting import conventions
from pipeline.report.paper.errata import Erratum, signed
from pipeline.report.paper.improvement import Improvement
from pipeline.report.paper.printed import LABELS, decimals, value_of
from pipeline.report.summary import SummaryRow, fraction_text, number_text
from pipeline.report.tables import Cell, Row, Table

SUMMARY_HEAD = ("variant", "AP", "AP50", "parameters", "GFLOPs", "size", "FPS before", "FPS after", "seeds")
IMPROVEMENT_NOTE = (
    "The paper divides the change of #Param and FLOPs by the figure of the new model; divided by the figure of the old "
    "model, the change is smaller. For AP, the rows show differences in points. Changes marked `ours` are between "
    "figures that were computed or measured here."
)
ERRATA_HEAD = ("where", "printed", "found", "arithmetic")


def table_csv(table: Table) -> str:
    """Return a table as CSV.

    Args:
        table: The filled table.

    Returns:
        One line per model and quantity.
    """
    return _to_csv([_csv_line(row, cell) for row in table.rows for cell in row.cells])


def table_markdown(table: Table) -> str:
    """Return a table as Markdown.

    Args:
        table: The filled table.

    Returns:
        A title, a legend, the table, and notes.
    """
    head = ["model", "size", "counted", *(LABELS[quantity] for quantity in table.quantities), "variant"]
    rows = [
        [row.model, str(row.size or "-"), counting_text(row), *map(cell_text, row.cells), row.variant]
        for row in table.rows
    ]
    used = {row.counting for row in table.rows}
    lines = [f"{name}: {text}" for name, text in conventions().items() if name in used]
    lines += [f"{row.model}: {row.note}." for row in table.rows if row.note]
    notes = "".join(f"- {line}\n" for line in dict.fromkeys([*lines, *table.notes, *empty_lines(table)]))
    legend = "A cell shows the paper's figure and, if there is one, **our figure** (difference). †: a listed erratum."
    return f"# {table.title}\n\n{legend}\n\n{markdown_table(head, rows)}\n{notes}"


def empty_lines(table: Table) -> list[str]:
    """Return which rows of a table, or which of their figures, are empty.

    Args:
        table: The filled table.

    Returns:
        One line per reason.
    """
    found: dict[str, list[str]] = {}
    for row in table.rows:
        reasons: dict[str, list[str]] = {}
        for cell in row.cells:
            if reason := empty_reason(cell):
                reasons.setdefault(reason, []).append(LABELS[cell.quantity])
        measured = any(cell.origin == "measured here" for cell in row.cells)
        for reason, labels in reasons.items():
            name = _name_in(table, row)
            found.setdefault(reason, []).append(f"{name} ({', '.join(labels)})" if measured else name)
    return [f"Without a figure of ours ({reason}): {', '.join(names)}." for reason, names in found.items()]


def empty_reason(cell: Cell) -> str:
    """Return why a cell has no figure of ours.

    Args:
        cell: The cell.

    Returns:
        The reason; empty if there is a figure, or if only COCO's evaluation server could measure it.
    """
    return cell.note if cell.ours is None and not cell.quantity.endswith("_test") else ""


def summary_csv(rows: Sequence[SummaryRow]) -> str:
    """Return the summary as CSV.

    Args:
        rows: The summary.

    Returns:
        One line per variant, with all fields.
    """
    return _to_csv([row.model_dump() for row in rows])


def summary_markdown(rows: Sequence[SummaryRow], *, conditions: str) -> str:
    """Return the summary as Markdown.

    Args:
        rows: The summary.
        conditions: Under which conditions the figures were measured.

    Returns:
        A title, the table, and the conditions.
    """
    return f"# Variants\n\n{markdown_table(SUMMARY_HEAD, map(summary_texts, rows))}\n{conditions}\n"


def summary_texts(row: SummaryRow) -> list[str]:
    """Return the cells of a variant.

    Args:
        row: The summary of the variant.

    Returns:
        One text for each column of `SUMMARY_HEAD`.
    """
    return [
        row.variant,
        fraction_text(row.AP, row.AP_spread),
        fraction_text(row.AP50, row.AP50_spread),
        "-" if row.parameters is None else f"{row.parameters:,}",
        number_text(row.gflops, 2),
        str(row.image_size or "-"),
        number_text(row.fps_before, 0),
        number_text(row.fps_after, 0),
        str(row.seeds),
    ]


def improvements_csv(rows: Sequence[Improvement]) -> str:
    """Return the improvement rows as CSV.

    Args:
        rows: The improvement rows of Table 1.

    Returns:
        One line per pair of models and quantity.
    """
    names = {"new": True, "new_size": True, "old": True, "old_size": True}
    return _to_csv([row.model_dump(include=names) | change.model_dump() for row in rows for change in row.changes])


def improvements_markdown(rows: Sequence[Improvement]) -> str:
    """Return the improvement rows as Markdown.

    Args:
        rows: The improvement rows of Table 1.

    Returns:
        A title, the table, and a note.
    """
    table = markdown_table(improvement_head(rows), map(improvement_texts, rows))
    return f"# Table 1: improvement rows\n\n{table}\n{IMPROVEMENT_NOTE}\n"


def improvement_head(rows: Sequence[Improvement]) -> list[str]:
    """Return the titles of the columns of `improvement_texts`.

    Args:
        rows: The improvement rows of Table 1.

    Returns:
        Three columns for each quantity that is given in percent, one for each other quantity.
    """
    head = ["new over old model"]
    for change in rows[0].changes:
        head += [LABELS[change.quantity]] + ["of new", "of old"] * (change.of_new is not None)
    return head


def improvement_texts(row: Improvement) -> list[str]:
    """Return the cells of an improvement row.

    Args:
        row: The row.

    Returns:
        For each quantity the printed change, then the change relative to the new and to the old figure, each with ours.
    """
    texts = [row.title]
    for change in row.changes:
        printed = change.printed.replace("-", "−")
        if change.of_new is None:
            texts.append(_with_ours(printed, change.ours, 2))
        else:
            texts += [
                printed,
                _with_ours(f"{signed(change.of_new, 1)} %", change.ours_of_new, 1),
                _with_ours(f"{signed(change.of_old, 1)} %", change.ours_of_old, 1),
            ]
    return texts


def _with_ours(text: str, ours: float | None, digits: int) -> str:
    return text if ours is None else f"{text} (ours {signed(ours, digits)})"


def errata_csv(errata: Sequence[Erratum]) -> str:
    """Return the errata as CSV.

    Args:
        errata: The findings.

    Returns:
        One line per finding, with the steps of the arithmetic in one cell.
    """
    return _to_csv([erratum.model_dump() | {"arithmetic": "; ".join(erratum.arithmetic)} for erratum in errata])


def errata_markdown(errata: Sequence[Erratum]) -> str:
    """Return the errata as Markdown.

    Args:
        errata: The findings.

    Returns:
        A title, and a table of what is printed, what was found, and the arithmetic.
    """
    lines = [[one.where, one.printed, one.found, "<br>".join(one.arithmetic)] for one in errata]
    return f"# Errata of the paper's tables\n\n{markdown_table(ERRATA_HEAD, lines)}"


def counting_text(row: Row) -> str:
    """Return how #Param and FLOPs of a row were counted.

    Args:
        row: The row.

    Returns:
        The convention, or `cited` for a row with the paper's figures only.
    """
    return "cited" if row.cited else row.counting


def cell_text(cell: Cell) -> str:
    """Return a cell as Markdown.

    Args:
        cell: The cell.

    Returns:
        For example `36.9`, or `36.9 **36.91** (+0.01)` with our figure and the difference.
    """
    ours = "" if cell.ours is None else f" **{ours_text(cell)}**"
    difference = "" if cell.difference is None else f" ({difference_text(cell)})"
    return f"{paper_text(cell)}{ours}{difference}"


def paper_text(cell: Cell) -> str:
    """Return the paper's figure.

    Args:
        cell: The cell.

    Returns:
        The figure as the paper prints it, with a mark if it is an erratum; a dash if there is none.
    """
    return (cell.printed or "-") + ("†" if cell.erratum else "")


def ours_text(cell: Cell) -> str:
    """Return our figure.

    Args:
        cell: The cell.

    Returns:
        The figure with one digit more than the paper's, and with the spread over seeds.
    """
    spread = "" if cell.spread is None else f" ±{cell.spread:.{_digits(cell)}f}"
    return number_text(cell.ours, _digits(cell)) + spread


def difference_text(cell: Cell) -> str:
    """Return the difference between our figure and the paper's.

    Args:
        cell: The cell.

    Returns:
        The difference with its sign; empty if the two cannot be compared.
    """
    return "" if cell.difference is None else signed(cell.difference, _digits(cell))


def _name_in(table: Table, row: Row) -> str:
    """Return the model, with its size if the table has it at several sizes."""
    alone = sum(other.model == row.model for other in table.rows) == 1
    return row.model if alone else f"{row.model} at {row.size}"


def _digits(cell: Cell) -> int:
    return 1 if "fps" in cell.quantity else decimals(cell.printed or "0.0") + 1


def _csv_line(row: Row, cell: Cell) -> dict[str, Any]:
    difference = None if cell.difference is None else round(cell.difference, 6)
    paper = value_of(cell.printed) if cell.printed else None
    figures = {
        "printed": cell.printed,
        "paper": paper,
        "ours": cell.ours,
        "spread": cell.spread,
        "difference": difference,
    }
    origin = {
        "origin": cell.origin,
        "erratum": cell.erratum,
        "spec": row.spec,
        "counting": row.counting,
        "variant": row.variant,
    }
    return {"model": row.model, "size": row.size, "quantity": cell.quantity} | figures | origin | {"note": cell.note}


def _to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
