"""Tables as CSV and Markdown. CSV has one line a figure, for machines; Markdown one line a model, for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.report.paper.counting import conventions
from pipeline.report.paper.errata import Erratum, signed
from pipeline.report.paper.improvement import Improvement
from pipeline.report.paper.printed import LABELS, decimals, value_of
from pipeline.report.summary import SummaryRow, fraction_text, number_text
from pipeline.report.tables import Cell, Row, Table

SUMMARY_HEAD = ("variant", "AP", "AP50", "parameters", "GFLOPs", "size", "FPS before", "FPS after", "seeds")
IMPROVEMENT_NOTE = (
    "The paper divides the change of #Param and FLOPs by the new model's figure; over the old model's it is smaller. "
    "AP: difference in points. Ours: between the figures of Table 1 that were computed or measured here."
)
ERRATA_HEAD = ("where", "printed", "found", "arithmetic")


def table_csv(table: Table) -> str:
    """One line for each model and quantity."""
    return _to_csv([_csv_line(row, cell) for row in table.rows for cell in row.cells])


def table_markdown(table: Table) -> str:
    """The paper's figure in each cell, and ours in bold with the difference where there is one."""
    head = ["model", "size", "counted", *(LABELS[quantity] for quantity in table.quantities), "variant"]
    rows = [
        [row.model, str(row.size or "-"), counted_text(row), *map(cell_text, row.cells), row.variant]
        for row in table.rows
    ]
    used = {row.counting for row in table.rows}
    lines = [f"{name}: {text}" for name, text in conventions().items() if name in used]
    lines += [f"{row.model}: {row.note}." for row in table.rows if row.note]
    notes = "".join(f"- {line}\n" for line in dict.fromkeys([*lines, *table.notes, *open_lines(table)]))
    legend = "A cell holds the paper's figure; where we have one: **ours** (difference). †: a listed erratum."
    return f"# {table.title}\n\n{legend}\n\n{_to_markdown(head, rows)}\n{notes}"


def open_lines(table: Table) -> list[str]:
    """Which rows are not filled, or which of their figures, a line a reason."""
    found: dict[str, list[str]] = {}
    for row in table.rows:
        reasons: dict[str, list[str]] = {}
        for cell in row.cells:
            if reason := open_reason(cell):
                reasons.setdefault(reason, []).append(LABELS[cell.quantity])
        measured = any(cell.origin == "measured here" for cell in row.cells)
        for reason, labels in reasons.items():
            name = _name_in(table, row)
            found.setdefault(reason, []).append(f"{name} ({', '.join(labels)})" if measured else name)
    return [f"Left open, {reason}: {', '.join(names)}." for reason, names in found.items()]


def open_reason(cell: Cell) -> str:
    """Why ours is missing; empty where it is not, or where only the evaluation server could tell."""
    return cell.note if cell.ours is None and not cell.quantity.endswith("_test") else ""


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
        "-" if row.parameters is None else f"{row.parameters:,}",
        number_text(row.gflops, 2),
        str(row.image_size),
        number_text(row.fps_before, 0),
        number_text(row.fps_after, 0),
        str(row.seeds),
    ]


def improvements_csv(rows: Sequence[Improvement]) -> str:
    """One line for each pair of models and quantity."""
    names = {"new": True, "new_size": True, "old": True, "old_size": True}
    return _to_csv([row.model_dump(include=names) | change.model_dump() for row in rows for change in row.changes])


def improvements_markdown(rows: Sequence[Improvement]) -> str:
    """Each printed change, and the same over the new and over the old value."""
    head, lines = improvement_head(rows), map(improvement_texts, rows)
    return f"# Table 1: improvement rows\n\n{_to_markdown(head, lines)}\n{IMPROVEMENT_NOTE}\n"


def improvement_head(rows: Sequence[Improvement]) -> list[str]:
    """The columns of `improvement_texts`: three for each quantity that is given in percent."""
    head = ["new over old model"]
    for change in rows[0].changes:
        head += [LABELS[change.quantity]] + ["of new", "of old"] * (change.of_new is not None)
    return head


def improvement_texts(row: Improvement) -> list[str]:
    """What is printed, then the shares of the new and of the old figure, each with ours behind it."""
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
    """One line a finding, its arithmetic in one cell."""
    return _to_csv([erratum.model_dump() | {"arithmetic": "; ".join(erratum.arithmetic)} for erratum in errata])


def errata_markdown(errata: Sequence[Erratum]) -> str:
    """What is printed, what was found, and how."""
    lines = [[one.where, one.printed, one.found, "<br>".join(one.arithmetic)] for one in errata]
    return f"# Errata of the paper's tables\n\n{_to_markdown(ERRATA_HEAD, lines)}"


def counted_text(row: Row) -> str:
    """By which convention #Param and FLOPs were counted, or that they are cited."""
    return "cited" if row.cited else row.counting


def cell_text(cell: Cell) -> str:
    """`36.9`, or `36.9 **36.91** (+0.01)`."""
    ours = "" if cell.ours is None else f" **{ours_text(cell)}**"
    difference = "" if cell.difference is None else f" ({difference_text(cell)})"
    return f"{paper_text(cell)}{ours}{difference}"


def paper_text(cell: Cell) -> str:
    """As the paper prints it."""
    return (cell.printed or "-") + ("†" if cell.erratum else "")


def ours_text(cell: Cell) -> str:
    """One digit more than the paper's, with the spread over seeds."""
    spread = "" if cell.spread is None else f" ±{cell.spread:.{_digits(cell)}f}"
    return number_text(cell.ours, _digits(cell)) + spread


def difference_text(cell: Cell) -> str:
    """With its sign."""
    return "" if cell.difference is None else signed(cell.difference, _digits(cell))


def _name_in(table: Table, row: Row) -> str:
    """The model, with its size where the table has it at several."""
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


def _to_markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
