"""How well the search does with a quarter of the evaluations, on an invented and on a measured table."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from pipeline.tune_settings import TuneSettings
from pipeline.tuning.search.search import Search, split_strata
from tests.surrogate.table import Table, load_table
from tests.unit.tune_models import make_space

STRATA, SEEDS = 3, range(20)


@pytest.fixture(scope="module", params=["invented", "measured"])
def table(request: pytest.FixtureRequest) -> Table:
    return invent_table() if request.param == "invented" else load_table()


def invent_table() -> Table:
    """AP grows with cost and image size, and falls with the distance to a best depth; each model has some noise."""
    generator, candidates = random.Random(1), make_space()
    AP = {}
    for candidate in candidates:
        features = dict(candidate.features)
        shape = 0.05 * features["image_size"] / 128 - 0.02 * abs(features["depth"] - 2)
        level = 0.06 * math.log2(candidate.gflops / 0.001) + shape + generator.gauss(0, 0.006)
        AP[candidate.key] = tuple(level + sign * 0.006 for sign in (-1, 1))
    return Table(candidates, AP)


def regrets(table: Table, sampler: str, seed: int) -> list[float]:
    """For each stratum, how much lower the AP of the best model found is than that of the best model of the table."""
    settings = TuneSettings.model_validate(
        {"sampler": sampler, "seed": seed, "rules": ["free"], "strata": STRATA, "halving": 1}
    )
    search, AP = Search(table.candidates, settings, full_compute=lambda _: 1.0), table.means
    for _ in range(len(table.candidates) // 4):
        trial = search.ask()
        assert trial is not None
        search.report(trial.candidate.key, epoch=1, compute=1.0, AP=AP[trial.candidate.key])
        search.end(trial.candidate.key, "complete")
    found = [[AP[key] for key, trial in search.trials.items() if trial.stratum == i] for i in range(len(search.strata))]
    best = [max(AP[candidate.key] for candidate in stratum) for stratum in search.strata]
    return [top - max(values) for top, values in zip(best, found, strict=True)]


def test_the_table_tells_models_apart(table: Table) -> None:
    """Otherwise every search would pass."""
    AP = table.means
    for stratum in split_strata(table.candidates, STRATA):
        values = [AP[candidate.key] for candidate in stratum]
        assert max(values) - min(values) > 4 * table.noise


def test_the_search_finds_the_best_of_each_stratum_with_a_quarter_of_the_evaluations(table: Table) -> None:
    found = [regret for seed in SEEDS for regret in regrets(table, "kriging", seed)]
    within_noise = fmean(regret <= 2 * table.noise for regret in found)
    assert fmean(found) < table.noise
    assert within_noise > 0.9


def test_the_search_beats_chance_seed_by_seed(table: Table) -> None:
    pairs = [(fmean(regrets(table, "kriging", seed)), fmean(regrets(table, "random", seed))) for seed in SEEDS]
    wins = sum(ours < chance for ours, chance in pairs)
    losses = sum(ours > chance for ours, chance in pairs)
    assert losses <= 2  # at 15 wins and 3 losses p would be 0.004
    assert wins >= 15
