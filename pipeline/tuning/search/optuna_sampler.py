"""Optuna's samplers, held to models that exist."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from statistics import fmean
from typing import Literal, final

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler

from pipeline.tuning.report.fit import fit_line
from pipeline.tuning.search.directions import find_places, log_cost
from pipeline.tuning.search.sampler import FEWEST, Results, Sampler
from pipeline.tuning.search.space import Candidate


@final
class OptunaSampler(Sampler):
    """Proposes a point in a box; the nearest model that is untried is taken.

    The box is the same for every stratum, so that they learn from each other: the directions in which models of equal
    cost differ, and a model's cost within its stratum. The value is AP above the trend at the stratum's mean cost.
    """

    def __init__(self, name: Literal["gp", "tpe"], strata: Sequence[Sequence[Candidate]]) -> None:
        self._name: Literal["gp", "tpe"] = name
        self._centres = {c.key: fmean(map(log_cost, stratum)) for stratum in strata for c in stratum}
        self._points = _points(strata)
        columns = {name: [point[name] for point in self._points.values()] for name in next(iter(self._points.values()))}
        self._box = {
            name: FloatDistribution(min(row), max(row)) for name, row in columns.items() if min(row) < max(row)
        }

    def choose(
        self,
        untried: Sequence[Candidate],
        *,
        results: Results,
        pending: Sequence[Candidate],
        generator: random.Random,
    ) -> Candidate:
        if len(results) < FEWEST or not self._box:
            return generator.choice(untried)
        proposal = self._propose(results, seed=generator.randrange(2**31))
        return min(untried, key=lambda candidate: (self._distance(proposal, candidate), candidate.key))

    def _propose(self, results: Results, *, seed: int) -> dict[str, float]:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(direction="maximize", sampler=_make(self._name, seed))
        trend = fit_line([(log_cost(candidate), AP) for candidate, AP in results])
        for candidate, AP in results:
            above = AP - trend.at(self._centres[candidate.key])
            point = {name: self._points[candidate.key][name] for name in self._box}
            study.add_trial(optuna.create_trial(params=point, distributions=dict(self._box), value=above))
        return dict(study.ask(dict(self._box)).params)

    def _distance(self, proposal: dict[str, float], candidate: Candidate) -> float:
        """In units of the box."""
        point = self._points[candidate.key]
        away = (
            (value - point[name]) / (self._box[name].high - self._box[name].low) for name, value in proposal.items()
        )
        return sum(share**2 for share in away)


def _points(strata: Sequence[Sequence[Candidate]]) -> dict[str, dict[str, float]]:
    candidates = [candidate for stratum in strata for candidate in stratum]
    points = {
        candidate.key: {f"direction_{i}": float(x) for i, x in enumerate(place)}
        for candidate, place in zip(candidates, find_places(candidates), strict=True)
    }
    for stratum in strata:
        costs = [log_cost(candidate) for candidate in stratum]
        extent = max(max(costs) - min(costs), 1e-9)
        for candidate, cost in zip(stratum, costs, strict=True):
            points[candidate.key]["cost"] = (cost - min(costs)) / extent
    return points


def _make(name: Literal["gp", "tpe"], seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=FEWEST, deterministic_objective=False)
        return TPESampler(seed=seed, n_startup_trials=FEWEST, multivariate=True)
