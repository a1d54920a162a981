"""Budgets: what can be written, what is told where it cannot, and that none is exceeded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.params import TuneSettings
from pipeline.tuning.budget.amount import Budget, parse_budget
from pipeline.tuning.budget.plan import Ledger, Plan, Probe, Speed, check_fits, choose_epochs, fit_speed
from pipeline.tuning.search.search import Search, split_strata
from tests.unit.tune_models import make_space

PLAN = Plan(epochs=10, train_images=100, val_images=20, batch_size=8, at_once=2)
SPEED = Speed(startup=5.0, per_image=0.001, per_gflop=0.05)


@pytest.mark.parametrize(
    ("text", "budget", "shown"),
    [
        ("30m", Budget("seconds", 1800), "30m"),
        ("8h", Budget("seconds", 28_800), "8h"),
        ("1h30m", Budget("seconds", 5400), "1h30m"),
        (" 90 s ", Budget("seconds", 90), "1m30s"),
        ("2d", Budget("seconds", 172_800), "48h"),
        ("40trials", Budget("trials", 40), "40 trials"),
        ("1 trial", Budget("trials", 1), "1 trial"),
        ("2e18flop", Budget("flop", 2e18), "2e+18 flop"),
        ("3.3E+8 FLOPs", Budget("flop", 3.3e8), "3.3e+08 flop"),
    ],
)
def test_a_budget_is_time_trials_or_compute(text: str, budget: Budget, shown: str) -> None:
    assert parse_budget(text) == budget
    assert str(budget) == shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0", "has no unit; give a time as in 30m or 8h"),
        ("5", "has no unit; did you mean 5m, 5h or 5trials?"),
        ("-3h", "must be a time above zero; try 3h"),
        ("-5trials", "must be a number of trials above zero; try 5trials"),
        ("0m", "try 30m"),
        ("0flop", "must be a compute above zero; try 1e15flop"),
        ("10 parsecs", "the unit 'parsecs', which is none of s, m, h, d, trials, flop; did you mean 10m"),
        ("1.5trials", "whole number of trials; try 2trials"),
        ("", "is no amount; give a time"),
        ("soon", "is no amount; give a time"),
        ("1e99flop", "is more than 1e+30 flop"),
    ],
)
def test_what_is_no_budget_is_told_with_the_nearest_that_is(text: str, told: str) -> None:
    with pytest.raises(ValueError, match="budget") as caught:
        parse_budget(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_speed_of_any_model_follows_from_a_cheap_and_a_dear_one() -> None:
    speed = fit_speed([Probe(3.0, 4.0, 0.25), Probe(1.0, 5.0, 0.15)])
    assert (speed.startup, speed.per_image, speed.per_gflop) == pytest.approx((5.0, 0.1, 0.05))
    noisy = fit_speed([Probe(3.0, 4.0, 0.1), Probe(1.0, 5.0, 0.15)])  # the dear one was faster
    assert (noisy.per_image, noisy.per_gflop) == pytest.approx((0.15, 0.0))


def test_a_budget_of_trials_affords_so_many() -> None:
    ledger, search = _begin(Budget("trials", 7))
    assert len(_spend(search, ledger)) == 7


def test_a_budget_of_compute_is_never_exceeded_and_used_up() -> None:
    amount = 40 * PLAN.compute(min(make_space(), key=lambda c: c.gflops))
    ledger, search = _begin(Budget("flop", amount))
    keys = _spend(search, ledger)
    used = sum(PLAN.compute(search.trials[key].candidate) for key in keys)
    assert used <= amount
    untried = [candidate for candidate in make_space() if candidate.key not in search.trials]
    assert used + min(PLAN.compute(candidate) for candidate in untried) > amount


def test_compute_counts_what_was_trained_once_a_trial_has_ended() -> None:
    ledger, search = _begin(Budget("flop", 1e15))
    trial = search.ask()
    assert trial is not None
    assert ledger.spent([trial], seconds=0) == PLAN.compute(trial.candidate)
    trial.compute = 1e9
    search.end(trial.candidate.key, "stopped")
    assert ledger.spent([trial], seconds=0) == 1e9


def test_compute_is_three_forwards_an_image() -> None:
    candidate = make_space()[0]
    assert PLAN.compute(candidate) == pytest.approx(3 * candidate.training_gflops * 1e9 * 10 * 100)


def test_no_trial_is_begun_that_would_not_end_in_time() -> None:
    ledger = Ledger(Budget("seconds", 600), replace(PLAN, speed=SPEED))
    candidate = make_space()[0]
    takes = ledger.plan.seconds(candidate)
    assert ledger.amount == 580  # the results take the rest
    assert ledger.affords(candidate, (), seconds=579 - takes)
    assert not ledger.affords(candidate, (), seconds=581 - takes)


def test_what_trials_took_corrects_what_the_probes_promised() -> None:
    ledger, search = _begin(Budget("seconds", 600), speed=SPEED)
    trial = search.ask()
    assert trial is not None
    takes = ledger.plan.seconds(trial.candidate)
    left = 580 - 1.5 * takes
    assert ledger.affords(trial.candidate, (), seconds=left)
    search.end(trial.candidate.key, "complete", seconds=2 * takes)
    assert not ledger.affords(trial.candidate, [trial], seconds=left)


def test_trials_get_fewer_epochs_where_the_budget_would_not_hold_enough() -> None:
    strata = split_strata(make_space(), 3)
    rich = choose_epochs(_ledger(36_000), strata, trials=16, seconds=30)
    poor = choose_epochs(_ledger(100), strata, trials=16, seconds=30)
    assert rich.plan.epochs == 10
    assert 1 <= poor.plan.epochs < 10
    assert poor.expected_trials(strata, seconds=30) >= 16


def test_a_budget_below_one_trial_is_told_with_one_that_works() -> None:
    strata = split_strata(make_space(), 3)
    with pytest.raises(ValueError, match="less than one trial of the cheapest model") as caught:
        choose_epochs(_ledger(20), strata, trials=16, seconds=15)
    offered = parse_budget(str(caught.value).rpartition("--budget ")[2])
    check_fits(Ledger(offered, replace(PLAN, epochs=1, speed=SPEED)), strata, seconds=15)
    with pytest.raises(ValueError, match="less than one trial") as caught:
        check_fits(Ledger(Budget("flop", 1e3), PLAN), strata, seconds=15)
    check_fits(Ledger(parse_budget(str(caught.value).rpartition("--budget ")[2]), PLAN), strata, seconds=15)


def _ledger(seconds: float) -> Ledger:
    return Ledger(Budget("seconds", seconds), replace(PLAN, speed=SPEED))


def _begin(budget: Budget, *, speed: Speed | None = None) -> tuple[Ledger, Search]:
    ledger = Ledger(budget, replace(PLAN, speed=speed))
    settings = TuneSettings(rules=("free",), sampler="random")
    return ledger, Search(make_space(), settings, full_compute=ledger.plan.compute)


def _spend(search: Search, ledger: Ledger) -> list[str]:
    """Asks for trials until none is afforded; two run at once, and all run to their end."""
    keys: list[str] = []
    while trial := search.ask(lambda c: ledger.affords(c, tuple(search.trials.values()), seconds=0)):
        keys.append(trial.candidate.key)
        if len(keys) > 1:
            _end(search, ledger, keys[-2])
    return keys


def _end(search: Search, ledger: Ledger, key: str) -> None:
    trial = search.trials[key]
    trial.compute = ledger.plan.compute(trial.candidate)
    search.end(key, "complete")
