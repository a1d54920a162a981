"""What a search says: what it will do, what became of each trial, and what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from pipeline.tuning.budget.amount import show_amount
from pipeline.tuning.budget.plan import Ledger
from pipeline.tuning.report.fit import Line
from pipeline.tuning.search.search import Search, Status, Trial
from pipeline.tuning.setup import Setup


def plan_lines(setup: Setup, search: Search, ledger: Ledger, *, seconds: float) -> Iterator[str]:
    """How many trials of which cost fit, and the largest model."""
    plan, candidates = ledger.plan, setup.candidates
    low, high = (pick(candidate.gflops for candidate in candidates) for pick in (min, max))
    number = ledger.expected_trials(search.strata, seconds=seconds)
    yield (
        f"budget {setup.budget}: about {number} trials of {plan.epochs} epochs, {plan.at_once} at a time, out of "
        f"{len(candidates)} models in {len(search.strata)} strata from {low:.3g} to {high:.3g} GFLOPs"
    )
    fitting = [candidate for candidate in candidates if ledger.affords(candidate, (), seconds=seconds)] or candidates
    smallest, largest = (pick(fitting, key=lambda candidate: candidate.gflops) for pick in (min, max))
    costs = [f"{plan.compute(candidate):.2g}" for candidate in (smallest, largest)]
    times = [show_amount("seconds", plan.seconds(candidate)) for candidate in (smallest, largest)]
    timed = f", {times[0]} to {times[1]}" if plan.speed else ""
    left_out = f"; {setup.left_out} above the caps are left out" if setup.left_out else ""
    yield (
        f"a trial takes {costs[0]} to {costs[1]} flop{timed}; the largest model is {largest.label} with "
        f"{largest.gflops:.3g} GFLOPs and {largest.parameters_deployed / 1e6:.3g} M parameters{left_out}"
    )


def trial_line(trial: Trial, *, ended: int, used: str) -> str:
    """`  7  compound 1.5   0.308 GFLOPs  AP 0.213  complete after 5 epochs, 1m12s  (6m of 15m)`."""
    candidate = trial.candidate
    measured = "AP -    " if trial.AP is None else f"AP {trial.AP:.3f}"
    fault = f": {trial.error}" if trial.error else ""
    return (
        f"{ended:>3}  {candidate.label:<24} {candidate.gflops:>7.3g} GFLOPs  {measured}  {trial.status} after "
        f"{trial.epochs} epochs, {show_amount('seconds', trial.seconds)}{fault}  ({used})"
    )


def used_text(ledger: Ledger, trials: Sequence[Trial], *, seconds: float) -> str:
    """`6m of 15m`."""
    spent = show_amount(ledger.budget.kind, ledger.spent(trials, seconds=seconds))
    return f"{spent.partition(' ')[0]} of {ledger.budget}"


def result_lines(
    trials: Sequence[Trial], *, fits: Mapping[str, Line], chosen: Trial | None, used: str
) -> Iterator[str]:
    """How many trials there were, what the fits say, and the best model."""
    counts = count_by_status(trials)
    yield f"{len(trials)} trials ({', '.join(f'{n} {name}' for name, n in counts.items() if n)}); {used} used"
    for name, line in fits.items():
        error = f" +- {line.slope_error:.3f}" if line.slope_error is not None else ""
        yield f"AP per doubling of GFLOPs, {name}: {line.slope:+.3f}{error} ({line.points} models)"
    if chosen is None:
        yield "no trial came to a first AP; give more budget"
    else:
        yield f"best: {chosen.candidate.label}, AP {chosen.AP:.3f}, {chosen.candidate.gflops:.3g} GFLOPs"


def count_by_status(trials: Sequence[Trial]) -> dict[str, int]:
    """Of all that a trial may be at the end."""
    counts = Counter(trial.status for trial in trials)
    return {status: counts[status] for status in get_args(Status) if status != "running"}
