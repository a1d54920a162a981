"""What comes out of a search: a table of trials, the front, a fit of AP over cost, the chosen model."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.params import TuneRule
from pipeline.tuning.report.fit import Line, fit_line
from pipeline.tuning.search.search import Trial
from yolov7.spec.spec_files import spec_from_json, spec_to_yaml
from yolov7.system.files import write_whole

CHOSEN = "chosen.yaml"


def trial_row(trial: Trial) -> dict[str, Any]:
    """A line of the table."""
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
        "warm_start": trial.donor,
        "error": trial.error,
        **dict(candidate.features),
    }


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """Those that no cheaper or equally cheap one meets in AP, by rising cost.

    Trials that were stopped or cut take part: what they reached is a lower bound of what their model can.
    """
    measured = [trial for trial in trials if trial.AP is not None and trial.status != "failed"]
    front: list[Trial] = []
    for trial in sorted(measured, key=lambda trial: (trial.candidate.gflops, -(trial.AP or 0.0))):
        if not front or (trial.AP or 0.0) > (front[-1].AP or 0.0):
            front.append(trial)
    return front


def choose(trials: Iterable[Trial]) -> Trial | None:
    """The model with the highest AP; of equal ones the cheapest."""
    front = pareto_front(trials)
    return front[-1] if front else None


def fit_by_rule(trials: Iterable[Trial], rules: Sequence[TuneRule]) -> dict[str, Line]:
    """AP over doublings of GFLOPs: of all complete trials, and of those that each rule can make; of two at least."""
    complete = [trial for trial in trials if trial.status == "complete" and trial.AP is not None]
    groups: dict[str, list[Trial]] = {"all": complete}
    groups |= {rule: [trial for trial in complete if rule in trial.candidate.rules] for rule in rules}
    return {name: fit_line([_point(trial) for trial in group]) for name, group in groups.items() if len(group) > 1}


def describe_line(line: Line) -> dict[str, float | int | None]:
    """A fit as plain figures."""
    return {
        "trials": line.points,
        "AP_at_mean_cost": line.level,
        "mean_gflops": 2**line.centre,
        "AP_per_doubling": line.slope,
        "standard_error": line.slope_error,
        "spread": line.spread,
    }


def write_results(
    folder: Path, trials: Sequence[Trial], *, rules: Sequence[TuneRule], summary: dict[str, Any], journal: Path
) -> Trial | None:
    """Fills the folder; the chosen trial, if any trial measured an AP."""
    from pipeline.tuning.report.picture import draw_scaling

    rows = [trial_row(trial) for trial in trials]
    front, chosen, fits = pareto_front(trials), choose(trials), fit_by_rule(trials, rules)
    _write_json(folder / "trials.json", [row | {"curve": t.curve} for row, t in zip(rows, trials, strict=True)])
    _write_table(folder / "trials.csv", rows)
    _write_table(folder / "front.csv", [trial_row(trial) for trial in front])
    _write_json(folder / "fit.json", {name: describe_line(line) for name, line in fits.items()})
    named = {
        "chosen": chosen.candidate.key if chosen else None,
        "image_size": chosen.candidate.image_size if chosen else None,
        "front": [trial.candidate.key for trial in front],
    }
    _write_json(folder / "tune.json", summary | named)
    draw_scaling(folder / "scaling.png", trials, fits=fits, front=front)
    write_whole(folder / "journal.jsonl", journal.read_bytes())
    if chosen is not None:
        write_whole(folder / CHOSEN, chosen_text(chosen, base=str(summary["base"])).encode())
    return chosen


def chosen_text(trial: Trial, *, base: str) -> str:
    """A spec file."""
    candidate = trial.candidate
    head = (
        f"# {base} scaled: {candidate.label}; {candidate.parameters_deployed / 1e6:.3g} M parameters, "
        f"{candidate.gflops:.3g} GFLOPs at {candidate.image_size} pixels\n"
    )
    return head + spec_to_yaml(spec_from_json(candidate.spec_json))


def _point(trial: Trial) -> tuple[float, float]:
    return math.log2(trial.candidate.gflops), trial.AP or 0.0


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["trial"])
        writer.writeheader()
        writer.writerows(rows)
