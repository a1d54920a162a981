"""The search as a plain object: strata, rules, halving and samplers; and its journal."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.tune_settings import TuneSettings
from pipeline.tuning.report.fit import fit_line
from pipeline.tuning.search.halving import Halving
from pipeline.tuning.search.kriging import Kriging, upper_bounds
from pipeline.tuning.search.search import Search, split_strata
from pipeline.tuning.trial.journal import Journal
from tests.unit.tune_models import make_candidate, make_space

SPACE = make_space()
MODELS = {candidate.key: candidate for candidate in SPACE}


def make_search(**settings: Any) -> Search:
    return Search(SPACE, TuneSettings(**{"rules": ("free",), "strata": 3, **settings}), full_compute=lambda _: 100.0)


def run(search: Search, AP: dict[str, float], *, trials: int) -> None:
    for _ in range(trials):
        trial = search.ask()
        assert trial is not None
        key = trial.candidate.key
        search.report(key, epoch=1, compute=100.0, AP=AP[key])
        search.end(key, "complete")


def test_strata_are_disjoint_ranges_of_cost_with_every_model_once() -> None:
    strata = split_strata(SPACE, 4)
    assert sorted(candidate.key for stratum in strata for candidate in stratum) == sorted(MODELS)
    edges = [(min(c.gflops for c in stratum), max(c.gflops for c in stratum)) for stratum in strata]
    assert all(low[1] < high[0] for low, high in pairwise(edges))
    one = make_candidate(0, gflops=1.0, depth=1.0)
    assert split_strata([one], 4) == ((one,),)


def test_strata_are_filled_in_turn_and_no_model_is_chosen_twice() -> None:
    search = make_search(sampler="random")
    asked = []
    while trial := search.ask():
        asked.append(trial.candidate.key)
        sizes = Counter(other.stratum for other in search.trials.values())
        full = {i for i, stratum in enumerate(search.strata) if sizes[i] == len(stratum)}
        open_counts = [sizes[i] for i in range(len(search.strata)) if i not in full]
        assert not open_counts or max(open_counts) - min(open_counts) <= 1
    assert sorted(asked) == sorted(MODELS)


def test_a_stratum_begins_with_a_model_by_every_rule() -> None:
    rules = ("compound", "width", "depth")
    models = [make_candidate(i, gflops=1 + i / 100, rules=(rules[i % 3],), depth=float(i)) for i in range(30)]
    search = Search(models, TuneSettings(strata=1), full_compute=lambda _: 1.0)
    first = [search.ask() for _ in range(3)]
    assert {trial.candidate.rules[0] for trial in first if trial} == set(rules)


def test_only_allowed_models_are_chosen() -> None:
    search = make_search(sampler="random")
    cheap = {candidate.key for candidate in search.strata[0]}
    while trial := search.ask(lambda candidate: candidate.key in cheap):
        assert trial.stratum == 0
    assert set(search.trials) == cheap


def test_the_same_seed_makes_the_same_choices() -> None:
    searches = [make_search(seed=5), make_search(seed=5), make_search(seed=6)]
    for search in searches:
        run(search, dict.fromkeys(MODELS, 0.5), trials=12)
    first, second, other = (list(search.trials) for search in searches)
    assert first == second != other


def test_half_of_the_trials_at_a_rung_continue() -> None:
    halving = Halving([10.0], factor=2)
    assert halving.report("a", compute=5, AP=0.1)  # before the rung
    assert halving.report("a", compute=10, AP=0.3)  # the first trial at the rung
    assert not halving.report("b", compute=10, AP=0.2)
    assert halving.report("c", compute=12, AP=0.25)
    assert not halving.report("d", compute=12, AP=0.24)
    assert halving.report("d", compute=20, AP=0.1)  # a trial is judged once at a rung
    assert all(Halving([10.0], factor=1).report(name, compute=10, AP=AP) for name, AP in (("a", 0.9), ("b", 0.1)))


def test_halving_stops_trials_within_a_stratum_except_the_first_of_each_rule() -> None:
    search = make_search(sampler="random")
    verdicts = []
    for _ in range(12):
        trial = search.ask()
        assert trial is not None
        verdicts.append(search.report(trial.candidate.key, epoch=1, compute=60.0, AP=0.9 - len(verdicts) / 100))
    assert verdicts[:3] == [True] * 3
    assert not any(verdicts[3:])  # each is worse than all before it in its stratum
    assert {trial.status for trial in list(search.trials.values())[3:]} == {"stopped"}


def test_a_cut_trial_keeps_its_best_figure_and_a_complete_one_that_of_its_weights() -> None:
    search = make_search()
    for status, final, kept in (("cut", None, 0.4), ("complete", 0.3, 0.3)):
        trial = search.ask()
        assert trial is not None
        for epoch, AP in enumerate((0.2, 0.4, 0.3), start=1):
            search.report(trial.candidate.key, epoch=epoch, compute=epoch, AP=AP)
        search.end(trial.candidate.key, status, AP=final)  # type: ignore[arg-type]
        assert kept == trial.AP


def test_the_nearest_complete_trial_of_the_same_size_is_found() -> None:
    search = make_search()
    for candidate in SPACE[:9]:
        search.start(candidate)
        search.end(candidate.key, "complete")
        search.trials[candidate.key].AP = 0.1
    found = search.nearest(SPACE[12])
    assert found is not None
    assert found.candidate == SPACE[6]  # one step narrower, of the same size


def test_a_line_through_points_knows_its_uncertainty() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=2000)
    line = fit_line([(float(v), 2 + 3 * float(v) + float(generator.normal(scale=0.5))) for v in x])
    assert line.at(1.0) == pytest.approx(5.0, abs=0.05)
    assert line.spread == pytest.approx(0.5, rel=0.05)
    assert line.slope_error == pytest.approx(0.5 / 2000**0.5, rel=0.05)
    assert fit_line([(0.0, 1.0), (1.0, 3.0)]).slope_error is None
    assert fit_line([(1.0, 1.0), (1.0, 3.0)]).at(7.0) == 2.0


def test_an_upper_bound_is_high_near_good_results_and_far_from_all_results() -> None:
    coordinates, APs = np.array([[0.0], [0.1], [1.0], [1.1]]), np.array([0.5, 0.5, 0.1, 0.1])
    at = np.array([[0.05], [1.05], [4.0]])
    flat = {"costs": np.zeros(4), "costs_at": np.zeros(3)}
    near_good, near_bad, far = upper_bounds(coordinates, APs=APs, pending=np.empty((0, 1)), at=at, **flat)
    assert near_good > near_bad
    assert far > near_bad
    busy = upper_bounds(coordinates, APs=APs, pending=at[2:], at=at, **flat)
    assert busy[2] < far
    assert busy[0] == pytest.approx(near_good, abs=1e-3)


def test_models_that_differ_only_in_cost_are_judged_by_the_trend() -> None:
    line = [make_candidate(i, gflops=2.0**i, depth=1.0) for i in range(8)]
    chosen = Kriging(line).choose(line[4:], results=[(model, 0.1 * i) for i, model in enumerate(line[:4])], pending=[])
    assert chosen is line[-1]


def test_the_sampler_learns_from_the_results_of_other_strata() -> None:
    """The image size decides the AP in every stratum."""
    AP = {candidate.key: dict(candidate.features)["image_size"] / 200 for candidate in SPACE}
    search = make_search(halving=1)
    run(search, AP, trials=13)
    later = [dict(trial.candidate.features)["image_size"] for trial in list(search.trials.values())[7:]]
    assert np.mean(later) > 100  # 96 by chance


def test_a_journal_restores_a_search(tmp_path: Path) -> None:
    journal, search = Journal(tmp_path), make_search()
    journal.begin({"seed": 1})
    AP = dict(zip(MODELS, np.random.default_rng(0).random(len(MODELS)).tolist(), strict=True))
    for number in range(8):
        trial = search.ask()
        assert trial is not None
        journal.started(trial)
        search.report(trial.candidate.key, epoch=1, compute=60.0, AP=AP[trial.candidate.key])
        journal.reported(trial, AP=AP[trial.candidate.key])
        if number < 6:
            search.end(trial.candidate.key, "complete", seconds=2.0)
            journal.ended(trial)
    again = make_search()
    journal.replay(again, MODELS)
    assert again.trials == search.trials
    assert journal.header() == {"seed": 1}
    after = [search.ask(), again.ask()]
    assert after[0] == after[1]


def test_a_line_that_was_cut_short_is_ignored(tmp_path: Path) -> None:
    journal, search = Journal(tmp_path), make_search()
    journal.begin({})
    trial = search.ask()
    assert trial is not None
    journal.started(trial)
    path = tmp_path / "journal.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"event": "end", "tri')
    search.end(trial.candidate.key, "complete")
    journal.ended(trial)
    again = make_search()
    Journal(tmp_path).replay(again, MODELS)
    assert again.trials[trial.candidate.key].status == "complete"
    assert [json.loads(line)["event"] for line in whole.splitlines()] == ["search", "start"]


def test_the_used_seconds_are_kept_between_processes(tmp_path: Path) -> None:
    now = [0.0]
    journal = Journal(tmp_path, clock=lambda: now[0])
    assert journal.seconds() == 0
    for now[0] in (10.0, 10.5, 11.5):
        journal.note_seconds(now[0])
    assert Journal(tmp_path).seconds() == 11.5
