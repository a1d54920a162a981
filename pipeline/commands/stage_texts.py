"""One line about the result of a stage."""

from __future__ import annotations

from pipeline.artifacts.reports import Metrics, ReparamReport, TrainSummary
from pipeline.console import duration, waiting
from yolov7.errors import counted


def reparam_text(report: ReparamReport) -> str:
    """Describe a re-parameterisation.

    Args:
        report: What the stage measured.

    Returns:
        The text without the name of the variant.
    """
    return (
        f"{report.parameters_before:,} -> {report.parameters_after:,} parameters, "
        f"largest error {report.max_error_float32:.1e} (float64 {report.max_error_float64:.1e})"
    )


def evaluation_text(metrics: Metrics) -> str:
    """Describe an evaluation.

    Args:
        metrics: The COCO figures.

    Returns:
        The text without the name of the variant.
    """
    figures = ((name, getattr(metrics, name)) for name in ("AP", "AP50", "APs", "APm", "APl"))
    return f"{'  '.join(f'{name} {figure(value)}' for name, value in figures)}  ({counted(metrics.images, 'image')})"


def train_text(summary: TrainSummary) -> str:
    """Describe a training, or why there was none.

    Args:
        summary: What the stage recorded.

    Returns:
        The text without the name of the variant.
    """
    if summary.external:
        known = "its cost is known" if summary.external.startswith("zoo: ") else "the results are known"
        return f"external: only {known} ({summary.external})"
    if summary.given:
        return f"not trained; uses the weights of {summary.given}"
    measured = "" if summary.AP is None else f"AP {summary.AP:.3f}  "
    begun = "".join(f" (continued after epoch {entry.partition('@')[2]})" for entry in summary.continued_from[-1:])
    return (
        f"{counted(summary.epochs, 'epoch')}{begun}  {measured}{summary.images_per_second:.0f} img/s"
        f"{waiting(summary.loader_wait_share)}  {duration(summary.seconds)}"
    )


def figure(value: float | None, digits: int = 3) -> str:
    """Return a figure with a fixed number of digits, or `-` where there is none.

    Args:
        value: The figure.
        digits: Number of digits after the point.

    Returns:
        The text.
    """
    return "-" if value is None else f"{value:.{digits}f}"
