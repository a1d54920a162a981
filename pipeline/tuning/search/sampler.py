"""Which of several untried models looks best: a Gaussian process over them, Optuna's samplers, or chance."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, final

import numpy as np

from pipeline.tuning.search.directions import Array, find_places, log_cost
from pipeline.tuning.search.kriging import upper_bounds
from pipeline.tuning.search.space import Candidate

SamplerName = Literal["kriging", "gp", "tpe", "random"]
FEWEST = 4  # results below which nothing is to be learned

Results = Sequence[tuple[Candidate, float]]  # models with their AP


class Sampler(ABC):
    """Chooses the next model of a stratum."""

    @abstractmethod
    def choose(
        self,
        untried: Sequence[Candidate],
        *,
        results: Results,
        pending: Sequence[Candidate],
        generator: random.Random,
    ) -> Candidate:
        """One of the untried models; `pending` are those that are being trained."""


@final
class Chance(Sampler):
    """Any model."""

    def choose(
        self,
        untried: Sequence[Candidate],
        *,
        results: Results,
        pending: Sequence[Candidate],
        generator: random.Random,
    ) -> Candidate:
        return generator.choice(untried)


@final
class Kriging(Sampler):
    """The model that may reach the highest AP, by a Gaussian process over all models that there are."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        places = find_places(candidates)
        self._places = {candidate.key: place for candidate, place in zip(candidates, places, strict=True)}
        self._num_directions = places.shape[1]

    def choose(
        self,
        untried: Sequence[Candidate],
        *,
        results: Results,
        pending: Sequence[Candidate],
        generator: random.Random,
    ) -> Candidate:
        if len(results) < FEWEST:
            return generator.choice(untried)
        tried = [candidate for candidate, _ in results]
        bounds = upper_bounds(
            self._at(tried),
            np.array([log_cost(candidate) for candidate in tried]),
            np.array([AP for _, AP in results]),
            pending=self._at(pending),
            at=self._at(untried),
            costs_at=np.array([log_cost(candidate) for candidate in untried]),
        )
        return untried[int(bounds.argmax())]

    def _at(self, candidates: Sequence[Candidate]) -> Array:
        return np.array([self._places[c.key] for c in candidates]).reshape(len(candidates), self._num_directions)


def make_sampler(name: SamplerName, strata: Sequence[Sequence[Candidate]]) -> Sampler:
    """The sampler of that name for these models."""
    if name == "random":
        return Chance()
    if name == "kriging":
        return Kriging([candidate for stratum in strata for candidate in stratum])
    from pipeline.tuning.search.optuna_sampler import OptunaSampler

    return OptunaSampler(name, strata)
