"""The variants side by side; pure functions of what stages left."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pipeline.artifacts.files import Benchmark, BenchmarkRow
from pipeline.report.results import Evidence, Results
from yolov7.settings import Settings


class SummaryRow(Settings):
    """One variant: means over the seeds that were evaluated; a spread is the sample standard deviation over them.

    None is what was not measured; a spread also for one seed.
    """

    variant: str
    seeds: int
    image_size: int
    AP: float | None
    AP_spread: float | None
    AP50: float | None
    AP50_spread: float | None
    parameters: int | None  # deployed
    parameters_before: int | None
    gflops: float | None  # deployed, at the variant's image size
    fps_before: float | None
    fps_after: float | None


def summarise_variants(evidence: Evidence) -> tuple[SummaryRow, ...]:
    """One row a variant, in the order of params.yaml."""
    return tuple(_summarise(name, results, evidence.benchmark) for name, results in evidence.variants.items())


def summary_lines(rows: Sequence[SummaryRow]) -> list[str]:
    """The short table at the end of a reproduction."""
    width = max(len("variant"), *(len(row.variant) for row in rows))
    spread = 13 if any(row.seeds > 1 for row in rows) else 5
    head = f"{'variant':<{width}}  {'AP':<{spread}}  {'AP50':<{spread}}  parameters  GFLOPs  FPS before -> after"
    return [head] + [
        f"{row.variant:<{width}}  {fraction_text(row.AP, row.AP_spread):<{spread}}  "
        f"{fraction_text(row.AP50, row.AP50_spread):<{spread}}  {_millions(row.parameters):<10}  "
        f"{number_text(row.gflops, 2):<6}  {number_text(row.fps_before, 0)} -> {number_text(row.fps_after, 0)}"
        for row in rows
    ]


def fraction_text(value: float | None, spread: float | None) -> str:
    """`0.583`, or `0.583 ±0.004` over several seeds."""
    return number_text(value, 3) + (f" ±{spread:.3f}" if value is not None and spread is not None else "")


def number_text(value: float | None, digits: int) -> str:
    """A dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def headline_row(benchmark: Benchmark | None, *, variant: str, form: str) -> BenchmarkRow | None:
    """The row that stands for a variant: eager, without NMS, the smallest batch, the first precision."""
    measured = benchmark.rows if benchmark else ()
    rows = [row for row in measured if (row.variant, row.form, row.nms) == (variant, form, False)]
    return min(rows, key=lambda row: (row.engine != "eager", row.batch), default=None)


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """The mean and the sample standard deviation of what was measured; None where there is too little."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _summarise(name: str, results: Results, benchmark: Benchmark | None) -> SummaryRow:
    ap, ap_spread = mean_and_spread([one.AP for one in results.metrics])
    ap50, ap50_spread = mean_and_spread([one.AP50 for one in results.metrics])
    before = headline_row(benchmark, variant=name, form="trained")
    after = headline_row(benchmark, variant=name, form="deployed")
    report = results.reparam[0] if results.reparam else None
    return SummaryRow(
        variant=name,
        seeds=len(results.metrics),
        image_size=results.image_size,
        AP=ap,
        AP_spread=ap_spread,
        AP50=ap50,
        AP50_spread=ap50_spread,
        parameters=report.parameters_after if report else None,
        parameters_before=report.parameters_before if report else None,
        gflops=report.gflops_after if report else None,
        fps_before=before.fps if before else None,
        fps_after=after.fps if after else None,
    )


def _millions(parameters: int | None) -> str:
    return "-" if parameters is None else f"{parameters / 1e6:.2f} M"
