"""The plot of a search: AP over GFLOPs with a colour for each rule, its fit, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tuning.report.fit import LineFit
from pipeline.tuning.search.search import Trial

_COLOURS = {"compound": "#1f77b4", "width": "#d62728", "depth": "#2ca02c", "free": "#9467bd"}
_MARKERS = {"complete": "o", "stopped": "v", "cut": "x"}


def draw_scaling(path: Path, trials: Sequence[Trial], *, fits: Mapping[str, LineFit], front: Sequence[Trial]) -> None:
    """Draw the measurement of the paper's Table 3 for this search.

    A band around a line is the standard deviation of the models of that rule.

    Args:
        path: The image file to write.
        trials: All trials; failed ones are not drawn.
        fits: The fit of complete trials for each rule.
        front: The trials of the Pareto front, the cheapest first.
    """
    from matplotlib import ticker
    from matplotlib.figure import Figure

    from pipeline.report.canvas import save_png

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    _draw_trials(axes, trials)
    for rule, line in fits.items():
        if rule in _COLOURS:
            costs = [t.candidate.gflops for t in trials if rule in t.candidate.rules and t.status == "complete"]
            _draw_line(axes, line, min(costs), max(costs), rule=rule)
    points = [(trial.candidate.gflops, trial.AP) for trial in front]
    if points:
        axes.step(*zip(*points, strict=True), where="post", color="0.6", linewidth=1, label="front", zorder=0)
    axes.xaxis.set_major_locator(ticker.LogLocator(base=2, subs=(1, 2**0.5)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter("{x:.2g}")
    axes.set_xlabel("GFLOPs of the deployed model")
    axes.set_ylabel("AP on val")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, path)


def _draw_trials(axes: Any, trials: Sequence[Trial]) -> None:
    for trial in trials:
        if trial.AP is None or trial.status not in _MARKERS:
            continue
        rules = trial.candidate.rules
        colour = _COLOURS[rules[0]] if len(rules) == 1 else "0.2"  # grey: several rules can make this model
        opacity = 1 if trial.status == "complete" else 0.4
        marker = _MARKERS[trial.status]
        axes.plot(trial.candidate.gflops, trial.AP, marker, color=colour, alpha=opacity, markersize=5)


def _draw_line(axes: Any, line: LineFit, low: float, high: float, *, rule: str) -> None:
    xs = [low * (high / low) ** (i / 40) for i in range(41)]
    values = [line.at(math.log2(x)) for x in xs]
    axes.plot(xs, values, color=_COLOURS[rule], linewidth=1.5, label=rule)
    if line.spread:
        below, above = ([value + sign * line.spread for value in values] for sign in (-1, 1))
        axes.fill_between(xs, below, above, color=_COLOURS[rule], alpha=0.12, linewidth=0)
