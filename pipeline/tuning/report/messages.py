"""The console messages of a search: the plan, each trial, and the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from pipeline.tuning.budget.amount import show_amount
from pipeline.tuning.budget.plan import BudgetAccount
from pipeline.tuning.report.fit import LineFit
from pipeline.tuning.report.results import choose
from pipeline.tuning.report.train_results import choose_settings, stated_trial
from pipeline.tuning.search.search import Search, Status, Trial
from pipeline.tuning.setup import Setup
from yolov7.errors import counted


def plan_lines(setup: Setup, search: Search, account: BudgetAccount, *, seconds: float) -> Iterator[str]:
    """Yield lines that say how many trials of which cost fit into the budget, and what is varied.

    Args:
        setup: What is varied.
        search: The search.
        account: The budget.
        seconds: Seconds that the search has used.
    """
    plan, candidates = account.plan, setup.candidates
    number = account.expected_trials(search.strata, seconds=seconds)
    trials = (
        f"budget {setup.budget}: about {counted(number, 'trial')} of {counted(plan.epochs, 'epoch')}, "
        f"{plan.concurrent_trials} at a time"
    )
    if setup.settings.space == "train":
        varied = [name for name, _ in candidates[0].train]
        timed = f", {show_amount('seconds', plan.seconds(candidates[0]))}" if plan.speed else ""
        yield f"{trials}; a trial takes {plan.compute(candidates[0]):.2g} flop{timed}"
        yield f"{counted(len(varied), 'varied setting')} of the training: {', '.join(varied)}"
        if number < len(varied):
            few = "these are few trials for so many settings"
            yield f"{few}; name the most important ones with --vary, such as optim.lr0,augment, or give a larger budget"
        return
    low, high = (pick(candidate.gflops for candidate in candidates) for pick in (min, max))
    yield (
        f"{trials}, out of {len(candidates)} models in {len(search.strata)} strata from {low:.3g} to {high:.3g} GFLOPs"
    )
    fitting = [candidate for candidate in candidates if account.affords(candidate, (), seconds=seconds)] or candidates
    smallest, largest = (pick(fitting, key=lambda candidate: candidate.gflops) for pick in (min, max))
    compute = [f"{plan.compute(candidate):.2g}" for candidate in (smallest, largest)]
    times = [show_amount("seconds", plan.seconds(candidate)) for candidate in (smallest, largest)]
    timed = f", {times[0]} to {times[1]}" if plan.speed else ""
    excluded = f"; {setup.excluded} models exceed the caps and are left out" if setup.excluded else ""
    yield (
        f"a trial takes {compute[0]} to {compute[1]} flop{timed}; the largest model is {largest.label} with "
        f"{largest.gflops:.3g} GFLOPs and {largest.parameters_deployed / 1e6:.3g} M parameters{excluded}"
    )


def trial_line(trial: Trial, *, ended: int, used: str) -> str:
    """Return a line about a trial that ended.

    An example is `  7  compound 1.5   0.308 GFLOPs  AP 0.213  complete after 5 epochs, 1m12s  (6m04s of 15m00s)`.

    Args:
        trial: The trial.
        ended: How many trials have ended.
        used: What is used of the budget, see `used_text`.
    """
    candidate = trial.candidate
    what = f"{candidate.label:<24} {candidate.gflops:>7.3g} GFLOPs"
    if candidate.train:
        what = f"{candidate.label:<44}"
    measured = "AP -    " if trial.AP is None else f"AP {trial.AP:.3f}"
    error = f": {trial.error}" if trial.error else ""
    return (
        f"{ended:>3}  {what}  {measured}  {trial.status} after {counted(trial.epochs, 'epoch')}, "
        f"{show_amount('seconds', trial.seconds)}{error}  ({used})"
    )


def used_text(account: BudgetAccount, trials: Sequence[Trial], *, seconds: float) -> str:
    """Return what is used of the budget, such as `6m04s of 15m00s`.

    Args:
        account: The budget.
        trials: All trials that were started.
        seconds: Seconds that the search has used.
    """
    spent = show_amount(account.budget.kind, account.spent(trials, seconds=seconds))
    return f"{spent.partition(' ')[0]} of {account.budget}"


def result_lines(
    trials: Sequence[Trial], *, fits: Mapping[str, LineFit], importance: Mapping[str, float], used: str
) -> Iterator[str]:
    """Yield lines about the number of trials, what AP depends on, and the best trial.

    Args:
        trials: All trials.
        fits: The fit of AP over cost for each rule; empty if settings were searched.
        importance: The importance of each setting, the largest first; empty if it is not known.
        used: What is used of the budget, see `used_text`.
    """
    counts = count_by_status(trials)
    ended = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    yield f"{counted(len(trials), 'trial')} ({ended}); {used} used"
    for name, line in fits.items():
        error = f" +- {line.slope_error:.3f}" if line.slope_error is not None else ""
        yield f"AP per doubling of GFLOPs, {name}: {line.slope:+.3f}{error} ({line.points} models)"
    if importance:
        most = [f"{name} {share:.0%}" for name, share in list(importance.items())[:3]]
        yield f"the settings with the largest effect on AP: {', '.join(most)}"
    are_models = not any(trial.candidate.train for trial in trials)
    chosen, stated = choose(trials) if are_models else choose_settings(trials), stated_trial(trials)
    if chosen is None:
        yield "no trial measured an AP; give a larger budget"
    elif are_models:
        yield f"best: {chosen.candidate.label}, AP {chosen.AP:.3f}, {chosen.candidate.gflops:.3g} GFLOPs"
    else:
        compared = f"; the stated settings have AP {stated.AP:.3f}" if stated and stated is not chosen else ""
        yield f"best: {chosen.candidate.label}, AP {chosen.AP:.3f}{compared}"


def count_by_status(trials: Sequence[Trial]) -> dict[str, int]:
    """Count the trials by how they ended; statuses without trials have the count 0."""
    counts = Counter(trial.status for trial in trials)
    return {status: counts[status] for status in get_args(Status) if status != "running"}
