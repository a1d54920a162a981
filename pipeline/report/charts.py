"""The charts of the page: curves by epoch, precision over recall, speed, errors, and the proof of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from matplotlib.ticker import MaxNLocator, NullFormatter

from pipeline.artifacts.reports import ReparamReport
from pipeline.report.canvas import drawable_names, drawing, svg_text
from pipeline.report.chart import INK, Chart, colour_of, new_chart, style_axes
from pipeline.report.details import Curve, VariantDetails
from pipeline.report.summary import SummaryRow
from yolov7.evaluation.errors import ErrorReport

Curves = Mapping[str, Sequence[Curve]]  # by variant or class
_BY_EPOCH = {
    "AP": ("AP by epoch", "AP on val"),
    "loss": ("Loss by epoch", "sum of the three losses"),
    "lr": ("Learning rate by epoch", "learning rate"),
}
_MOST_CLASSES = 6  # in one chart, as many as there are colours
_TIGHT = 40  # rows of a chart from which on the rows are lower
_CONTINUED = 30  # epochs from which on a curve has no marks


def epoch_charts(details: Mapping[str, VariantDetails]) -> list[Chart]:
    """Draw AP, loss and learning rate by epoch.

    Args:
        details: The details of each variant.

    Returns:
        One chart for each figure that was recorded.
    """
    charts = []
    for figure, (title, axis) in _BY_EPOCH.items():
        curves = {name: one.curves.get(figure, ()) for name, one in details.items()}
        if any(curves.values()):
            charts.append(_line_chart(title, curves, x="epoch", y=axis, whole_numbers=True))
    return charts


def precision_chart(details: Mapping[str, VariantDetails]) -> list[Chart]:
    """Draw precision over recall of all variants, the mean over the classes.

    Args:
        details: The details of each variant.

    Returns:
        The chart, if any variant was evaluated.
    """
    curves = {name: [one.precision["all"]] if "all" in one.precision else [] for name, one in details.items()}
    title = "All classes"
    return [_line_chart(title, curves, x="recall", y="precision", limit=1.0)] if any(curves.values()) else []


def class_precision_chart(name: str, details: VariantDetails, per_class_AP: Mapping[str, float | None]) -> list[Chart]:
    """Draw precision over recall of each class of one variant.

    Args:
        name: The variant.
        details: Its details.
        per_class_AP: The AP of each class. Of many classes, those with the lowest AP are drawn.

    Returns:
        The chart, if there are classes with objects.
    """
    classes = [one for one in details.precision if one != "all"]
    lowest = sorted(classes, key=lambda one: per_class_AP.get(one) or 0.0)[:_MOST_CLASSES]
    curves = {one: [details.precision[one]] for one in classes if one in lowest}
    if not curves:
        return []
    title = f"{name}: " + ("each class" if len(curves) == len(classes) else f"the {len(curves)} lowest classes")
    return [_line_chart(title, curves, x="recall", y="precision", limit=1.0)]


def fps_chart(rows: Sequence[SummaryRow]) -> list[Chart]:
    """Draw the FPS of each variant before and after re-parameterisation.

    Args:
        rows: The summary.

    Returns:
        The chart, if the benchmark was run.
    """
    timed = [row for row in rows if row.fps_before is not None and row.fps_after is not None]
    if not timed:
        return []
    title = "Images per second as trained (pale) and re-parameterised"
    with drawing():
        figure, axes = new_chart(height=0.4 + 0.46 * len(timed))
        for i, row in enumerate(timed):
            for fps, y, alpha in ((row.fps_before or 0.0, i - 0.2, 0.4), (row.fps_after or 0.0, i + 0.2, 1.0)):
                axes.barh(y, fps, height=0.36, color=colour_of(i), alpha=alpha, linewidth=0)
                axes.annotate(f" {fps:.0f}", (fps, y), va="center", color=INK, fontsize=8)
        axes.set_yticks(range(len(timed)), [_shortened(row.variant) for row in timed])
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        return [Chart(title, svg_text(figure, title=title))]


def error_chart(errors: Mapping[str, ErrorReport]) -> list[Chart]:
    """Draw how much AP50 the errors of each kind cost.

    Args:
        errors: The analysis of errors by variant.

    Returns:
        The chart, if there is any analysis.
    """
    if not errors:
        return []
    title = "AP50 lost by each kind of error"
    kinds = list(next(iter(errors.values())).kinds)
    width = 0.8 / len(errors)
    with drawing():
        figure, axes = new_chart(height=2.4, y="AP50 lost")
        for i, report in enumerate(errors.values()):
            lost = [report.kinds[kind].AP50_lost or 0.0 for kind in kinds]
            places = [k + (i - (len(errors) - 1) / 2) * width for k in range(len(kinds))]
            axes.bar(places, lost, width=width * 0.92, color=colour_of(i), linewidth=0)
        axes.set_xticks(range(len(kinds)), kinds, fontsize=7)
        axes.grid(visible=False, axis="x")
        svg = svg_text(figure, title=title)
    return [Chart(title, svg, tuple(errors), tuple(map(colour_of, range(len(errors)))))]


def proof_chart(proof: ReparamReport) -> list[Chart]:
    """Draw for each layer how many parameters re-parameterisation removes, and how large its output error is.

    Args:
        proof: The proof of one variant.

    Returns:
        The chart, if the proof has layers.
    """
    layers = proof.layers
    if not layers:
        return []
    title = f"{proof.variant}: parameters removed, layer by layer, and error of each layer"
    step = 0.19 if len(layers) < _TIGHT else 0.15
    with drawing():
        figure, _ = new_chart(height=0.7 + step * (len(layers) + 1))
        figure.clear()
        removed, error = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        total = 0
        for i, layer in enumerate(layers):
            difference = layer.parameters_before - layer.parameters_after
            removed.barh(i, difference, left=total, height=0.72, color=colour_of(0), linewidth=0)
            total += difference
            if layer.error is not None:
                error.plot(max(layer.error, 1e-9), i, "o", markersize=3.6, color=colour_of(1))
        removed.barh(len(layers), total, height=0.72, color=INK, linewidth=0)
        style_axes(removed, x="parameters removed")
        style_axes(error, x="relative error, float32")
        names = [*(_shortened(layer.name) for layer in layers), "all layers"]
        removed.set_yticks(range(len(names)), names, fontsize=7)
        removed.invert_yaxis()
        removed.ticklabel_format(axis="x", style="plain")
        removed.xaxis.set_major_locator(MaxNLocator(nbins=3))
        removed.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        error.set_xscale("log")
        error.set_xlim(left=1e-9, right=max(1e-5, 3 * max((layer.error or 0.0 for layer in layers), default=0.0)))
        error.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        error.xaxis.set_minor_formatter(NullFormatter())
        error.tick_params(labelleft=False)
        return [Chart(title, svg_text(figure, title=title))]


def _line_chart(
    title: str, curves: Curves, *, x: str, y: str, limit: float | None = None, whole_numbers: bool = False
) -> Chart:
    """Draw one colour for each name; several curves of a name are its seeds."""
    names = drawable_names(list(curves))
    colours = tuple(map(colour_of, range(len(curves))))
    with drawing(names.fonts):
        figure, axes = new_chart(height=2.2, x=x, y=y)
        for curve, colour in _coloured(curves, colours):
            mark = "o" if len(curve) < _CONTINUED and whole_numbers else None
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.5, marker=mark, markersize=2.5)
        axes.set_ylim(bottom=0, top=None if limit is None else 1.02 * limit)
        if limit is not None:
            axes.set_xlim(0, limit)
        if whole_numbers:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        return Chart(title, svg_text(figure, title=title), tuple(curves), colours)


def _coloured(curves: Curves, colours: Sequence[str]) -> Iterator[tuple[Curve, str]]:
    for seeds, colour in zip(curves.values(), colours, strict=True):
        for curve in seeds:
            yield curve, colour


def _shortened(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:20]}..."
