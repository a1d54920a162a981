"""Results of a search for settings of a training: a table of trials, the importance of settings, and the best ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.artifacts.files import write_json
from pipeline.tune_settings import SettingRange, nest
from pipeline.tuning.report.results import CHOSEN, choose, write_table
from pipeline.tuning.report.train_picture import draw_settings_chart
from pipeline.tuning.search.search import Trial, known_results
from pipeline.tuning.search.train_space import STATED
from yolov7.system.files import write_whole

PICTURE = "settings.png"
FEWEST_TRIALS = 8  # with fewer ones nothing can be said about the importance of settings
_TREES = 300


def stated_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of the stated settings, or None if it measured no AP."""
    return next((trial for trial in trials if STATED in trial.candidate.rules and trial.AP is not None), None)


def choose_settings(trials: Sequence[Trial]) -> Trial | None:
    """Return the complete trial with the highest AP; if none is complete, the best one of all, or None without an AP.

    The best AP of a stopped trial is often that of a lucky early epoch.

    Args:
        trials: All trials.
    """
    complete = [trial for trial in trials if trial.status == "complete"]
    return choose(complete) or choose(trials)


def find_importance(trials: Sequence[Trial]) -> dict[str, float]:
    """Return the importance of each setting: its share of the variance of AP that a random forest explains.

    The forest is fitted to all trials with a known AP (`known_results`); the importance is the reduction of the
    variance by splits of a setting (Breiman, 2001, "Random Forests").

    Args:
        trials: All trials.

    Returns:
        Shares with the sum 1, the largest first; empty if there are too few trials or if all have the same AP.
    """
    from sklearn.ensemble import RandomForestRegressor

    results = known_results(trials)
    APs = np.array([AP for _, AP in results])
    if len(results) < FEWEST_TRIALS or not APs.std():
        return {}
    names = [name for name, _ in results[0][0].features]
    positions = np.array([[position for _, position in candidate.features] for candidate, _ in results])
    forest = RandomForestRegressor(_TREES, max_features=1 / 3, random_state=0).fit(positions, APs)
    shares = zip(names, forest.feature_importances_.tolist(), strict=True)
    return dict(sorted(shares, key=lambda pair: pair[1], reverse=True))


def write_train_results(
    folder: Path,
    trials: Sequence[Trial],
    *,
    ranges: Mapping[str, SettingRange],
    importance: Mapping[str, float],
    summary: dict[str, Any],
    journal: Path,
) -> Trial | None:
    """Write all results of a search for settings.

    Args:
        folder: The folder to fill.
        trials: All trials.
        ranges: The ranges of the settings.
        importance: The importance of each setting, see `find_importance`.
        summary: Facts about the search for `tune.json`; `base` names its base, `epochs` the length of a trial.
        journal: The journal file, which is copied.

    Returns:
        The chosen trial, see `choose_settings`.
    """
    rows = [_table_row(trial) for trial in trials]
    chosen, stated = choose_settings(trials), stated_trial(trials)
    write_json(folder / "trials.json", [row | {"curve": t.curve} for row, t in zip(rows, trials, strict=True)])
    write_table(folder / "trials.csv", rows)
    write_json(folder / "importance.json", dict(importance))
    named = {
        "chosen": chosen.candidate.key if chosen else None,
        "settings": nest(_changed_values(chosen, trials)) if chosen else None,
        "AP": chosen.AP if chosen else None,
        "stated": stated.candidate.key if stated else None,
        "stated_AP": stated.AP if stated else None,
        "reason": _reason(chosen, stated, number=len(trials), summary=summary) if chosen else "",
    }
    write_json(folder / "tune.json", summary | named)
    draw_settings_chart(folder / PICTURE, trials, chosen=chosen, ranges=ranges, importance=importance)
    write_whole(folder / "journal.jsonl", journal.read_bytes())
    if chosen is not None:
        content = yaml.safe_dump(named["settings"], default_flow_style=None, sort_keys=False, width=110)
        write_whole(folder / CHOSEN, f"# {named['reason']}\n{content}".encode())
    return chosen


def _changed_values(chosen: Trial, trials: Sequence[Trial]) -> dict[str, float]:
    """Return the chosen settings that differ from the stated ones."""
    stated = {key: value for t in trials if STATED in t.candidate.rules for key, value in t.candidate.train}
    return {key: value for key, value in chosen.candidate.train if value != stated.get(key)}


def _reason(chosen: Trial, stated: Trial | None, *, number: int, summary: dict[str, Any]) -> str:
    """Return why the settings were chosen, in one line."""
    trials = f"{number} trial{'s' * (number != 1)} of {summary['epochs']} epoch{'s' * (summary['epochs'] != 1)}"
    compared = f" instead of {stated.AP:.3f} with the stated settings" if stated and stated is not chosen else ""
    what = "the stated settings are the best of" if stated is chosen else "the best of"
    return f"yolov7 tune --space train: {what} {trials}; AP {chosen.AP:.3f} on val{compared}"


def _table_row(trial: Trial) -> dict[str, Any]:
    candidate = trial.candidate
    return {
        "trial": candidate.key,
        "is_stated": STATED in candidate.rules,
        "status": trial.status,
        "AP": trial.AP,
        "epochs": trial.epochs,
        "training_flop": trial.compute,
        "seconds": round(trial.seconds, 1),
        "error": trial.error,
        "read_back": bool(trial.trained),  # whether the settings are those that the trial recorded, or the sampled ones
        **(trial.trained or dict(candidate.train)),
    }
