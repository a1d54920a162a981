"""The chart of a search for settings: AP over each setting, the most important one first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tuning.search.search import Trial
from pipeline.tuning.search.train_space import STATED

_COLUMNS = 3
_WIDTH, _ROW_HEIGHT, _MARGIN = 6.0, 1.45, 0.5  # inches
_COLOURS = {"stated": "#d55e00", "best": "#009e73", "other": "#0072b2"}


def draw_settings_chart(path: Path, trials: Sequence[Trial], *, importance: Mapping[str, float]) -> None:
    """Draw a panel for each setting with the AP of all trials over its values.

    Complete trials are filled, stopped and cut ones are hollow. The stated settings and the best trial have their own
    colours.

    Args:
        path: The image file to write.
        trials: All trials; those without an AP are not drawn.
        importance: The importance of each setting, the largest first; empty if it is not known.
    """
    from matplotlib.figure import Figure

    from pipeline.report.canvas import save_png

    names = list(importance) or [name for name, _ in trials[0].candidate.train] if trials else []
    columns = max(1, min(_COLUMNS, len(names)))
    rows = max(1, math.ceil(len(names) / columns))
    figure = Figure(figsize=(_WIDTH, rows * _ROW_HEIGHT + _MARGIN), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    drawn = sorted((t for t in trials if t.AP is not None and t.status != "failed"), key=lambda t: t.AP or 0.0)
    for axes, name in zip(grid.flat, names, strict=False):
        _draw_panel(axes, name, drawn)
        share = f"  {importance[name]:.0%}" if importance else ""
        axes.set_title(f"{name}{share}", fontsize=8, loc="left")
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("AP on val", fontsize=8)
    _add_legend(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, path)


def _draw_panel(axes: Any, name: str, trials: Sequence[Trial]) -> None:
    from matplotlib import ticker

    for i, trial in enumerate(trials):
        kind = "stated" if STATED in trial.candidate.rules else "best" if i == len(trials) - 1 else "other"
        colour, filled = _COLOURS[kind], trial.status == "complete"
        value = dict(trial.candidate.train)[name]
        size = 4 if kind == "other" else 6
        face = colour if filled else "none"
        axes.plot(value, trial.AP, "o", color=colour, markerfacecolor=face, markersize=size, alpha=0.8)
    values = [dict(trial.candidate.train)[name] for trial in trials]
    if values and min(values) > 0 and max(values) / min(values) > 8:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.xaxis.set_major_locator(ticker.LogLocator(numticks=4))
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(3))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.2)


def _add_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    names = {"stated": "stated settings", "best": "best trial", "other": "other trials"}
    marks = [Line2D([], [], marker="o", linestyle="", color=_COLOURS[key], label=text) for key, text in names.items()]
    marks.append(
        Line2D([], [], marker="o", linestyle="", color="0.4", markerfacecolor="none", label="not trained to the end")
    )
    figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
