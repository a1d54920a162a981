"""The tables of the page that compare the variants: figures, speed, classes, errors, and sources of the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.artifacts.reports import Benchmark, BenchmarkRow
from pipeline.report.details import Confusion, ExperimentDetails
from pipeline.report.results import StageResults
from pipeline.report.runs import RunLink, Runs
from pipeline.report.summary import FIGURES, SummaryRow, fraction_text, mean_and_spread, number_text

_BACKGROUND = "background"
_MOST_CELLS = 16  # classes up to which the confusion is shown as a matrix
_MOST_PAIRS = 20  # lines of the list that larger matrices are shown as


@dataclass(frozen=True)
class TextTable:
    """A table of plain texts.

    Attributes:
        head: The titles of the columns.
        rows: The texts of each row.
        shares: For each cell the share of it that is filled with colour, in 0..1; empty for none.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    shares: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class SourceRow:
    """Where the figures of one variant and seed come from.

    Attributes:
        variant: The variant.
        seed: The seed.
        AP: Its AP as text.
        run: Its MLflow run; None if the tracking store does not have it, or could not be read.
    """

    variant: str
    seed: int
    AP: str
    run: RunLink | None


def figures_table(rows: Sequence[SummaryRow], benchmark: Benchmark | None) -> TextTable:
    """Compare accuracy, size and speed of the variants.

    Args:
        rows: The summary.
        benchmark: The benchmark; None if it was not run.

    Returns:
        One row for each variant, with one column for each engine and precision: FPS, and the AP that was measured with
        them on the val split and the seed of the benchmark.
    """
    engines = _engines(benchmark)
    head = ("variant", *FIGURES, "parameters", "GFLOPs", "size", *(f"FPS {name}" for name in engines), "seeds")
    return TextTable(head, [[*_figure_texts(row), *_speed_texts(row.variant, engines), str(row.seeds)] for row in rows])


def speed_table(benchmark: Benchmark | None) -> TextTable:
    """List all measurements of the benchmark.

    Args:
        benchmark: The benchmark; None if it was not run.

    Returns:
        One row for each variant, form, engine, precision, batch size and scope. AP is that of the deployed model with
        this engine and precision.
    """
    head = (
        "variant",
        "model",
        "engine",
        "precision",
        "batch",
        "scope",
        "median ms",
        "90 % ms",
        "99 % ms",
        "images/s",
        "AP",
    )
    return TextTable(
        head,
        [
            [
                row.variant,
                row.form,
                row.engine,
                row.precision,
                str(row.batch),
                "file to detections" if row.from_file else "with NMS" if row.nms else "without NMS",
                *(number_text(value, 2) for value in (row.p50_ms, row.p90_ms, row.p99_ms)),
                number_text(row.fps, 0 if row.fps >= 10 else 1),
                number_text(row.AP, 3),
            ]
            for row in (benchmark.rows if benchmark else ())
        ],
    )


def class_table(results: StageResults, objects: Mapping[str, int]) -> TextTable:
    """Compare the AP of each class.

    Args:
        results: What the stages wrote.
        objects: The number of objects of each class in the split that was evaluated.

    Returns:
        One row for each class, one column for each variant that was evaluated.
    """
    variants = {name: one.metrics for name, one in results.variants.items() if one.metrics}
    names = dict.fromkeys(name for metrics in variants.values() for one in metrics for name in one.per_class_AP)
    rows, shares = [], []
    for name in names:
        found = [mean_and_spread([one.per_class_AP.get(name) for one in metrics]) for metrics in variants.values()]
        rows.append([name, _number(objects.get(name)), *(fraction_text(*one) for one in found)])
        shares.append([0.0, 0.0, *(mean or 0.0 for mean, _ in found)])
    return TextTable(("class", "objects", *variants), rows, shares)


def error_table(details: ExperimentDetails) -> TextTable:
    """Compare the number of errors of each kind.

    Args:
        details: The details of all variants.

    Returns:
        One row for each variant; a cell has the number of errors and the AP50 that they cost.
    """
    known = {name: one.errors for name, one in details.variants.items() if one.errors is not None}
    kinds = list(next(iter(known.values())).kinds) if known else []
    rows = [
        [name, *(_error_text(errors.kinds[kind].count, errors.kinds[kind].AP50_lost) for kind in kinds)]
        for name, errors in known.items()
    ]
    return TextTable(("variant", *kinds), rows)


def confusion_table(confusion: Confusion, names: Sequence[str]) -> TextTable:
    """Show which class is detected as which.

    Args:
        confusion: The number of objects by true and by predicted class.
        names: The names of the classes.

    Returns:
        A matrix; with many classes a list of the most frequent confusions.
    """
    everything = (*names, _BACKGROUND)
    total = {true: sum(confusion.get((true, found), 0) for found in everything) for true in everything}
    if len(names) > _MOST_CELLS:
        wrong = {pair: count for pair, count in confusion.items() if pair[0] != pair[1]}
        pairs = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:_MOST_PAIRS]
        rows = [[true, found, f"{count:,}", f"{count / total[true]:.0%}"] for (true, found), count in pairs]
        return TextTable(("true class", "detected as", "number", "share of the true class"), rows)
    counts = {true: [confusion.get((true, found), 0) for found in everything] for true in everything}
    return TextTable(
        ("true class", *everything),
        [[true, *(f"{count:,}" if count else "" for count in row)] for true, row in counts.items()],
        [[0.0, *(count / max(total[true], 1) for count in row)] for true, row in counts.items()],
    )


def proof_table(details: ExperimentDetails) -> TextTable:
    """Compare the models before and after re-parameterisation.

    Args:
        details: The details of all variants.

    Returns:
        One row for each variant that was re-parameterised.
    """
    head = ("variant", "parameters", "deployed", "GFLOPs", "deployed", "images", "error float32", "error float64")
    return TextTable(
        head,
        [
            [
                name,
                f"{proof.parameters_before:,}",
                f"{proof.parameters_after:,}",
                number_text(proof.gflops_before, 2),
                number_text(proof.gflops_after, 2),
                str(proof.images),
                f"{proof.max_error_float32:.1e}",
                f"{proof.max_error_float64:.1e}",
            ]
            for name, one in details.variants.items()
            if (proof := one.proof) is not None
        ],
    )


def source_rows(results: StageResults, runs: Runs) -> list[SourceRow]:
    """List where the figures come from.

    Args:
        results: What the stages wrote.
        runs: The MLflow runs that were found.

    Returns:
        One row for each variant and seed.
    """
    return [
        SourceRow(name, seed, _ap_of(results, name, seed), runs.get((name, seed)))
        for name in results.variants
        for seed in results.seeds
    ]


def _ap_of(results: StageResults, name: str, seed: int) -> str:
    metrics = results.variants[name].metrics_by_seed.get(seed)
    return number_text(metrics.AP if metrics else None, 3)


def _engines(benchmark: Benchmark | None) -> dict[str, dict[str, BenchmarkRow]]:
    """Return the rows of each variant by engine and precision: deployed, without NMS, with the smallest batch."""
    engines: dict[str, dict[str, BenchmarkRow]] = {}
    for row in benchmark.rows if benchmark else ():
        if row.form != "trained" and not row.nms:
            rows = engines.setdefault(f"{row.engine} {row.precision}", {})
            if row.variant not in rows or row.batch < rows[row.variant].batch:
                rows[row.variant] = row
    return engines


def _figure_texts(row: SummaryRow) -> Iterator[str]:
    yield row.variant
    for figure in FIGURES:
        yield fraction_text(getattr(row, figure), getattr(row, f"{figure}_spread"))
    yield _number(row.parameters)
    yield number_text(row.gflops, 2)
    yield str(row.image_size or "-")


def _speed_texts(variant: str, engines: Mapping[str, Mapping[str, BenchmarkRow]]) -> Iterator[str]:
    for rows in engines.values():
        row = rows.get(variant)
        ap = "" if row is None or row.AP is None else f" (AP {number_text(row.AP, 3)})"
        yield number_text(row.fps if row else None, 0) + ap


def _error_text(count: int, lost: float | None) -> str:
    return f"{count:,}" + ("" if lost is None else f" ({lost:.3f})")


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
