"""Which of several untried models looks best: Optuna's samplers, held to models that exist."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, final

from pipeline.tuning.fit import fit_line
from pipeline.tuning.space import Candidate

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

SamplerName = Literal["gp", "tpe", "random"]
_FEWEST = 4  # results below which nothing is to be learned


@final
class Sampler:
    """Chooses the next model of a stratum.

    What is maximised is AP above the trend of all results over log GFLOPs: so each stratum learns from the others.
    Optuna proposes a point in the space of features; the nearest model that is there and untried is taken.
    """

    def __init__(self, name: SamplerName, candidates: Sequence[Candidate]) -> None:
        self._name = name
        self._ranges = _ranges(candidates)

    def choose(
        self,
        untried: Sequence[Candidate],
        *,
        results: Sequence[tuple[Candidate, float]],
        generator: random.Random,
    ) -> Candidate:
        """One of the untried ones; `results` are models with their AP."""
        if self._name == "random" or len(results) < _FEWEST or not self._ranges:
            return generator.choice(untried)
        proposal = self._propose(results, seed=generator.randrange(2**31))
        return min(untried, key=lambda candidate: (self._distance(proposal, candidate), candidate.key))

    def _propose(self, results: Sequence[tuple[Candidate, float]], *, seed: int) -> dict[str, float]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        distributions = self._distributions()
        study = optuna.create_study(direction="maximize", sampler=self._optuna_sampler(seed))
        trend = fit_line([(math.log2(candidate.gflops), AP) for candidate, AP in results])
        for candidate, AP in results:
            params = {name: value for name, value in candidate.features if name in self._ranges}
            above = AP - trend.at(math.log2(candidate.gflops))
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=above))
        return dict(study.ask(distributions).params)

    def _optuna_sampler(self, seed: int) -> BaseSampler:
        import warnings

        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self._name == "gp":
                return optuna.samplers.GPSampler(seed=seed, n_startup_trials=_FEWEST, deterministic_objective=False)
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_FEWEST, multivariate=True)

    def _distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution

        return {name: FloatDistribution(low, high) for name, (low, high) in self._ranges.items()}

    def _distance(self, proposal: dict[str, float], candidate: Candidate) -> float:
        """In units of each feature's range."""
        features = dict(candidate.features)
        return sum(
            ((proposal[name] - features[name]) / (high - low)) ** 2 for name, (low, high) in self._ranges.items()
        )


def _ranges(candidates: Iterable[Candidate]) -> dict[str, tuple[float, float]]:
    """Of the features that differ at all."""
    values: dict[str, list[float]] = {}
    for candidate in candidates:
        for name, value in candidate.features:
            values.setdefault(name, []).append(value)
    return {name: (min(row), max(row)) for name, row in values.items() if max(row) > min(row)}
