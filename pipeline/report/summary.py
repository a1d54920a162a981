"""The comparison of the variants. Pure functions of what the stages wrote."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pipeline.artifacts.reports import Benchmark, BenchmarkRow
from pipeline.report.results import StageResults, VariantResults
from yolov7.system.settings_base import Settings

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class SummaryRow(Settings):
    """One variant: means over the seeds that were evaluated. Figures that were not measured are None.

    Attributes:
        variant: Its name.
        seeds: Number of seeds that were evaluated.
        image_size: Training size in pixels; None if that of an external variant is not stated.
        AP: Mean COCO AP as a fraction.
        AP_spread: Sample standard deviation of AP over seeds; None for one seed.
        AP50: Mean AP at IoU 0.5 as a fraction.
        AP50_spread: Sample standard deviation of AP50 over seeds; None for one seed.
        AP75: Mean AP at IoU 0.75 as a fraction.
        AP75_spread: Sample standard deviation of AP75 over seeds; None for one seed.
        APs: Mean AP of small objects as a fraction.
        APs_spread: Sample standard deviation of APs over seeds; None for one seed.
        APm: Mean AP of medium objects as a fraction.
        APm_spread: Sample standard deviation of APm over seeds; None for one seed.
        APl: Mean AP of large objects as a fraction.
        APl_spread: Sample standard deviation of APl over seeds; None for one seed.
        parameters: Number of parameters of the deployed model, or those that params.yaml states of an external variant.
        parameters_before: Number of parameters of the trained model.
        gflops: Cost of the deployed model at `image_size`, in GFLOPs.
        fps_before: Images per second of the trained model.
        fps_after: Images per second of the deployed model.
    """

    variant: str
    seeds: int
    image_size: int | None
    AP: float | None
    AP_spread: float | None
    AP50: float | None
    AP50_spread: float | None
    AP75: float | None
    AP75_spread: float | None
    APs: float | None
    APs_spread: float | None
    APm: float | None
    APm_spread: float | None
    APl: float | None
    APl_spread: float | None
    parameters: int | None
    parameters_before: int | None
    gflops: float | None
    fps_before: float | None
    fps_after: float | None


def summarise_variants(results: StageResults) -> tuple[SummaryRow, ...]:
    """Summarise each variant in one row.

    Args:
        results: What the stages wrote.

    Returns:
        The rows, in the order of params.yaml.
    """
    return tuple(_summarise(name, variant, results.benchmark) for name, variant in results.variants.items())


def summary_lines(rows: Sequence[SummaryRow]) -> list[str]:
    """Return the summary as plain text for a terminal.

    Args:
        rows: The summary.

    Returns:
        A line with the titles of the columns, then one line per variant.
    """
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
    """Return a mean with its spread as text.

    Args:
        value: The mean; None if nothing was measured.
        spread: The sample standard deviation; None for one seed.

    Returns:
        For example `0.583`, `0.583 ±0.004` or `-`.
    """
    return number_text(value, 3) + (f" ±{spread:.3f}" if value is not None and spread is not None else "")


def number_text(value: float | None, digits: int) -> str:
    """Return a number as text.

    Args:
        value: The number.
        digits: Number of decimals.

    Returns:
        The number, or a dash if it is None.
    """
    return "-" if value is None else f"{value:.{digits}f}"


def headline_row(benchmark: Benchmark | None, *, variant: str, form: str) -> BenchmarkRow | None:
    """Return the measurement that represents a variant in tables.

    Args:
        benchmark: The benchmark; None if it was not run.
        variant: The variant.
        form: "trained" or "deployed".

    Returns:
        The one without NMS, if possible of torch, with the smallest batch and the first precision.
    """
    measured = benchmark.rows if benchmark else ()
    rows = [row for row in measured if (row.variant, row.form, row.nms) == (variant, form, False)]
    return min(rows, key=lambda row: (row.engine != "torch", row.batch), default=None)


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean and the sample standard deviation of the values that were measured.

    Args:
        values: The values; None for those that were not measured.

    Returns:
        The mean, None without values; and the sample standard deviation, None with fewer than two values.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _summarise(name: str, results: VariantResults, benchmark: Benchmark | None) -> SummaryRow:
    figures: dict[str, float | None] = {}
    for figure in FIGURES:
        mean, spread = mean_and_spread([getattr(one, figure) for one in results.metrics])
        figures |= {figure: mean, f"{figure}_spread": spread}
    before = headline_row(benchmark, variant=name, form="trained")
    after = headline_row(benchmark, variant=name, form="deployed")
    report, model = results.reparam[0] if results.reparam else None, results.model
    stated = None if model.params_m is None else round(1e6 * model.params_m)
    return SummaryRow(
        variant=name,
        seeds=len(results.metrics),
        image_size=model.image_size,
        **figures,
        parameters=report.parameters_after if report else stated,
        parameters_before=report.parameters_before if report else None,
        gflops=report.gflops_after if report else model.gflops,
        fps_before=before.fps if before else None,
        fps_after=after.fps if after else None,
    )


def _millions(parameters: int | None) -> str:
    return "-" if parameters is None else f"{parameters / 1e6:.2f} M"
