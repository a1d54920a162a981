"""Budgets: which texts are valid, what the messages about other texts say, and that no budget is exceeded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.tune_settings import TuneSettings
from pipeline.tuning.budget.amount import Budget, parse_budget
from pipeline.tuning.budget.plan import (
    BudgetAccount,
    Speed,
    SpeedSample,
    TrialPlan,
    check_fits,
    choose_epochs,
    fit_speed,
)
from pipeline.tuning.search.search import Search, split_strata
from tests.unit.tune_models import make_space
from yolov7.errors import SettingError

PLAN = TrialPlan(epochs=10, train_images=100, val_images=20, batch_size=8, concurrent_trials=2)
SPEED = Speed(startup=5.0, per_image=0.001, per_gflop=0.05)


@pytest.mark.parametrize(
    ("text", "budget", "shown"),
    [
        ("30m", Budget("seconds", 1800), "30m00s"),
        ("8h", Budget("seconds", 28_800), "8h00m"),
        ("1h30m", Budget("seconds", 5400), "1h30m"),
        (" 90 s ", Budget("seconds", 90), "1m30s"),
        ("2d", Budget("seconds", 172_800), "48h00m"),
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
    ("text", "message"),
    [
        ("0", "has no unit; give a time such as 30m or 8h"),
        ("5", "has no unit; did you mean 5m, 5h or 5trials?"),
        ("-3h", "must be a time greater than zero; try 3h"),
        ("-5trials", "must be a number of trials greater than zero; try 5trials"),
        ("0m", "try 30m"),
        ("0flop", "must be an amount of compute greater than zero; try 1e15flop"),
        ("10 parsecs", "the unit 'parsecs', which is none of s, m, h, d, trials, flop; did you mean 10m"),
        ("1.5trials", "whole number of trials; try 2trials"),
        ("", "is not an amount; give a time"),
        ("soon", "is not an amount; give a time"),
        ("1e99flop", "must be at most 1e+30 flop"),
    ],
)
def test_the_message_about_an_invalid_budget_names_a_valid_one(text: str, message: str) -> None:
    with pytest.raises(SettingError, match="budget") as caught:
        parse_budget(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_speed_of_any_model_follows_from_a_cheap_and_an_expensive_one() -> None:
    speed = fit_speed([SpeedSample(3.0, 4.0, 0.25), SpeedSample(1.0, 5.0, 0.15)])
    assert (speed.startup, speed.per_image, speed.per_gflop) == pytest.approx((5.0, 0.1, 0.05))
    noisy = fit_speed([SpeedSample(3.0, 4.0, 0.1), SpeedSample(1.0, 5.0, 0.15)])  # the expensive one was faster
    assert (noisy.per_image, noisy.per_gflop) == pytest.approx((0.15, 0.0))


def test_a_budget_of_trials_affords_so_many() -> None:
    account, search = _begin(Budget("trials", 7))
    assert len(_spend(search, account)) == 7


def test_a_budget_of_compute_is_used_up_and_not_exceeded() -> None:
    amount = 40 * PLAN.compute(min(make_space(), key=lambda c: c.gflops))
    account, search = _begin(Budget("flop", amount))
    keys = _spend(search, account)
    used = sum(PLAN.compute(search.trials[key].candidate) for key in keys)
    assert used <= amount
    untried = [candidate for candidate in make_space() if candidate.key not in search.trials]
    assert used + min(PLAN.compute(candidate) for candidate in untried) > amount


def test_a_trial_that_ended_counts_with_the_compute_it_used() -> None:
    account, search = _begin(Budget("flop", 1e15))
    trial = search.ask()
    assert trial is not None
    assert account.spent([trial], seconds=0) == PLAN.compute(trial.candidate)
    trial.compute = 1e9
    search.end(trial.candidate.key, "stopped")
    assert account.spent([trial], seconds=0) == 1e9


def test_compute_is_three_forwards_an_image() -> None:
    candidate = make_space()[0]
    assert PLAN.compute(candidate) == pytest.approx(3 * candidate.training_gflops * 1e9 * 10 * 100)


def test_a_trial_starts_only_if_it_would_end_in_time() -> None:
    account = BudgetAccount(Budget("seconds", 600), replace(PLAN, speed=SPEED))
    candidate = make_space()[0]
    takes = account.plan.seconds(candidate)
    assert account.amount == 580  # the rest is reserved for the results
    assert account.affords(candidate, (), seconds=579 - takes)
    assert not account.affords(candidate, (), seconds=581 - takes)


def test_durations_of_trials_correct_the_predicted_speed() -> None:
    account, search = _begin(Budget("seconds", 600), speed=SPEED)
    trial = search.ask()
    assert trial is not None
    takes = account.plan.seconds(trial.candidate)
    left = 580 - 1.5 * takes
    assert account.affords(trial.candidate, (), seconds=left)
    trial.epochs = 10
    search.end(trial.candidate.key, "complete", seconds=2 * takes)
    assert not account.affords(trial.candidate, [trial], seconds=left)
    trial.epochs = 3  # ended early by patience, so that its duration says nothing about whole trials
    assert account.affords(trial.candidate, [trial], seconds=left)


def test_trials_get_fewer_epochs_if_the_budget_would_hold_too_few() -> None:
    strata = split_strata(make_space(), 3)
    rich = choose_epochs(_account(36_000), strata, trials=16, seconds=30)
    poor = choose_epochs(_account(100), strata, trials=16, seconds=30)
    assert rich.plan.epochs == 10
    assert 1 <= poor.plan.epochs < 10
    assert poor.expected_trials(strata, seconds=30) >= 16


def test_the_message_about_a_budget_below_one_trial_names_one_that_works() -> None:
    strata = split_strata(make_space(), 3)
    with pytest.raises(SettingError, match="less than one trial of the cheapest model") as caught:
        choose_epochs(_account(20), strata, trials=16, seconds=15)
    offered = parse_budget(str(caught.value).rpartition("--budget ")[2])
    check_fits(BudgetAccount(offered, replace(PLAN, epochs=1, speed=SPEED)), strata, seconds=15)
    with pytest.raises(SettingError, match="less than one trial") as caught:
        check_fits(BudgetAccount(Budget("flop", 1e3), PLAN), strata, seconds=15)
    check_fits(BudgetAccount(parse_budget(str(caught.value).rpartition("--budget ")[2]), PLAN), strata, seconds=15)


def _account(seconds: float) -> BudgetAccount:
    return BudgetAccount(Budget("seconds", seconds), replace(PLAN, speed=SPEED))


def _begin(budget: Budget, *, speed: Speed | None = None) -> tuple[BudgetAccount, Search]:
    account = BudgetAccount(budget, replace(PLAN, speed=speed))
    settings = TuneSettings(rules=("free",), sampler="random")
    return account, Search(make_space(), settings, full_compute=account.plan.compute)


def _spend(search: Search, account: BudgetAccount) -> list[str]:
    """Ask for trials until none is affordable; two run at the same time, and all run to their end."""
    keys: list[str] = []
    while trial := search.ask(lambda c: account.affords(c, tuple(search.trials.values()), seconds=0)):
        keys.append(trial.candidate.key)
        if len(keys) > 1:
            _end(search, account, keys[-2])
    return keys


def _end(search: Search, account: BudgetAccount, key: str) -> None:
    trial = search.trials[key]
    trial.compute = account.plan.compute(trial.candidate)
    search.end(key, "complete")
