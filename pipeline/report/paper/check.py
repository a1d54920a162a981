"""Comparison of every computed #Param and FLOPs with the digits that the paper prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from pipeline.external import has_zoo_library
from pipeline.report.paper.counting import PaperModel, count_as_paper, deployed_note, paper_models
from pipeline.report.paper.printed import LABELS, TITLES, PrintedRow, printed_table, read_csv, round_as
from pipeline.report.paper.zoo import count_zoo, zoo_models
from yolov7.system.settings_base import Settings

QUANTITIES = ("params_m", "gflops")
Verdict = Literal["equal", "erratum", "differs"]
Excuses = Mapping[tuple[str, str, str], tuple[str, str]]
_SIGNS = {"equal": "=", "erratum": "erratum", "differs": "DIFFERS"}


class Figure(Settings):
    """One printed figure and ours.

    Attributes:
        quantity: `params_m` or `gflops`.
        printed: The figure as the paper prints it.
        computed: Our figure.
        verdict: `equal` if our figure rounds to the printed digits; `erratum` if a listed erratum states both figures;
            `differs` otherwise, also if an erratum is listed that states other figures.
    """

    quantity: str
    printed: str
    computed: float
    verdict: Verdict


class Comparison(Settings):
    """One row of the paper.

    Attributes:
        model: The model as the paper names it.
        size: The image size in pixels; None if the paper prints none.
        spec: The spec that was counted, or the model of a library.
        counting: The convention by which it was counted.
        figures: The figures that the paper prints.
        tables: The tables that have this row.
    """

    model: str
    size: int | None
    spec: str
    counting: str
    figures: tuple[Figure, ...]
    tables: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether any of our figures differs from the printed one."""
        return any(figure.verdict == "differs" for figure in self.figures)


def compare_counts() -> tuple[Comparison, ...]:
    """Compare all rows that have a spec, and those that an installed library can build (see `zoo`).

    Returns:
        One comparison per row; rows that several tables print in the same way appear once.

    Raises:
        SpecError: models.csv names a spec that does not exist.
    """
    found: dict[Comparison, tuple[str, ...]] = {}
    for table, comparison in _compare_tables():
        found[comparison] = (*found.get(comparison, ()), table)
    return tuple(comparison.model_copy(update={"tables": tables}) for comparison, tables in found.items())


def cited_models() -> tuple[str, ...]:
    """Return the models that cannot be counted, for which only the paper's figures exist.

    Returns:
        Their names, in the order of the tables.
    """
    known = paper_models()
    rows = [row for table in TITLES for row in printed_table(table).rows if _has_counts(row)]
    countable = _countable()
    uncounted = (row for row in rows if (row.model, row.size) not in known and row.variant not in countable)
    return tuple(dict.fromkeys(row.model for row in uncounted))


def listed_errata() -> Excuses:
    """Return the listed errata.

    Returns:
        The printed and the correct figure by table, model and quantity.
    """
    return {
        (line["table"], line["model"], line["quantity"]): (line["printed"], line["found"])
        for line in read_csv("errata")
    }


def check_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the comparison as plain text for a terminal.

    Args:
        comparisons: The comparisons.

    Returns:
        One line per row, then the outcome, then the number of cited rows, and the models without a spec.
    """
    heads = "".join(f"{LABELS[quantity]:>10}{'ours':>10} {'':8}" for quantity in QUANTITIES)
    head = f"{'model':<33}{'size':>5}  {'counted':<13}{heads}tables"
    cited = cited_models()
    models = f"Models without a spec, for which only the paper's figures exist: {', '.join(cited)}." if cited else ""
    return [
        head,
        *map(_line, comparisons),
        *_deployed_notes(),
        outcome_line(comparisons),
        rows_line(),
        *textwrap.wrap(models, width=len(head)),
    ]


def outcome_line(comparisons: Iterable[Comparison]) -> str:
    """Return how many figures agree with the paper.

    Args:
        comparisons: The comparisons.

    Returns:
        One sentence.
    """
    verdicts = [figure.verdict for comparison in comparisons for figure in comparison.figures]
    counts = {kind: verdicts.count(kind) for kind in ("equal", "erratum", "differs")}
    return (
        f"{len(verdicts)} figures of #Param and FLOPs: {counts['equal']} equal the printed digit, "
        f"{counts['erratum']} are listed errata, {counts['differs']} differ."
    )


def rows_line() -> str:
    """Return how many rows of each table are computed from a spec, and how many only cite the paper's figures.

    Returns:
        One sentence.
    """
    known, countable, parts = paper_models(), _countable(), []
    for table in TITLES:
        rows = [row for row in printed_table(table).rows if _has_counts(row)]
        cited = sum((row.model, row.size) not in known and row.variant not in countable for row in rows)
        if rows:
            parts.append(f"Table {table.removeprefix('table')} {len(rows) - cited} and {cited}")
    return f"Rows computed and rows cited: {', '.join(parts)}."


def _compare_tables() -> Iterator[tuple[str, Comparison]]:
    models, excuses, countable = paper_models(), listed_errata(), _countable()
    for table in TITLES:
        for row in printed_table(table).rows:
            model = models.get((row.model, row.size)) if row.size else None
            if model and _has_counts(row):
                yield table, _compare(table, row, model, excuses=excuses)
            elif row.variant in countable:
                yield table, _compare_zoo(row)


def _compare(table: str, row: PrintedRow, model: PaperModel, *, excuses: Excuses) -> Comparison:
    assert row.size is not None
    counted = count_as_paper(model, row.size)
    figures = tuple(
        Figure(quantity=quantity, printed=printed, computed=computed, verdict=_judge(printed, computed, listed))
        for quantity, computed in (("params_m", counted.params_m), ("gflops", counted.gflops))
        if (printed := row.figures[quantity])
        for listed in (excuses.get((table, row.model, quantity)),)
    )
    return Comparison(
        model=row.model, size=row.size, spec=model.label, counting=model.counting, figures=figures, tables=()
    )


def _countable() -> set[str]:
    """Return the names of the variants whose rows the library of `zoo` can build; none if it is not installed."""
    return {name for name, model in zoo_models().items() if model.is_whole} if has_zoo_library() else set()


def _compare_zoo(row: PrintedRow) -> Comparison:
    """Compare the parameters, which the paper took from others in whole millions. FLOPs depend on the images there."""
    computed, printed = count_zoo(row.variant).params_m, row.figures["params_m"]
    verdict: Verdict = "equal" if round(computed) == round(float(printed)) else "differs"
    figure = Figure(quantity="params_m", printed=printed, computed=computed, verdict=verdict)
    label = zoo_models()[row.variant].label
    return Comparison(model=row.model, size=row.size, spec=label, counting="zoo", figures=(figure,), tables=())


def _deployed_notes() -> list[str]:
    notes = {name: deployed_note(model, size) for (name, size), model in paper_models().items()}
    return [f"{name}: {note}" for name, note in notes.items() if note]


def _judge(printed: str, computed: float, listed: tuple[str, str] | None) -> Verdict:
    rounded = round_as(printed, computed)
    if listed is None:
        return "equal" if rounded == printed else "differs"
    return "erratum" if listed == (printed, rounded) else "differs"


def _has_counts(row: PrintedRow) -> bool:
    return any(row.figures.get(quantity) for quantity in QUANTITIES)


def _line(comparison: Comparison) -> str:
    figures = {figure.quantity: figure for figure in comparison.figures}
    cells = "".join(_figure_text(figures.get(quantity)) for quantity in QUANTITIES)
    tables = ", ".join(table.removeprefix("table") for table in comparison.tables)
    return f"{comparison.model:<33}{comparison.size or '':>5}  {comparison.counting:<13}{cells}{tables}"


def _figure_text(figure: Figure | None) -> str:
    if figure is None:
        return " " * 29
    return f"{figure.printed:>10}{figure.computed:>10.3f} {_SIGNS[figure.verdict]:<8}"
