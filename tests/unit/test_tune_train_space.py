"""The search for settings of a training: ranges, candidates, what the search learns, its results, and its adoption."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from pipeline.experiment import load_experiment, parse_experiment, tune_settings
from pipeline.tune_settings import SettingRange, TuneSettings, nest
from pipeline.tuning.adopt import adopt
from pipeline.tuning.report.messages import result_lines
from pipeline.tuning.report.train_results import find_importance, write_train_results
from pipeline.tuning.search.search import Search, Trial, known_results
from pipeline.tuning.search.space import Candidate
from pipeline.tuning.search.train_space import (
    DEFAULT_RANGES,
    STATED,
    draw_settings,
    read_setting,
    resolve_ranges,
    with_values,
)
from tests.unit.tune_models import make_candidate
from yolov7.errors import SettingError
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import load_spec

ROOT = Path(__file__).parents[2]
NANO = load_spec("nano")
TRAIN = TrainSettings.model_validate({"optim": {"lr0": 0.004, "optimizer": "adamw"}, "loss": {"box": 0.8}})
SUMMARY = {"space": "train", "base": "nano", "declared": {"spec": "nano"}, "train": {"epochs": 7}, "epochs": 2}


def ranges_of(train: TrainSettings = TRAIN, spec: str = "nano", **settings: Any) -> dict[str, SettingRange]:
    return resolve_ranges(TuneSettings.model_validate({"space": "train", **settings}), train, load_spec(spec))


RESULTS: dict[str, Any] = {"ranges": ranges_of(), "summary": SUMMARY}


def draw(train: TrainSettings = TRAIN, **settings: Any) -> tuple[Candidate, ...]:
    base = make_candidate(1, gflops=1.0)
    return draw_settings(base, ranges_of(train, **settings), train, random.Random(0))


@pytest.mark.parametrize("scale", ["linear", "log", "decay", "probability"])
def test_values_are_drawn_evenly_on_the_scale_of_a_range(scale: str) -> None:
    values = SettingRange.model_validate({"low": 0.01, "high": 0.99, "scale": scale})
    generator = random.Random(0)
    drawn = [values.draw(generator) for _ in range(2000)]
    assert all(0.01 <= value <= 0.99 for value in drawn)
    assert fmean(value < {"log": 0.1, "decay": 0.9}.get(scale, 0.5) for value in drawn) == pytest.approx(
        0.625 if scale == "probability" else 0.5, abs=0.04
    )
    assert (fmean(value == 0.01 for value in drawn) > 0.2) == (scale == "probability")  # 0 switches something off
    assert values.position(0.01) == 0
    assert len(str(values.draw(generator))) < 9  # values are rounded, for people
    assert values.position(2.0) == 1  # a stated value outside the range counts as the nearer end


def test_the_first_candidate_has_the_stated_settings_and_all_are_within_their_ranges() -> None:
    candidates, ranges = draw(), ranges_of()
    assert candidates[0].rules == (STATED,)
    assert dict(candidates[0].train) == {key: read_setting(TRAIN, key) for key in ranges}
    assert not any(candidate.rules for candidate in candidates[1:])
    assert len({candidate.key for candidate in candidates}) == len(candidates) == 1000
    for candidate in candidates[1:50]:
        for key, value in candidate.train:
            assert ranges[key].low <= value <= ranges[key].high or value == read_setting(TRAIN, key)
        trained = with_values(TRAIN, dict(candidate.train))
        assert {key: read_setting(trained, key) for key in ranges} == dict(candidate.train)
        assert trained.optim.optimizer == "adamw"
    assert draw() == candidates


def test_default_ranges_follow_the_stated_settings() -> None:
    assert ranges_of()["optim.lr0"] == SettingRange(low=0.004 / 8, high=0.004 * 8, scale="log")
    without_box = with_values(TRAIN, {"loss.box": 0.0})
    assert "loss.box" not in ranges_of(without_box)  # 0 switches a loss off, and has no scale
    assert DEFAULT_RANGES.keys() == ranges_of().keys()


def test_settings_without_an_effect_are_left_out_or_refused() -> None:
    corrected = TrainSettings.model_validate({"optim": {"ema": "corrected"}})
    assert "optim.ema_ramp" not in ranges_of(corrected)
    assert not any(key.startswith("loss.") for key in ranges_of(spec="yolov7-u6"))
    with pytest.raises(
        SettingError, match=r"loss\.box has no effect on the head 'detect_dfl', .*; leave it out of vary"
    ):
        ranges_of(spec="yolov7-u6", vary=["loss.box"])


@pytest.mark.parametrize(
    ("key", "spec", "optim"),
    [
        ("loss.label_smoothing", "yolov7-u6", {}),
        ("loss.focal_gamma", "ppyoloe-s", {}),
        ("loss.anchor_threshold", "yolox-s", {}),
        ("loss.auxiliary_gain", "yolov7-u6", {}),
        ("loss.auxiliary_gain", "nano", {}),
        ("optim.flat_share", "nano", {}),
        ("optim.warmup_bias_lr", "nano", {"optimizer": "muon"}),
        ("optim.warmup_momentum", "nano", {"schedule": "yolox"}),
        ("optim.warmup_share", "nano", {"schedule": "reference"}),
        ("optim.lr_final", "nano", {"schedule": "ppyoloe"}),
    ],
)
def test_a_stated_range_without_an_effect_is_refused(key: str, spec: str, optim: dict[str, Any]) -> None:
    train = TrainSettings.model_validate({"optim": optim})
    low = 2.0 if key == "loss.anchor_threshold" else 0.1
    with pytest.raises(SettingError, match=re.escape(f"tune: {key} has no effect ")):
        ranges_of(train, spec, train_space={key: {"low": low, "high": 2 * low}})


def test_a_group_without_an_effect_is_refused_with_what_has_one() -> None:
    with pytest.raises(
        SettingError, match=r"no setting of loss .* effect on the head 'detect_dfl', .*; leave loss out of vary"
    ):
        ranges_of(spec="yolov7-u6", vary=["optim", "loss"])
    with pytest.raises(SettingError, match=r"or state a range of loss\.atss_epochs in tune\.train_space$"):
        ranges_of(spec="yolov7-u6", vary=["loss"])
    atss = {"loss.atss_epochs": {"low": 0, "high": 4}}
    assert ranges_of(spec="yolov7-u6", vary=["loss"], train_space=atss).keys() == atss.keys()
    with pytest.raises(SettingError, match=r"leave loss out of vary$"):
        ranges_of(spec="yolox-s", vary=["loss"])


def test_the_space_can_be_changed_and_narrowed() -> None:
    own = {"close_mosaic": {"low": 0, "high": 5}, "augment.mixup": None}
    ranges = ranges_of(train_space=own)
    assert ranges.keys() == {*DEFAULT_RANGES, "close_mosaic"} - {"augment.mixup"}
    assert {type(dict(candidate.train)["close_mosaic"]) for candidate in draw(train_space=own)} == {int}
    assert ranges_of(vary=["optim.lr0", "loss"]).keys() == {
        "optim.lr0", "loss.box", "loss.objectness", "loss.classification",
    }  # fmt: skip
    with pytest.raises(SettingError, match=r"optim\.clip_norm has no default range; state it, such as"):
        ranges_of(vary=["optim.clip_norm"])
    with pytest.raises(SettingError, match=r"optim\.clip_norm=auto cannot be varied; state a number"):
        read_setting(TRAIN, "optim.clip_norm")
    with pytest.raises(SettingError, match="no setting of the training is left to vary"):
        ranges_of(train_space=dict.fromkeys(DEFAULT_RANGES))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optim.lr": None}, "tune.train_space: 'optim.lr' is no setting of the training that can be varied; did you"),
        ({"lr0": None}, "did you mean 'optim.lr0'?"),
        ({"epochs": {"low": 1, "high": 9}}, "'epochs' is no setting of the training that can be varied"),
        ({"optim.lr0": {"low": -1, "high": 1}}, "optim.lr0: input should be greater than 0, got -1.0"),
        ({"optim.lr0": {"low": 0, "high": 1, "scale": "log"}}, "low=0 must be greater than 0 with scale: log"),
        ({"loss.box": {"low": 1, "high": 1}}, "low=1 must be less than high=1"),
    ],
)
def test_a_wrong_space_is_explained_in_one_line(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)) as caught:
        parse_experiment({"variants": {"nano": {"spec": "nano"}}, "tune": {"train_space": space}})
    assert "\n" not in str(caught.value)


def test_an_option_of_the_other_space_is_refused() -> None:
    params = parse_experiment({"variants": {"nano": {"spec": "nano"}}, "tune": {"max_gflops": 9}})
    with pytest.raises(SettingError, match="--rule has an effect with --space scaling only; leave it out"):
        tune_settings(params, {"space": "train", "rules": ["width"]})
    with pytest.raises(SettingError, match="--vary has an effect with --space train only"):
        tune_settings(params, {"vary": ["loss"]})
    with pytest.raises(SettingError, match=r"--vary: 'los' is no setting .*; did you mean 'loss'"):
        tune_settings(params, {"space": "train", "vary": ["los"]})
    assert tune_settings(params, {"space": "train"}).max_gflops == 9  # of the other space, and unused


def test_the_stated_settings_are_first_and_never_stopped() -> None:
    search = Search(draw(), TuneSettings(space="train"), full_compute=lambda _: 8.0)
    first = search.ask()
    assert first is not None
    assert first.candidate.rules == (STATED,)
    assert search.report(first.candidate.key, epoch=1, compute=4.0, AP=0.1)
    better, worse = search.ask(), search.ask()
    assert better is not None
    assert worse is not None
    assert search.report(better.candidate.key, epoch=1, compute=4.0, AP=0.2)
    assert not search.report(worse.candidate.key, epoch=1, compute=4.0, AP=0.05)
    assert search.report(first.candidate.key, epoch=2, compute=8.0, AP=0.15)


def test_a_stopped_trial_counts_with_the_final_ap_of_the_most_similar_complete_one() -> None:
    a, b, c, d = draw()[:4]
    trials = [
        Trial(a, 0, status="complete", AP=0.3, curve=[(1, 0.1), (2, 0.3)]),
        Trial(b, 0, status="complete", AP=0.5, curve=[(1, 0.2), (2, 0.5)]),
        Trial(c, 0, status="stopped", AP=0.05, curve=[(1, 0.05)]),
        Trial(d, 0, status="failed", AP=0.05, curve=[(1, 0.05)]),
    ]
    assert known_results(trials) == [(a, 0.3), (b, 0.5), (c, 0.3)]
    assert known_results(trials[2:3]) == [(c, 0.05)]


def invent_ap(candidate: Candidate, noise: random.Random) -> float:
    """AP depends on three settings: a peak beside the stated learning rate, less mosaic, more weight of the boxes."""
    at = dict(candidate.features)
    peak = 0.15 * (at["optim.lr0"] - 0.75) ** 2 / 0.25**2 + 0.1 * at["augment.mosaic"] + 0.1 * (1 - at["loss.box"])
    return 0.6 - min(peak, 0.6) + noise.gauss(0, 0.01)


def searched(sampler: str, seed: int, *, trials: int = 25) -> list[Trial]:
    settings = TuneSettings.model_validate({"space": "train", "sampler": sampler, "seed": seed, "halving": 1})
    candidates = draw_settings(make_candidate(1, gflops=1.0), ranges_of(), TRAIN, random.Random(seed))
    search, noise = Search(candidates, settings, full_compute=lambda _: 1.0), random.Random(seed)
    for _ in range(trials):
        trial = search.ask()
        assert trial is not None
        search.report(trial.candidate.key, epoch=1, compute=1.0, AP=invent_ap(trial.candidate, noise))
        search.end(trial.candidate.key, "complete")
    return list(search.trials.values())


def test_the_search_finds_better_settings_than_chance() -> None:
    best = {
        name: [max(trial.AP or 0.0 for trial in searched(name, seed)) for seed in range(6)]
        for name in ("kriging", "random")
    }
    wins = sum(ours > chance for ours, chance in zip(best["kriging"], best["random"], strict=True))
    assert wins >= 5
    assert fmean(best["kriging"]) > fmean(best["random"]) + 0.01


def test_the_importance_names_the_settings_that_matter() -> None:
    importance = find_importance(searched("random", 0, trials=60))
    assert next(iter(importance)) == "optim.lr0"
    assert sum(importance.values()) == pytest.approx(1)
    assert find_importance(searched("random", 0, trials=7)) == {}


def finished(count: int = 12) -> list[Trial]:
    trials = [Trial(candidate, 0, "complete", AP=0.3, epochs=2, curve=[(1, 0.1), (2, 0.3)]) for candidate in draw()]
    for i, trial in enumerate(trials[:count]):
        trial.AP, trial.trained = 0.3 + i / 100, dict(trial.candidate.train)
    trials[1].status, trials[1].AP = "stopped", 0.9  # of an early epoch
    return trials[:count]


def changed(candidate: Candidate) -> dict[str, float]:
    return {key: value for key, value in candidate.train if value != read_setting(TRAIN, key)}


def test_the_results_are_a_table_a_picture_and_the_best_settings(tmp_path: Path) -> None:
    trials = finished()
    (tmp_path / "lines").write_text("{}\n")
    importance = find_importance(trials)
    chosen = write_train_results(tmp_path, trials, importance=importance, **RESULTS, journal=tmp_path / "lines")
    assert chosen is trials[-1]
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [row["is_stated"] for row in rows] == ["True"] + ["False"] * 11
    assert [float(row["optim.lr0"]) for row in rows] == [dict(trial.candidate.train)["optim.lr0"] for trial in trials]
    assert yaml.safe_load((tmp_path / "chosen.yaml").read_text()) == nest(changed(chosen.candidate))
    assert "AP 0.410 on val instead of 0.300 with the stated settings" in (tmp_path / "chosen.yaml").read_text()
    assert (tmp_path / "settings.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "importance.json").read_text()).keys() == DEFAULT_RANGES.keys()
    lines = list(result_lines(trials, fits={}, importance=importance, used="12 of 12 trials"))
    assert lines[0] == "12 trials (11 complete, 1 stopped); 12 of 12 trials used"
    assert lines[-1].endswith("AP 0.410; the stated settings have AP 0.300")
    assert lines[1].startswith("the settings with the largest effect on AP: ")
    assert [*result_lines(trials[:1], fits={}, importance={}, used="")][-1] == "best: stated settings, AP 0.300"


def test_adopting_settings_adds_a_variant_beside_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "params.yaml").read_text().replace("path: yolov7/data/synthetic", "path: .")
    Path("params.yaml").write_text(text)
    Path("lines").write_text("")
    folder, trials = tmp_path / "artifacts/tune", finished()
    write_train_results(folder, trials[:1], importance={}, **RESULTS, journal=Path("lines"))
    assert "the stated settings are the best of 1 trial of 2 epochs" in adopt()
    assert Path("params.yaml").read_text() == text
    write_train_results(folder, trials, importance={}, **RESULTS, journal=Path("lines"))
    message = adopt()
    after = Path("params.yaml").read_text().splitlines()
    added = [line for line in after if line not in text.splitlines()]
    assert [line for line in after if line not in added] == text.splitlines()
    assert added[0].startswith("  # yolov7 tune --space train: the best of 12 trials of 2 epochs; AP 0.410 on val")
    assert max(map(len, added)) < 160
    adopted = load_experiment().variants[f"tuned-{trials[-1].candidate.key}"]
    assert adopted.overrides == {"epochs": 7, **nest(changed(trials[-1].candidate))}
    assert (adopted.spec, adopted.train.epochs) == (NANO, 7)
    assert adopted.name in message
    with pytest.raises(SettingError, match=r"is already in params\.yaml"):
        adopt()


def test_the_documented_space_is_the_default_one() -> None:
    page = (ROOT / "docs/design/tuning.md").read_text()
    documented = dict(re.findall(r"^\| `((?:optim|loss|augment)\.\w+)` \| (.*?) \|", page, flags=re.MULTILINE))
    shown = {
        key: f"1/{values:g} to {values:g} times the stated value"
        if isinstance(values, float)
        else f"{values.low:g} to {values.high:g}, {values.scale}"
        for key, values in DEFAULT_RANGES.items()
    }
    assert documented == shown
