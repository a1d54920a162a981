"""Results of a search for a model: a table of trials, the Pareto front, fits of AP over cost, and the chosen model."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import write_json
from pipeline.tune_settings import TuneRule
from pipeline.tuning.report.fit import LineFit, fit_line
from pipeline.tuning.report.picture import draw_scaling
from pipeline.tuning.search.search import Trial
from yolov7.spec.spec_files import spec_from_json, spec_to_yaml
from yolov7.system.files import write_whole

CHOSEN = "chosen.yaml"


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials whose AP no trial of lower or equal cost reaches, the cheapest first.

    Stopped and cut trials are included, because their AP is a lower bound of what their model can reach.
    """
    measured = [trial for trial in trials if trial.AP is not None and trial.status != "failed"]
    front: list[Trial] = []
    for trial in sorted(measured, key=lambda trial: (trial.candidate.gflops, -(trial.AP or 0.0))):
        if not front or (trial.AP or 0.0) > (front[-1].AP or 0.0):
            front.append(trial)
    return front


def choose(trials: Iterable[Trial]) -> Trial | None:
    """Return the trial with the highest AP, the cheapest one of equal ones, or None if no AP was measured."""
    front = pareto_front(trials)
    return front[-1] if front else None


def fit_by_rule(trials: Iterable[Trial], rules: Sequence[TuneRule]) -> dict[str, LineFit]:
    """Fit AP over doublings of GFLOPs to complete trials.

    Args:
        trials: All trials.
        rules: The rules of the search.

    Returns:
        A fit of all trials ("all") and one for each rule, each if there are at least two trials.
    """
    complete = [trial for trial in trials if trial.status == "complete" and trial.AP is not None]
    groups: dict[str, list[Trial]] = {"all": complete}
    groups |= {rule: [trial for trial in complete if rule in trial.candidate.rules] for rule in rules}
    return {
        name: fit_line([(math.log2(trial.candidate.gflops), trial.AP or 0.0) for trial in group])
        for name, group in groups.items()
        if len(group) > 1
    }


def write_results(
    folder: Path, trials: Sequence[Trial], *, rules: Sequence[TuneRule], summary: dict[str, Any], journal: Path
) -> Trial | None:
    """Write all results of a search for a model.

    Args:
        folder: The folder to fill.
        trials: All trials.
        rules: The rules of the search.
        summary: Facts about the search for `tune.json`; `base` names its base.
        journal: The journal file, which is copied.

    Returns:
        The chosen trial, or None if no AP was measured.
    """
    rows = [_table_row(trial) for trial in trials]
    front, chosen, fits = pareto_front(trials), choose(trials), fit_by_rule(trials, rules)
    write_json(folder / "trials.json", [row | {"curve": t.curve} for row, t in zip(rows, trials, strict=True)])
    write_table(folder / "trials.csv", rows)
    write_table(folder / "front.csv", [_table_row(trial) for trial in front])
    write_json(folder / "fit.json", {name: _describe_fit(line) for name, line in fits.items()})
    named = {
        "chosen": chosen.candidate.key if chosen else None,
        "image_size": chosen.candidate.image_size if chosen else None,
        "front": [trial.candidate.key for trial in front],
    }
    write_json(folder / "tune.json", summary | named)
    draw_scaling(folder / "scaling.png", trials, fits=fits, front=front)
    write_whole(folder / "journal.jsonl", journal.read_bytes())
    if chosen is not None:
        candidate = chosen.candidate
        head = (
            f"# {summary['base']} scaled: {candidate.label}; {candidate.parameters_deployed / 1e6:.3g} M parameters, "
            f"{candidate.gflops:.3g} GFLOPs at {candidate.image_size} pixels\n"
        )
        write_whole(folder / CHOSEN, (head + spec_to_yaml(spec_from_json(candidate.spec_json))).encode())
    return chosen


def _table_row(trial: Trial) -> dict[str, Any]:
    candidate = trial.candidate
    return {
        "trial": candidate.key,
        "model": candidate.label,
        "rules": " ".join(candidate.rules),
        "stratum": trial.stratum,
        "status": trial.status,
        "AP": trial.AP,
        "gflops": candidate.gflops,
        "parameters": candidate.parameters_deployed,
        "image_size": candidate.image_size,
        "epochs": trial.epochs,
        "training_flop": trial.compute,
        "seconds": round(trial.seconds, 1),
        "warm_start": trial.warm_start,
        "error": trial.error,
        **dict(candidate.features),
    }


def _describe_fit(line: LineFit) -> dict[str, float | int | None]:
    return {
        "trials": line.points,
        "AP_at_mean_cost": line.level,
        "mean_gflops": 2**line.centre,
        "AP_per_doubling": line.slope,
        "standard_error": line.slope_error,
        "spread": line.spread,
    }


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table as CSV.

    Args:
        path: The file to write.
        rows: The rows, with the same columns.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["trial"])
        writer.writeheader()
        writer.writerows(rows)
