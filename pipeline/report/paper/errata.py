"""The errata of the paper's tables: misprints, and rows of one table that are counted in different ways.

Each has the arithmetic that shows it. All figures in it are counted on the specs; only the printed ones are data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, cast

from pipeline.report.paper.counting import (
    SIDE,
    Convention,
    PaperModel,
    count_as_paper,
    count_deployed,
    paper_models,
    rescaled,
)
from pipeline.report.paper.improvement import Improvement, improvements, rounding_range
from pipeline.report.paper.printed import LABELS, TITLES, PrintedRow, printed_table, read_csv
from yolov7.system.settings_base import Settings

Kind = Literal["misprint", "graph", "counting", "name", "division"]
_COUNTERS: Mapping[Convention, str] = {
    "built": "before folding, as their projects print them",
    "mixed x4": "parameters before folding beside FLOPs of the deployed graph",
    "convolutions": "as darknet prints them",
    "merged": "with merged branches, with batch norms, and by PaddleSlim's rules",
}
_STRIDE = 32  # of the coarsest maps of YOLOv4-tiny-3l, where a parameter costs the fewest operations


class Erratum(Settings):
    """One finding.

    Attributes:
        kind: `misprint`, `graph` (of another model), `counting` (another convention), `name` (a wrong name) or
            `division` (by the new figure).
        where: The table, row and quantity.
        printed: What the paper prints.
        found: What is correct, or what the usual convention gives.
        arithmetic: The steps of the calculation, one per line.
    """

    kind: Kind
    where: str
    printed: str
    found: str
    arithmetic: tuple[str, ...]


def errata() -> tuple[Erratum, ...]:
    """Return all findings.

    Returns:
        Listed figures, then rows with another way of counting, wrong names, and the division in the improvement rows.
    """
    return (
        *_listed(),
        *_training_graphs(),
        *_rounded_first(),
        *_before_folding(),
        *_other_counters(),
        *_names(),
        *_divisions(),
    )


def _listed() -> Iterator[Erratum]:
    for line in read_csv("errata"):
        table, name, quantity = line["table"], line["model"], line["quantity"]
        size, model = next((size, model) for (row, size), model in paper_models().items() if row == name)
        figures = count_as_paper(model, size)
        value = {"params_m": figures.params_m, "gflops": figures.gflops}[quantity]
        unit = {"params_m": "M", "gflops": "G"}[quantity]
        steps = [line["why"], f"{model.label} has {value:.3f} {unit}, counted as `{model.counting}`"]
        if line["kind"] == "graph" and quantity == "gflops":
            steps += _graph_steps(table, name, size, model)
        yield Erratum(
            kind=cast(Kind, line["kind"]),
            where=f"Table {table.removeprefix('table')}, {name}, {LABELS[quantity]}",
            printed=line["printed"],
            found=line["found"],
            arithmetic=tuple(steps),
        )


def _graph_steps(table: str, name: str, size: int, model: PaperModel) -> Iterator[str]:
    """Show that no other way of counting gives both printed figures."""
    printed, ours = _printed_row(table, (name, size)).figures, count_as_paper(model, size)
    more = float(printed["params_m"]) - ours.params_m
    each = 2 * (size // _STRIDE) ** 2
    yield (
        f"the printed figures exceed these by {more:.2f} M and {float(printed['gflops']) - ours.gflops:.2f} G; at "
        f"{size} px a parameter costs at least 2 × ({size} / {_STRIDE})² = {each} operations, so that {more:.2f} M "
        f"more parameters cost at least {more * each / 1000:.2f} G: the paper's model also differs elsewhere"
    )


def _training_graphs() -> Iterator[Erratum]:
    for (name, size), model in paper_models().items():
        if model.counting != "training x4":
            continue
        cost = model.cost()
        training, deployed = cost.gflops_built_with_bias, count_deployed(model, size)
        yield Erratum(
            kind="counting",
            where=f"{_tables_of(name)}, {name}",
            printed=f"{cost.parameters / 1e6:.1f} M, {rescaled(training, size):.1f} G",
            found=f"deployed: {deployed.params_m:.1f} M, {deployed.gflops:.1f} G",
            arithmetic=(
                "this row counts the training graph with its auxiliary head, other 1280 px rows the deployed graph:",
                f"training: {cost.parameters:,} parameters, 4 × {training:.1f} G = {rescaled(training, size):.1f} G",
                f"deployed: {cost.parameters_deployed:,} parameters, 4 × {cost.gflops_with_bias:.1f} G = "
                f"{deployed.gflops:.1f} G ({4 * cost.gflops:.1f} G without bias additions)",
            ),
        )


def _rounded_first() -> Iterator[Erratum]:
    """Find rows whose FLOPs were rounded before they were multiplied; each spec once, as Table 2 names it."""
    steps, printed, found = [], [], []
    named = [(row.model, row.size) for row in printed_table("table2").rows]
    for (name, size), model in paper_models().items():
        if model.counting not in ("deployed x4", "mixed x4") or (name, size) not in named:
            continue
        once = model.cost().gflops_with_bias
        rounded, exact = f"{rescaled(once, size):.1f}", f"{4 * once:.1f}"
        if exact != rounded:
            steps.append(f"{name}: 4 × {once:.1f} G = {rounded} G, but 4 × {once:.3f} G = {exact} G")
            printed.append(rounded)
            found.append(exact)
    if steps:
        yield Erratum(
            kind="counting",
            where="FLOPs of 1280 px rows",
            printed=", ".join(printed),
            found=", ".join(found),
            arithmetic=("the figure at 640 px is rounded before it is multiplied by 4:", *steps),
        )


def _before_folding() -> Iterator[Erratum]:
    for (name, size), model in paper_models().items():
        if model.counting != "unfolded":
            continue
        cost = model.cost()
        deployed = cost.gflops_with_bias * (size / SIDE) ** 2
        steps = [
            "this row is counted on the graph before folding, other rows of the same table on the deployed graph:",
            f"before folding: 2 × {cost.gflops_built / 2:.3f} G multiply-accumulates of convolutions + "
            f"{cost.gflops_unfolded - cost.gflops_built:.3f} G of batch norm, LeakyReLU and biases = "
            f"{cost.gflops_unfolded:.3f} G",
            f"deployed: {_sum_text(model)} G",
        ]
        if size != SIDE:
            scale = f"({size} / {SIDE})²"
            steps.append(
                f"at {size} px: {cost.gflops_unfolded:.1f} G × {scale} = {rescaled(cost.gflops_unfolded, size):.2f} G; "
                f"deployed {cost.gflops_with_bias:.3f} G × {scale} = {deployed:.2f} G"
            )
        yield Erratum(
            kind="counting",
            where=f"{_tables_of(name)}, {name} at {size} px, {LABELS['gflops']}",
            printed=f"{rescaled(cost.gflops_unfolded, size):.1f}",
            found=f"deployed: {deployed:.1f}",
            arithmetic=tuple(steps),
        )


def _other_counters() -> Iterator[Erratum]:
    """Find the rows of other projects, which were counted with the counters of these projects."""
    for counting, what in _COUNTERS.items():
        rows = {key: model for key, model in paper_models().items() if model.counting == counting}
        if not rows:
            continue
        pairs = [
            (name, count_as_paper(model, size), count_deployed(model, size)) for (name, size), model in rows.items()
        ]
        yield Erratum(
            kind="counting",
            where=f"{', '.join(name for name, _ in rows)}",
            printed="; ".join(f"{one.params_m:.1f} M, {one.gflops:.1f} G" for _, one, _ in pairs),
            found="deployed: " + "; ".join(f"{one.params_m:.1f} M, {one.gflops:.1f} G" for _, _, one in pairs),
            arithmetic=(
                f"these rows are counted as `{counting}`, {what}; YOLOv7 is counted on the deployed graph",
                *(
                    f"{name}: {one.params_m:.3f} M, {one.gflops:.3f} G; deployed {other.params_m:.3f} M, "
                    f"{other.gflops:.3f} G"
                    for name, one, other in pairs
                ),
            ),
        )


def _names() -> Iterator[Erratum]:
    """Find rows of Table 1 that Table 2 prints under another name: their figures are equal."""
    same = ("params_m", "gflops")
    for row in printed_table("table1").rows:
        if not row.model.startswith("YOLOv4") or "[81]" not in row.model:
            continue
        for other in printed_table("table2").rows:
            if all(row.figures[name] == other.figures[name] for name in same):
                yield _renamed(row, other)


def _renamed(row: PrintedRow, other: PrintedRow) -> Erratum:
    aps = (row.figures["ap_val"], other.figures["ap_val"])
    same = aps[0] == aps[1]
    trained = "all three are equal" if same else "all but AP are equal: the same architecture in another training"
    figures = "{params_m} M, {gflops} G, AP {ap_val}"
    return Erratum(
        kind="name",
        where=f"Table 1, {row.model}",
        printed=row.model,
        found=other.model if same else f"the size of {other.model}",
        arithmetic=(
            f"Table 1: {figures.format_map(row.figures)}",
            f"Table 2, {other.model}: {figures.format_map(other.figures)}; {trained}",
        ),
    )


def _divisions() -> Iterator[Erratum]:
    for row in improvements({}):
        steps = tuple(_division_steps(row))
        if steps:
            shares = [change for change in row.changes if change.of_old is not None and change.printed != "="]
            yield Erratum(
                kind="division",
                where=f"Table 1, improvement of {row.title}",
                printed=", ".join(f"{LABELS[change.quantity]} {_minus(change.printed)}" for change in shares),
                found=", ".join(f"{LABELS[change.quantity]} {signed(change.of_old, 0)}%" for change in shares),
                arithmetic=steps,
            )


def _division_steps(row: Improvement) -> Iterator[str]:
    new, old = (_printed_row("table1", key).figures for key in ((row.new, row.new_size), (row.old, row.old_size)))
    for change in row.changes:
        if change.of_old is None or change.printed == "=":
            continue
        a, b = new[change.quantity], old[change.quantity]
        yield (
            f"{LABELS[change.quantity]}: ({a} − {b}) / {a} = {signed(change.of_new, 1)} %, "
            f"printed {_minus(change.printed)}; over the old value ({a} − {b}) / {b} = {signed(change.of_old, 1)} %"
        )
        if f"{signed(change.of_new, 0)}%" != _minus(change.printed):
            low, high = rounding_range(a, b)
            yield f"as {a} and {b} are rounded, the value lies between {signed(low, 1)} and {signed(high, 1)} %"


def signed(value: float | None, digits: int) -> str:
    """Return a number with its sign.

    Args:
        value: The number.
        digits: Number of decimals.

    Returns:
        The number with a plus or a minus sign (U+2212); a dash if it is None.
    """
    return "-" if value is None else _minus(f"{value:+.{digits}f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _sum_text(model: PaperModel) -> str:
    cost = model.cost()
    biases = (cost.gflops_with_bias - cost.gflops) / 2
    return (
        f"2 × ({cost.gflops / 2:.3f} G multiply-accumulates + {biases:.3f} G bias additions) = "
        f"{cost.gflops_with_bias:.3f}"
    )


def _printed_row(table: str, key: tuple[str, int]) -> PrintedRow:
    return next(row for row in printed_table(table).rows if (row.model, row.size) == key)


def _tables_of(name: str) -> str:
    """Return the tables that have a row of this name, such as `Tables 1, 2, 9`."""
    numbers = [
        table.removeprefix("table") for table in TITLES if any(row.model == name for row in printed_table(table).rows)
    ]
    return f"Table{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
