"""The search itself, as a plain object: asked for the next model, told what became of it. It knows no Ray, no clock."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from pipeline.params import TuneRule, TuneSettings
from pipeline.tuning.search.halving import RUNGS, Halving
from pipeline.tuning.search.sampler import make_sampler
from pipeline.tuning.search.space import Candidate

# complete: trained to its end; stopped: by halving; cut: by the end of the budget; failed: see its error
Status = Literal["running", "complete", "stopped", "cut", "failed"]


@dataclass
class Trial:
    """One model and what became of it. `compute`: floating point operations of its training so far; `AP`: the best."""

    candidate: Candidate
    stratum: int
    status: Status = "running"
    AP: float | None = None
    epochs: int = 0
    compute: float = 0.0
    reserved: float = 0.0  # compute that it may use
    seconds: float = 0.0
    error: str = ""
    donor: str = ""  # the trial whose tensors it began with
    curve: list[tuple[int, float]] = field(default_factory=list)  # epoch, AP


@final
class Search:
    """Fills strata of cost in turn; in each, one model by every rule first, then what the sampler chooses.

    Those first ones are trained to their end whatever their AP, so that each rule has a curve. `full_compute`: the
    training compute of a whole trial.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        settings: TuneSettings,
        *,
        full_compute: Callable[[Candidate], float],
    ) -> None:
        self._settings, self._full_compute = settings, full_compute
        self.strata = split_strata(candidates, settings.strata)
        self._stratum_of = {candidate.key: i for i, stratum in enumerate(self.strata) for candidate in stratum}
        self._sampler = make_sampler(settings.sampler, self.strata)
        self._halvings = [
            Halving(
                [share * min(full_compute(candidate) for candidate in stratum) for share in RUNGS],
                factor=settings.halving,
            )
            for stratum in self.strata
        ]
        self._first: set[str] = set()
        self.trials: dict[str, Trial] = {}

    def ask(self, allowed: Callable[[Candidate], bool] = lambda _: True) -> Trial | None:
        """The next trial, now running; None where no untried model is allowed."""
        for stratum in self._by_need():
            untried = [c for c in self.strata[stratum] if c.key not in self.trials and allowed(c)]
            if untried:
                return self.start(self._choose(stratum, untried))
        return None

    def start(self, candidate: Candidate) -> Trial:
        """Marks a model as running."""
        stratum = self._stratum_of[candidate.key]
        if self._missing_rules(stratum) & set(candidate.rules):
            self._first.add(candidate.key)
        trial = self.trials[candidate.key] = Trial(candidate, stratum, reserved=self._full_compute(candidate))
        return trial

    def report(self, key: str, *, epoch: int, compute: float, AP: float) -> bool:
        """Whether the trial goes on."""
        trial = self.trials[key]
        if epoch <= trial.epochs:
            return True  # an epoch that was done again after an interruption
        trial.epochs, trial.compute = epoch, compute
        trial.AP = max(AP, trial.AP or 0.0)
        trial.curve.append((epoch, AP))
        goes_on = self._halvings[trial.stratum].report(key, compute=compute, AP=AP) or key in self._first
        trial.status = "running" if goes_on else "stopped"
        return goes_on

    def end(self, key: str, status: Status, *, seconds: float = 0.0, error: str = "") -> None:
        """Says what became of a trial."""
        trial = self.trials[key]
        trial.status, trial.seconds, trial.error = status, seconds, error
        if status == "complete" and trial.curve:
            trial.AP = trial.curve[-1][1]

    def complete(self) -> Iterator[Trial]:
        """The trials that were trained to their end, which compare."""
        return (trial for trial in self.trials.values() if trial.status == "complete" and trial.AP is not None)

    def nearest(self, candidate: Candidate) -> Trial | None:
        """The complete trial whose model is most like this one, of the same image size."""
        others = [trial for trial in self.complete() if trial.candidate.image_size == candidate.image_size]
        mine = dict(candidate.features)

        def distance(trial: Trial) -> float:
            return sum((value - mine[name]) ** 2 for name, value in trial.candidate.features)

        return min(others, key=distance, default=None)

    def _by_need(self) -> list[int]:
        """The strata, the one with the fewest trials first, cheap ones before dear ones."""
        counts = Counter(trial.stratum for trial in self.trials.values())
        return sorted(range(len(self.strata)), key=lambda stratum: (counts[stratum], stratum))

    def _choose(self, stratum: int, untried: Sequence[Candidate]) -> Candidate:
        generator = random.Random(f"{self._settings.seed} {len(self.trials)}")  # also the same after an interruption
        missing = self._missing_rules(stratum)
        first = [candidate for candidate in untried if missing & set(candidate.rules)]
        if first:
            return generator.choice(first)
        results = [(trial.candidate, trial.AP) for trial in self.complete() if trial.AP is not None]
        pending = [trial.candidate for trial in self.trials.values() if trial.status == "running"]
        return self._sampler.choose(untried, results=results, pending=pending, generator=generator)

    def _missing_rules(self, stratum: int) -> set[TuneRule]:
        tried = [trial.candidate.rules for trial in self.trials.values() if trial.stratum == stratum]
        return set(self._settings.rules) - {rule for rules in tried for rule in rules}


def split_strata(candidates: Sequence[Candidate], number: int) -> tuple[tuple[Candidate, ...], ...]:
    """The candidates by cost, in up to so many ranges of GFLOPs of equal ratio; none is empty."""
    costs = [math.log2(candidate.gflops) for candidate in candidates]
    low, extent = min(costs), max(max(costs) - min(costs), 1e-9)
    places = [min(int((cost - low) / extent * number), number - 1) for cost in costs]
    strata = [tuple(c for c, place in zip(candidates, places, strict=True) if place == i) for i in range(number)]
    return tuple(stratum for stratum in strata if stratum)
