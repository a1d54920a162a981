"""What a budget allows: how long each trial trains, what it takes of the budget, and which trials still fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import NamedTuple

from pipeline.tuning.budget.amount import Budget, show_amount
from pipeline.tuning.search.search import Trial
from pipeline.tuning.search.space import Candidate
from yolov7.errors import SettingError

Strata = Sequence[Sequence[Candidate]]

_VAL_COST = 0.5  # cost of validating an image relative to training on one; corrected by the durations of trials
_RESULTS_SECONDS = 20.0  # time that is reserved for writing the results, at most a tenth of the budget


class SpeedSample(NamedTuple):
    """Measurement of a few training steps of one model.

    Attributes:
        training_gflops: GFLOPs of one forward pass of the model as it is trained.
        startup: Seconds before the first step.
        per_image: Seconds of training per image.
    """

    training_gflops: float
    startup: float
    per_image: float


@dataclass(frozen=True)
class Speed:
    """Linear model of a trial's duration.

    Attributes:
        startup: Seconds before the first step.
        per_image: Seconds per image that do not depend on the model.
        per_gflop: Seconds per image and GFLOP of a forward pass.
    """

    startup: float
    per_image: float
    per_gflop: float


def fit_speed(samples: Sequence[SpeedSample]) -> Speed:
    """Fit a speed to a cheap and an expensive model that were measured side by side, as trials run."""
    cheap, expensive = min(samples), max(samples)
    extent = expensive.training_gflops - cheap.training_gflops
    per_gflop = max((expensive.per_image - cheap.per_image) / extent, 0.0) if extent > 0 else 0.0
    reference = cheap if extent > 0 else max(samples, key=lambda sample: sample.per_image)
    per_image = max(reference.per_image - per_gflop * reference.training_gflops, 0.0)
    return Speed(max(cheap.startup, expensive.startup), per_image, per_gflop)


@dataclass(frozen=True)
class TrialPlan:
    """How every trial of a search trains.

    Attributes:
        epochs: Epochs of a whole trial.
        train_images: Images of an epoch.
        val_images: Images of a validation.
        batch_size: Images of a step.
        concurrent_trials: Number of trials that run at the same time.
        speed: How fast models train; None if the budget is not a time.
    """

    epochs: int
    train_images: int
    val_images: int
    batch_size: int
    concurrent_trials: int
    speed: Speed | None = None

    @property
    def validate_every(self) -> int:
        """Epochs between two validations: an eighth of a trial, at least one."""
        return max(1, self.epochs // 8)

    @property
    def images(self) -> int:
        """Images that a whole trial trains on."""
        return self.epochs * self.train_images

    @property
    def steps(self) -> int:
        """Steps of a whole trial."""
        return self.epochs * math.ceil(self.train_images / self.batch_size)

    def compute(self, candidate: Candidate, *, steps: int | None = None) -> float:
        """Return the training compute of a number of steps, or of a whole trial, in floating point operations."""
        share = 1.0 if steps is None else steps / self.steps
        return candidate.training_flop(self.images) * share

    def seconds(self, candidate: Candidate) -> float:
        """Return the predicted duration of a whole trial in seconds; 0 if the speed is unknown."""
        if self.speed is None:
            return 0.0
        images = self.images + _VAL_COST * self.val_images * math.ceil(self.epochs / self.validate_every)
        return self.speed.startup + images * (self.speed.per_image + self.speed.per_gflop * candidate.training_gflops)


@dataclass(frozen=True)
class BudgetAccount:
    """A budget, and what trials take of it.

    Attributes:
        budget: The whole budget.
        plan: How every trial trains.
    """

    budget: Budget
    plan: TrialPlan

    @property
    def amount(self) -> float:
        """The part of the budget that trials may use: all of it, except for the time that the results take."""
        results = min(_RESULTS_SECONDS, self.budget.amount / 10) if self.budget.kind == "seconds" else 0.0
        return self.budget.amount - results

    def price(self, candidate: Candidate) -> float:
        """Return what a whole trial takes of the budget while all devices are busy."""
        match self.budget.kind:
            case "seconds":
                return self.plan.seconds(candidate)
            case "flop":
                return self.plan.compute(candidate)
            case "trials":
                return 1.0

    def spent(self, trials: Collection[Trial], *, seconds: float) -> float:
        """Return what is spent of the budget, including what running trials have reserved.

        Args:
            trials: All trials that were started.
            seconds: Seconds that the search has used.
        """
        match self.budget.kind:
            case "seconds":
                return seconds
            case "trials":
                return len(trials)
            case "flop":
                return sum(trial.reserved if trial.status == "running" else trial.compute for trial in trials)

    def affords(self, candidate: Candidate, trials: Collection[Trial], *, seconds: float) -> bool:
        """Return whether a whole trial of a model still fits into the budget.

        Args:
            candidate: The model.
            trials: All trials that were started.
            seconds: Seconds that the search has used.
        """
        price = self.price(candidate)
        if self.budget.kind == "seconds":
            price *= self._correction(trials)
        return self.spent(trials, seconds=seconds) + price <= self.amount * (1 + 1e-9)

    def expected_trials(self, strata: Strata, *, seconds: float) -> int:
        """Estimate how many trials fit if all strata are filled equally; strata of which no model fits are ignored.

        Args:
            strata: The models by range of cost.
            seconds: Seconds that the search has used.
        """
        most = sum(map(len, strata))
        if self.budget.kind == "trials":
            return min(int(self.budget.amount), most)
        means = [fmean(map(self.price, stratum)) for stratum in strata]
        fitting = [mean for mean in means if mean <= self._left(seconds)]
        if not fitting:
            return 1
        return max(1, min(int(self._left(seconds) * self._parallel_trials / fmean(fitting)), most))

    def holds(self, trials: int, strata: Strata, *, seconds: float) -> bool:
        """Return whether a number of trials of average cost fits, and one trial of the most expensive model.

        Args:
            trials: The number of trials.
            strata: The models by range of cost, the cheapest range first.
            seconds: Seconds that the search has used.
        """
        mean, left = fmean(fmean(map(self.price, stratum)) for stratum in strata), self._left(seconds)
        return trials * mean <= left * self._parallel_trials and max(map(self.price, strata[-1])) <= left

    @property
    def _parallel_trials(self) -> int:
        """Trials that share each unit of the budget: those that run at the same time share the time."""
        return self.plan.concurrent_trials if self.budget.kind == "seconds" else 1

    def _left(self, seconds: float) -> float:
        return self.amount - (seconds if self.budget.kind == "seconds" else 0.0)

    def _correction(self, trials: Collection[Trial]) -> float:
        """Return the median ratio of the durations of whole trials to their predictions."""
        ratios = [
            trial.seconds / self.plan.seconds(trial.candidate)
            for trial in trials
            if trial.status == "complete" and trial.epochs >= self.plan.epochs and trial.seconds
        ]
        return median(ratios) if ratios else 1.0


def choose_epochs(account: BudgetAccount, strata: Strata, *, trials: int, seconds: float) -> BudgetAccount:
    """Reduce the epochs of each trial until a number of trials fits into the budget.

    Args:
        account: The budget with the largest number of epochs. A budget that is a number of trials is not changed.
        strata: The models by range of cost.
        trials: The number of trials that should fit.
        seconds: Seconds that the search has used.

    Returns:
        The budget with the chosen number of epochs, at least one.

    Raises:
        SettingError: If not even one trial of the cheapest model fits.
    """
    if account.budget.kind == "trials":
        return account
    fewer = range(account.plan.epochs, 0, -1)
    options = [replace(account, plan=replace(account.plan, epochs=epochs)) for epochs in fewer]
    chosen = next((option for option in options if option.holds(trials, strata, seconds=seconds)), options[-1])
    check_fits(chosen, strata, seconds=seconds)
    return chosen


def check_fits(account: BudgetAccount, strata: Strata, *, seconds: float) -> None:
    """Check that the budget holds at least one trial of the cheapest model.

    Args:
        account: The budget.
        strata: The models by range of cost.
        seconds: Seconds that the search has used.

    Raises:
        SettingError: If it does not; the message names a budget that does.
    """
    cheapest = min((candidate for stratum in strata for candidate in stratum), key=account.price)
    if account.affords(cheapest, (), seconds=seconds):
        return
    kind, epochs = account.budget.kind, account.plan.epochs
    price = account.price(cheapest)
    enough_seconds = math.ceil((price + seconds) / 0.9 / 30) * 30
    enough = f"{enough_seconds}s" if kind == "seconds" else f"{price * 1.05:.1e}flop"
    raise SettingError(
        f"budget {account.budget} is less than one trial of the cheapest model takes ({cheapest.label}, {epochs} "
        f"epoch{'s' * (epochs != 1)}: {show_amount(kind, price)}); try --budget {enough}"
    )
