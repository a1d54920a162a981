"""The models of a search: made by the rules, each once, with their cost."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.tune_settings import TuneSettings
from pipeline.tuning.budget.costs import JsonCache, counted_costs, within_caps, within_latency
from pipeline.tuning.search.space import Candidate, Choice, build_model, draw_candidates, list_parts, model_key
from yolov7.errors import SettingError, SpecError
from yolov7.nn.cost import Cost, spec_cost
from yolov7.spec.block_schema import ElanRow
from yolov7.spec.graph import ModelSpec
from yolov7.spec.scaling import scale_spec
from yolov7.spec.spec_files import load_spec, resolve_spec

NANO = load_spec("nano")


def test_the_parts_of_a_model_are_its_stages_its_neck_and_its_head() -> None:
    assert list_parts(load_spec("yolov5n"))["neck"] == ("f4", "n3")
    assert list_parts(load_spec("yolov7-w6")) == {
        **{name: (name,) for name in ("p2", "p3", "p4", "p5", "p6")},
        "neck": ("n5", "n4", "n3"),
        "head": ("m4", "m5", "m6"),
    }


def test_every_part_gets_its_chosen_depth() -> None:
    spec = build_model(NANO, Choice("depth", (0.5, 1.0, 1.5, 2.0, 2.5, 3.0), 1.0, 192, False))
    depths = {name: row.depth for name, row in spec.rows.items() if isinstance(row, ElanRow)}
    assert depths == {"p2": 1, "p3": 2, "p4": 3, "p5": 4, "n4": 5, "n3": 5, "m4": 6, "m5": 6}


@pytest.mark.parametrize(("rule", "own"), [("compound", "compound"), ("depth", "depth")])
def test_one_factor_for_all_parts_is_plain_scaling(rule: Any, own: Any) -> None:
    assert build_model(NANO, Choice(rule, (1.5,) * 6, 1.0, 192, False)) == scale_spec(NANO, rule=own, depth=1.5)


def test_free_scaling_changes_width_and_depth_independently() -> None:
    spec = build_model(NANO, Choice("free", (2.0,) * 6, 0.5, 192, False))
    assert spec == scale_spec(scale_spec(NANO, rule="depth", depth=2.0), rule="width", width=0.5)


def test_an_auxiliary_head_is_a_choice_and_changes_the_model() -> None:
    plain, with_head = (build_model(NANO, Choice("width", (1.0,) * 6, 1.0, 192, own)) for own in (False, True))
    assert plain.head.auxiliary is None
    assert with_head.head.auxiliary is not None
    assert len({model_key(plain, 192), model_key(with_head, 192), model_key(plain, 160)}) == 3


def test_the_base_is_drawn_once_and_belongs_to_every_rule() -> None:
    candidates = _draw(candidates=8)
    assert len({candidate.key for candidate in candidates}) == len(candidates)
    base = next(candidate for candidate in candidates if candidate.key == model_key(NANO, 192))
    assert set(base.rules) == {"compound", "width", "depth"}
    for rule in ("compound", "width", "depth"):
        assert sum(rule in candidate.rules for candidate in candidates) == 8


def test_the_same_seed_draws_the_same_models() -> None:
    assert _draw(candidates=8) == _draw(candidates=8)


def test_a_base_without_depth_is_scaled_by_width_only() -> None:
    rows = {"a": {"block": "conv", "out": 16, "s": 2}, "head": {"block": "detect", "anchors": [[1, 2]]}}
    flat = resolve_spec({"rows": rows, "image_size": 64}, name="flat")
    with pytest.raises(SpecError, match="base 'flat' has none; try --rule width"):
        _draw(flat, candidates=4)
    assert len(_draw(flat, candidates=2, rules=("width",))) == 2


def test_caps_exclude_large_models_and_the_message_names_a_cap_that_works() -> None:
    candidates = _draw(candidates=4)
    least = min(candidate.gflops for candidate in candidates)
    kept = within_caps(candidates, max_gflops=2 * least, max_params=None)
    assert 0 < len(kept) < len(candidates)
    assert max(candidate.gflops for candidate in kept) <= 2 * least
    with pytest.raises(SettingError, match=r"--max-gflops 0\.0001 excludes every model") as caught:
        within_caps(candidates, max_gflops=1e-4, max_params=None)
    assert within_caps(candidates, max_gflops=float(str(caught.value).rpartition(" ")[2]), max_params=None)
    with pytest.raises(SettingError, match=r"--max-params 0\.001 excludes every model"):
        within_caps(candidates, max_gflops=None, max_params=1e-3)


def test_the_cap_on_latency_excludes_slow_models() -> None:
    candidates = _draw(candidates=2)
    latency = {candidate.key: float(i + 1) for i, candidate in enumerate(candidates)}
    assert within_latency(candidates, latency, max_latency_ms=1.5) == candidates[:1]
    with pytest.raises(SettingError, match=r"try --max-latency-ms 1$"):
        within_latency(candidates, latency, max_latency_ms=0.5)


def test_the_cost_is_that_of_the_spec() -> None:
    spec = build_model(NANO, Choice("depth", (1.0,) * 6, 1.0, 64, False))
    cost = spec_cost(spec, num_classes=3, image_size=64)

    def cost_of(_: ModelSpec, __: int) -> Cost:
        return replace(cost, gflops_built=2 * cost.gflops_built)

    settings = TuneSettings(rules=("width",), candidates=2)
    drawn = draw_candidates(
        NANO, settings, image_sizes=(64,), auxiliary=(False,), cost_of=cost_of, generator=random.Random(0)
    )
    assert drawn[0].gflops == cost.gflops_with_bias
    assert drawn[0].training_flop(10) == pytest.approx(3 * 2e9 * cost.gflops_built * 10)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"wrong": 1}'])
def test_counted_costs_are_cached_and_a_damaged_cache_is_counted_anew(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/.costs.json").write_text(content.replace("wrong", f"{model_key(NANO, 64)}-3"))
    with counted_costs(3) as cost_of:
        counted = cost_of(NANO, 64)
    assert counted == spec_cost(NANO, num_classes=3, image_size=64)
    assert JsonCache("costs").values == {f"{model_key(NANO, 64)}-3": asdict(counted)}


def _draw(base: ModelSpec = NANO, **settings: Any) -> tuple[Candidate, ...]:
    """Draw models with a cost that is quick to count."""

    def cost_of(spec: ModelSpec, size: int) -> Cost:
        figure = sum(getattr(row, "out", 1) * getattr(row, "depth", 1) for row in spec.rows.values()) * size**2 / 1e9
        return Cost(1, int(1e6 * figure), *(figure,) * 5)

    return draw_candidates(
        base,
        TuneSettings(**settings),
        image_sizes=(192,),
        auxiliary=(False,),
        cost_of=cost_of,
        generator=random.Random(0),
    )
