"""Which of several untried models looks best: a Gaussian process over them, or Optuna's samplers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Literal, final

import numpy as np
from numpy.typing import NDArray

from pipeline.tuning.fit import fit_line
from pipeline.tuning.kriging import upper_bounds
from pipeline.tuning.space import Candidate

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

SamplerName = Literal["kriging", "gp", "tpe", "random"]
_FEWEST = 4  # results below which nothing is to be learned
_SAME = 0.02  # share of the variance that a direction must have


@final
class Sampler:
    """Chooses the next model of a stratum.

    All is seen relative to the stratum: AP above the trend of all results at the stratum's mean cost, a model's cost
    within its stratum, and how it differs from what is typical of its cost. So every stratum learns from the others,
    and a proposal holds in each of them. Optuna's samplers (`gp`, `tpe`) propose a point, and the nearest untried model
    is taken; `kriging` looks at the untried models themselves.
    """

    def __init__(self, name: SamplerName, strata: Sequence[Sequence[Candidate]]) -> None:
        self._name = name
        self._centres = {c.key: fmean(map(_cost, stratum)) for stratum in strata for c in stratum}
        self._points = _directions([candidate for stratum in strata for candidate in stratum])
        for stratum in strata:
            costs = [_cost(candidate) for candidate in stratum]
            extent = max(max(costs) - min(costs), 1e-9)
            for candidate, cost in zip(stratum, costs, strict=True):
                self._points[candidate.key]["cost"] = (cost - min(costs)) / extent
        first = next(iter(self._points.values()))
        spread = [np.var([point[name] for point in self._points.values()]) for name in first if name != "cost"]
        self._deviation = math.sqrt(sum(spread)) or 1.0
        columns = {name: [point[name] for point in self._points.values()] for name in first}
        self._ranges = {name: (min(row), max(row)) for name, row in columns.items()}

    def choose(
        self,
        untried: Sequence[Candidate],
        *,
        results: Sequence[tuple[Candidate, float]],
        pending: Sequence[Candidate],
        generator: random.Random,
    ) -> Candidate:
        """One of the untried ones; `results` are models with their AP, `pending` those that are being trained."""
        if self._name == "random" or len(results) < _FEWEST:
            return generator.choice(untried)
        if self._name == "kriging":
            return self._best_bound(untried, results=results, pending=pending)
        proposal = self._propose(results, seed=generator.randrange(2**31))
        return min(untried, key=lambda candidate: (self._distance(proposal, candidate), candidate.key))

    def _best_bound(
        self,
        untried: Sequence[Candidate],
        *,
        results: Sequence[tuple[Candidate, float]],
        pending: Sequence[Candidate],
    ) -> Candidate:
        tried = [candidate for candidate, _ in results]
        bounds = upper_bounds(
            self._places(tried),
            np.array([_cost(candidate) for candidate in tried]),
            np.array([AP for _, AP in results]),
            pending=self._places(pending),
            at=self._places(untried),
            costs_at=np.array([_cost(candidate) for candidate in untried]),
        )
        return untried[int(bounds.argmax())]

    def _places(self, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        """(N, D), in standard deviations of all models; their cost is not part of it."""
        rows = [[v for name, v in self._points[c.key].items() if name != "cost"] for c in candidates]
        return np.array(rows).reshape(len(candidates), len(self._ranges) - 1) / self._deviation

    def _propose(self, results: Sequence[tuple[Candidate, float]], *, seed: int) -> dict[str, float]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        distributions = self._distributions()
        study = optuna.create_study(direction="maximize", sampler=_optuna_sampler(self._name, seed))
        trend = fit_line([(_cost(candidate), AP) for candidate, AP in results])
        for candidate, AP in results:
            above = AP - trend.at(self._centres[candidate.key])
            params = self._points[candidate.key]
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=above))
        return dict(study.ask(distributions).params)

    def _distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution

        return {name: FloatDistribution(low, high) for name, (low, high) in self._ranges.items()}

    def _distance(self, proposal: dict[str, float], candidate: Candidate) -> float:
        point = self._points[candidate.key]
        return sum((value - point[name]) ** 2 for name, value in proposal.items())


def _optuna_sampler(name: SamplerName, seed: int) -> BaseSampler:
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=_FEWEST, deterministic_objective=False)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_FEWEST, multivariate=True)


def _cost(candidate: Candidate) -> float:
    return math.log2(candidate.gflops)


def _directions(candidates: Sequence[Candidate]) -> dict[str, dict[str, float]]:
    """Each model's place, by its key, along the directions in which models of equal cost differ most.

    Those are the principal components of the features, each scaled to its range, without their trend over log GFLOPs.
    """
    features = np.array([[value for _, value in candidate.features] for candidate in candidates])
    extent = np.ptp(features, axis=0)
    features = features[:, extent > 0] / extent[extent > 0]
    costs = np.array([_cost(candidate) for candidate in candidates])
    known = np.stack([np.ones_like(costs), costs], axis=1)
    rest = features - known @ np.linalg.lstsq(known, features, rcond=None)[0]
    _, sizes, axes = np.linalg.svd(rest, full_matrices=False)
    places = rest @ axes[sizes**2 > _SAME * (sizes**2).sum()].T
    return {c.key: {f"d{i}": float(x) for i, x in enumerate(row)} for c, row in zip(candidates, places, strict=True)}
