"""What a budget holds: how fast models train here, how long each trial trains, and which trials still fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import NamedTuple

from pipeline.tuning.budget.amount import Budget, show_amount
from pipeline.tuning.search.search import Trial
from pipeline.tuning.search.space import Candidate

Strata = Sequence[Sequence[Candidate]]

_VAL_COST = 0.5  # an image validated, in images trained; corrected by what trials take
_WRAP_UP = 20.0  # seconds that the results may take at the end, at most a tenth of the budget


class Probe(NamedTuple):
    """A few steps of training one model: its training GFLOPs, seconds before the first step, seconds an image."""

    training_gflops: float
    startup: float
    per_image: float


@dataclass(frozen=True)
class Speed:
    """Seconds of a trial: `startup`, and for each image `per_image` plus `per_gflop` for each GFLOP of a forward."""

    startup: float
    per_image: float
    per_gflop: float


def fit_speed(probes: Sequence[Probe]) -> Speed:
    """From a cheap and a dear model, which ran side by side as trials do."""
    cheap, dear = min(probes), max(probes)
    extent = dear.training_gflops - cheap.training_gflops
    per_gflop = max((dear.per_image - cheap.per_image) / extent, 0.0) if extent > 0 else 0.0
    per_image = max(cheap.per_image - per_gflop * cheap.training_gflops, 0.0)
    return Speed(max(cheap.startup, dear.startup), per_image, per_gflop)


@dataclass(frozen=True)
class Plan:
    """How each trial trains: epochs, between how many of them it validates, images an epoch, and trials at once."""

    epochs: int
    train_images: int
    val_images: int
    batch_size: int
    at_once: int
    speed: Speed | None = None  # None: where time does not count

    @property
    def validate_every(self) -> int:
        """At every eighth of a trial, or every epoch."""
        return max(1, self.epochs // 8)

    @property
    def images(self) -> int:
        """That a whole trial trains on."""
        return self.epochs * self.train_images

    @property
    def steps(self) -> int:
        """Of a whole trial."""
        return self.epochs * math.ceil(self.train_images / self.batch_size)

    def compute(self, candidate: Candidate, *, steps: int | None = None) -> float:
        """Training compute of so many steps, or of a whole trial; floating point operations."""
        share = 1.0 if steps is None else steps / self.steps
        return candidate.training_flop(self.images) * share

    def seconds(self, candidate: Candidate) -> float:
        """A whole trial, as the probes have it."""
        if self.speed is None:
            return 0.0
        images = self.images + _VAL_COST * self.val_images * math.ceil(self.epochs / self.validate_every)
        return self.speed.startup + images * (self.speed.per_image + self.speed.per_gflop * candidate.training_gflops)


@dataclass(frozen=True)
class Ledger:
    """The budget, and what of it is used. `amount`: usable; of a time, without what the results take at the end."""

    budget: Budget
    plan: Plan

    @property
    def amount(self) -> float:
        wrap_up = min(_WRAP_UP, self.budget.amount / 10) if self.budget.kind == "seconds" else 0.0
        return self.budget.amount - wrap_up

    def price(self, candidate: Candidate) -> float:
        """What a whole trial takes of the budget while all devices are busy."""
        match self.budget.kind:
            case "seconds":
                return self.plan.seconds(candidate)
            case "flop":
                return self.plan.compute(candidate)
            case "trials":
                return 1.0

    def spent(self, trials: Collection[Trial], *, seconds: float) -> float:
        """Of the budget, what running trials will still need included."""
        match self.budget.kind:
            case "seconds":
                return seconds
            case "trials":
                return len(trials)
            case "flop":
                return sum(trial.reserved if trial.status == "running" else trial.compute for trial in trials)

    def affords(self, candidate: Candidate, trials: Collection[Trial], *, seconds: float) -> bool:
        """Whether a whole trial of this model still fits."""
        price = self.price(candidate)
        if self.budget.kind == "seconds":
            price *= self._correction(trials)
        return self.spent(trials, seconds=seconds) + price <= self.amount * (1 + 1e-9)

    def expected_trials(self, strata: Strata, *, seconds: float) -> int:
        """About how many trials fit when all strata are filled alike, those left out of which no model fits."""
        most = sum(map(len, strata))
        if self.budget.kind == "trials":
            return min(int(self.budget.amount), most)
        means = [fmean(map(self.price, stratum)) for stratum in strata]
        fitting = [mean for mean in means if mean <= self._room(seconds)]
        at_once = self.plan.at_once if self.budget.kind == "seconds" else 1
        return max(1, min(int(self._room(seconds) * at_once / fmean(fitting)), most)) if fitting else 1

    def holds(self, trials: int, strata: Strata, *, seconds: float) -> bool:
        """Whether so many trials of the mean cost fit."""
        at_once = self.plan.at_once if self.budget.kind == "seconds" else 1
        mean = fmean(fmean(map(self.price, stratum)) for stratum in strata)
        return trials * mean <= self._room(seconds) * at_once and max(map(self.price, strata[-1])) <= self._room(
            seconds
        )

    def _room(self, seconds: float) -> float:
        return self.amount - (seconds if self.budget.kind == "seconds" else 0.0)

    def _correction(self, trials: Collection[Trial]) -> float:
        """What complete trials took, as a multiple of what the probes promised."""
        taken = [
            trial.seconds / self.plan.seconds(trial.candidate)
            for trial in trials
            if trial.status == "complete" and trial.seconds
        ]
        return median(taken) if taken else 1.0


def choose_epochs(ledger: Ledger, strata: Strata, *, trials: int, seconds: float) -> Ledger:
    """The ledger with as many epochs a trial, at most the plan's, as leave room for so many trials; at least one.

    ValueError where not even the cheapest model fits.
    """
    if ledger.budget.kind == "trials":
        return ledger
    fewer = range(ledger.plan.epochs, 0, -1)
    plans = [replace(ledger, plan=replace(ledger.plan, epochs=epochs)) for epochs in fewer]
    chosen = next((plan for plan in plans if plan.holds(trials, strata, seconds=seconds)), plans[-1])
    check_fits(chosen, strata, seconds=seconds)
    return chosen


def check_fits(ledger: Ledger, strata: Strata, *, seconds: float) -> None:
    """ValueError where the budget is smaller than one trial of the cheapest model."""
    cheapest = min((candidate for stratum in strata for candidate in stratum), key=ledger.price)
    if ledger.affords(cheapest, (), seconds=seconds):
        return
    kind, epochs = ledger.budget.kind, ledger.plan.epochs
    price = ledger.price(cheapest)
    needed = (price + seconds) / 0.9 if kind == "seconds" else price
    raise ValueError(
        f"budget {ledger.budget} is less than one trial of the cheapest model, {cheapest.label}, takes with {epochs} "
        f"epoch{'s' * (epochs != 1)} ({show_amount(kind, price)}); try --budget {_option(kind, needed)}"
    )


def _option(kind: str, amount: float) -> str:
    """An amount, rounded up, in the form that the option has."""
    return f"{math.ceil(amount / 30) * 30}s" if kind == "seconds" else f"{amount * 1.05:.1e}flop"
