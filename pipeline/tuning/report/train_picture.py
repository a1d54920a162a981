"""The chart of a search for settings: AP over each setting, the most important one first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tune_settings import SettingRange
from pipeline.tuning.search.search import Trial
from pipeline.tuning.search.train_space import STATED

_COLUMNS = 3
_WIDTH, _ROW_HEIGHT, _MARGIN = 6.0, 1.45, 0.5  # inches
_COLOURS = {"stated": "#d55e00", "best": "#009e73", "other": "#0072b2"}


def draw_settings_chart(
    path: Path,
    trials: Sequence[Trial],
    *,
    chosen: Trial | None,
    ranges: Mapping[str, SettingRange],
    importance: Mapping[str, float],
) -> None:
    """Draw a panel for each setting with the AP of all trials over its values, on the scale of its range.

    Complete trials are filled, stopped and cut ones are hollow. The stated settings and the best trial have colours of
    their own.

    Args:
        path: The image file to write.
        trials: All trials; those without an AP are not drawn.
        chosen: The best trial, or None if there is none.
        ranges: The ranges of the settings. A stated value outside a range is drawn at its nearer end.
        importance: The importance of each setting, the largest first; empty if it is not known.
    """
    from matplotlib.figure import Figure

    from pipeline.report.canvas import save_png

    names = list(importance) or list(ranges)
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(_WIDTH, rows * _ROW_HEIGHT + _MARGIN), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    drawn = [trial for trial in trials if trial.AP is not None and trial.status != "failed"]
    for axes, name in zip(grid.flat, names, strict=False):
        _draw_panel(axes, name, drawn, chosen=chosen, allowed=ranges[name])
        share = f"  {importance[name]:.0%}" if importance else ""
        axes.set_title(f"{name}{share}", fontsize=8, loc="left")
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("AP on val", fontsize=8)
    _add_legend(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, path)


def _draw_panel(axes: Any, name: str, trials: Sequence[Trial], *, chosen: Trial | None, allowed: SettingRange) -> None:
    for trial in trials:
        kind = "stated" if STATED in trial.candidate.rules else "best" if trial is chosen else "other"
        colour = _COLOURS[kind]
        axes.plot(
            allowed.position(dict(trial.candidate.train)[name]),
            trial.AP,
            "o",
            color=colour,
            markerfacecolor=colour if trial.status == "complete" else "none",
            markersize=4 if kind == "other" else 6,
            alpha=0.8,
        )
    axes.set_xlim(-0.06, 1.06)
    ticks = (0.0, 0.5, 1.0)
    axes.set_xticks(ticks, [f"{allowed.at(position):.4g}" for position in ticks])
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(side)
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
