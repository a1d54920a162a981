"""The search as a plain object that returns the next candidate and receives results. It uses neither Ray nor time."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from pipeline.tune_settings import TuneSettings
from pipeline.tuning.search.halving import RUNGS, Halving
from pipeline.tuning.search.kriging import FEWEST_RESULTS, Kriging
from pipeline.tuning.search.space import Candidate

# "complete": trained to its end; "stopped": by halving; "cut": by the end of the budget; "failed": see the error
Status = Literal["running", "complete", "stopped", "cut", "failed"]


@dataclass
class Trial:
    """The training of one candidate during a search.

    Attributes:
        candidate: The model, or the settings.
        stratum: Index of its range of GFLOPs.
        status: Whether the trial is running, or how it ended.
        AP: The AP of the weights that a complete trial left; otherwise the best AP so far, None before the first.
        epochs: The last epoch whose AP was reported.
        compute: Training compute used so far, floating point operations.
        reserved: Training compute that the trial may use, floating point operations.
        seconds: Duration of the trial.
        error: Why the trial failed, in one line.
        warm_start: Key of the trial whose weights this trial started from, or an empty string.
        curve: Each reported epoch with its AP.
        trained: The varied settings as they were read back from the trial; empty if models are searched.
    """

    candidate: Candidate
    stratum: int
    status: Status = "running"
    AP: float | None = None
    epochs: int = 0
    compute: float = 0.0
    reserved: float = 0.0
    seconds: float = 0.0
    error: str = ""
    warm_start: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    trained: dict[str, float] = field(default_factory=dict)


@final
class Search:
    """Choose candidates so that all ranges of cost are searched equally.

    The range with the fewest trials is next. In each range, one candidate of every rule is trained first, and always to
    its end, so that there is a curve for each rule. Then the sampler of the settings chooses. The candidates of a
    search for settings have the same cost, and only the stated settings have a rule, so that they come first.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        settings: TuneSettings,
        *,
        full_compute: Callable[[Candidate], float],
    ) -> None:
        """Split the candidates into ranges of cost.

        Args:
            candidates: All candidates that may be trained.
            settings: The settings `tune`.
            full_compute: Returns the training compute of a whole trial of a model, floating point operations.
        """
        self._settings, self._full_compute = settings, full_compute
        self.strata = split_strata(candidates, settings.strata)
        self.trials: dict[str, Trial] = {}
        self._rules = {rule for candidate in candidates for rule in candidate.rules}
        self._stratum_of = {candidate.key: i for i, stratum in enumerate(self.strata) for candidate in stratum}
        self._kriging = Kriging(candidates) if settings.sampler == "kriging" else None
        self._first: set[str] = set()  # trials that halving does not stop
        self._halvings = [
            Halving(
                [share * min(full_compute(candidate) for candidate in stratum) for share in RUNGS],
                factor=settings.halving,
            )
            for stratum in self.strata
        ]

    def ask(self, allowed: Callable[[Candidate], bool] = lambda _: True) -> Trial | None:
        """Start the next trial.

        Args:
            allowed: Returns whether the budget allows a model.

        Returns:
            The trial, whose status is "running", or None if no untried model is allowed.
        """
        counts = Counter(trial.stratum for trial in self.trials.values())
        for stratum in sorted(range(len(self.strata)), key=lambda i: (counts[i], i)):
            untried = [c for c in self.strata[stratum] if c.key not in self.trials and allowed(c)]
            if untried:
                return self.start(self._choose(stratum, untried))
        return None

    def start(self, candidate: Candidate) -> Trial:
        """Mark a model as running and return its trial."""
        stratum = self._stratum_of[candidate.key]
        if self._missing_rules(stratum) & set(candidate.rules):
            self._first.add(candidate.key)
        trial = self.trials[candidate.key] = Trial(candidate, stratum, reserved=self._full_compute(candidate))
        return trial

    def report(self, key: str, *, epoch: int, compute: float, AP: float) -> bool:
        """Record the AP of an epoch and return whether the trial continues.

        An epoch that was reported before is ignored; it was repeated after an interruption.

        Args:
            key: The trial.
            epoch: The epoch, counted from 1.
            compute: Training compute used so far, floating point operations.
            AP: The AP on val after the epoch.
        """
        trial = self.trials[key]
        if epoch <= trial.epochs:
            return True
        trial.epochs, trial.compute = epoch, compute
        trial.AP = max(AP, trial.AP or 0.0)
        trial.curve.append((epoch, AP))
        continues = self._halvings[trial.stratum].report(key, compute=compute, AP=AP) or key in self._first
        trial.status = "running" if continues else "stopped"
        return continues

    def end(self, key: str, status: Status, *, AP: float | None = None, seconds: float = 0.0, error: str = "") -> None:
        """Record how a trial ended.

        Args:
            key: The trial.
            status: How it ended.
            AP: The AP of its weights if it is known; the best AP so far is kept otherwise.
            seconds: Duration of the trial.
            error: Why it failed, in one line.
        """
        trial = self.trials[key]
        trial.status, trial.seconds, trial.error = status, seconds, error
        if AP is not None:
            trial.AP = AP

    def nearest(self, candidate: Candidate) -> Trial | None:
        """Return the complete trial of the same image size whose model is most similar, or None."""
        others = [
            trial for trial in _complete(self.trials.values()) if trial.candidate.image_size == candidate.image_size
        ]
        features = dict(candidate.features)

        def distance(trial: Trial) -> float:
            return sum((value - features[name]) ** 2 for name, value in trial.candidate.features)

        return min(others, key=distance, default=None)

    def _choose(self, stratum: int, untried: Sequence[Candidate]) -> Candidate:
        # The seed depends on the number of trials, so that a resumed search makes the same choices.
        generator = random.Random(f"{self._settings.seed} {len(self.trials)}")
        missing = self._missing_rules(stratum)
        first = [candidate for candidate in untried if missing & set(candidate.rules)]
        if first:
            return generator.choice(first)
        results = known_results(self.trials.values())
        if self._kriging is None or len(results) < FEWEST_RESULTS:
            return generator.choice(untried)
        pending = [trial.candidate for trial in self.trials.values() if trial.status == "running"]
        return self._kriging.choose(untried, results=results, pending=pending)

    def _missing_rules(self, stratum: int) -> set[str]:
        tried = [trial.candidate.rules for trial in self.trials.values() if trial.stratum == stratum]
        return self._rules - {rule for rules in tried for rule in rules}


def split_strata(candidates: Sequence[Candidate], number: int) -> tuple[tuple[Candidate, ...], ...]:
    """Split models into ranges of GFLOPs whose upper and lower ends have the same ratio.

    Args:
        candidates: The models, at least one.
        number: The number of ranges.

    Returns:
        The models of each range, the cheapest range first. Empty ranges are left out.
    """
    costs = [math.log2(candidate.gflops) for candidate in candidates]
    low, extent = min(costs), max(max(costs) - min(costs), 1e-9)
    strata: list[list[Candidate]] = [[] for _ in range(number)]
    for candidate, cost in zip(candidates, costs, strict=True):
        strata[min(int((cost - low) / extent * number), number - 1)].append(candidate)
    return tuple(tuple(stratum) for stratum in strata if stratum)


def known_results(trials: Iterable[Trial]) -> list[tuple[Candidate, float]]:
    """Return the candidates with a known final AP.

    Stopped trials of a search for settings are included, because most of the bad settings are among them. Such a trial
    counts with the final AP of the complete trial whose AP after the same epoch is closest to its own.

    Args:
        trials: All trials of a search.
    """
    trials = list(trials)
    complete = _complete(trials)
    results = [(trial.candidate, trial.AP or 0.0) for trial in complete]
    for trial in trials:
        if trial.status == "stopped" and trial.candidate.train:
            epoch, AP = trial.curve[-1]
            reached = [(abs(dict(other.curve)[epoch] - AP), other.AP or 0.0) for other in complete]
            results.append((trial.candidate, min(reached, default=(0.0, AP))[1]))
    return results


def _complete(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.status == "complete" and trial.AP is not None]
