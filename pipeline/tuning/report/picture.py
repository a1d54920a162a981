"""The plot of a search: AP over GFLOPs, a colour a rule, its fit with the spread, and the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tuning.report.fit import Line
from pipeline.tuning.search.search import Trial

_COLOURS = {"compound": "#1f77b4", "width": "#d62728", "depth": "#2ca02c", "free": "#9467bd"}
_MARKS = {"complete": "o", "stopped": "v", "cut": "x"}


def draw_scaling(path: Path, trials: Sequence[Trial], *, fits: Mapping[str, Line], front: Sequence[Trial]) -> None:
    """Writes the picture of the paper's Table 3 for this search; lines are fits of complete trials.

    Bands are the standard deviation of a rule's models around its line.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(7, 4.5), constrained_layout=True)
    axes.set_xscale("log", base=2)
    _draw_trials(axes, trials)
    for rule, line in fits.items():
        if rule in _COLOURS:
            costs = [t.candidate.gflops for t in trials if rule in t.candidate.rules and t.status == "complete"]
            _draw_line(axes, line, min(costs), max(costs), label=rule, colour=_COLOURS[rule])
    points = [(trial.candidate.gflops, trial.AP) for trial in front]
    if points:
        axes.step(*zip(*points, strict=True), where="post", color="0.6", linewidth=1, label="front", zorder=0)
    axes.xaxis.set_major_locator(ticker.LogLocator(base=2, subs=(1, 2**0.5)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter("{x:.2g}")
    axes.set_xlabel("GFLOPs of the deployed model")
    axes.set_ylabel("AP on val")
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_trials(axes: Any, trials: Sequence[Trial]) -> None:
    for trial in trials:
        if trial.AP is None or trial.status not in _MARKS:
            continue
        rule = trial.candidate.rules[0]
        filled = trial.status == "complete"
        colour = _COLOURS[rule] if len(trial.candidate.rules) == 1 else "0.2"  # a model that several rules make
        mark = _MARKS[trial.status]
        axes.plot(trial.candidate.gflops, trial.AP, mark, color=colour, alpha=1 if filled else 0.4, markersize=5)


def _draw_line(axes: Any, line: Line, low: float, high: float, *, label: str, colour: str) -> None:
    steps = [low * (high / low) ** (i / 40) for i in range(41)]
    values = [line.at(math.log2(x)) for x in steps]
    axes.plot(steps, values, color=colour, linewidth=1.5, label=label)
    if line.spread:
        below, above = ([value + sign * line.spread for value in values] for sign in (-1, 1))
        axes.fill_between(steps, below, above, color=colour, alpha=0.12, linewidth=0)
