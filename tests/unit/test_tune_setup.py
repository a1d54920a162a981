"""What a search is about: its base, sizes, weights and models; error messages; and which search is resumed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.artifacts.files import stage_folder, write_json
from pipeline.artifacts.reports import PreparedData
from pipeline.cli.main import app
from pipeline.experiment import Experiment, parse_experiment, tune_settings
from pipeline.tune_settings import TuneSettings
from pipeline.tuning.budget.plan import TrialPlan
from pipeline.tuning.search.train_space import read_setting
from pipeline.tuning.setup import OPTIONS, Setup, check_resume, make_setup
from pipeline.tuning.trial.journal import Journal
from yolov7.errors import ArtifactError, SettingError

VARIANTS: dict[str, Any] = {
    "small": {"spec": "nano", "scale": {"rule": "width", "width": 0.5}, "train": {"epochs": 7, "image_size": 64}},
    "nano": {"spec": "nano"},
}
PARAMS = parse_experiment({"variants": VARIANTS, "train": {"image_size": 96}})
PLAN = TrialPlan(epochs=3, train_images=10, val_images=4, batch_size=8, concurrent_trials=1)
COMMAND = typer.main.get_command(app).commands["tune"]  # type: ignore[attr-defined]
FEW = {"candidates": 2, "rules": ["width"]}


@pytest.fixture(autouse=True)
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedData:
    monkeypatch.chdir(tmp_path)
    data = PreparedData(
        class_names=("a", "b"), splits={"train": 10, "val": 4}, boxes={"train": 9}, source="", content_hash="0" * 64
    )
    write_json(stage_folder("prepare") / "dataset.json", data)
    return data


def set_up(**settings: Any) -> Setup:
    return make_setup(PARAMS, TuneSettings.model_validate({**FEW, **settings}))


def test_the_first_variant_is_the_base_and_trials_train_like_it() -> None:
    setup = set_up()
    assert (setup.base_name, setup.base_job.spec) == ("small", PARAMS.variants["small"].spec)
    job = setup.trial_job(setup.candidates[0], PLAN, loader_workers=0)
    assert (job.settings.epochs, job.settings.image_size) == (3, 64)
    assert job.spec_json == setup.candidates[0].spec_json
    assert Path("runs/.costs.json").is_file()
    assert job.run_folder.is_relative_to(Path("runs/.search").resolve())  # no variant's name starts with a dot


def test_a_spec_can_be_the_base_and_image_sizes_are_searched() -> None:
    setup = set_up(base="nano", image_sizes=[96, 128], candidates=12)
    assert {candidate.image_size for candidate in setup.candidates} == {96, 128}


def test_trials_of_the_space_train_keep_the_model_and_train_with_the_sampled_settings() -> None:
    setup = set_up(space="train", vary=["optim.lr0", "loss"])
    assert {candidate.spec_json for candidate in setup.candidates} == {setup.base_job.spec_json}
    jobs = [setup.trial_job(candidate, PLAN, loader_workers=0) for candidate in setup.candidates[:20]]
    for candidate, job in zip(setup.candidates, jobs, strict=False):
        assert {key: read_setting(job.settings, key) for key, _ in candidate.train} == dict(candidate.train)
    assert len({job.fingerprint for job in jobs}) == len({job.run_folder for job in jobs}) == 20
    stated = setup.base_job.settings.model_copy(update={"epochs": 3})
    assert jobs[0].settings.optim == stated.optim
    assert set_up(space="train").fingerprint != setup.fingerprint != set_up().fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "nanoo"}, "base 'nanoo' is neither a variant of params.yaml (small, nano) nor a spec; did you mean"),
        ({"image_sizes": [100]}, "100 must be a multiple of 32, the base's largest stride; try 96"),
        ({"max_gflops": 1e-5}, "--max-gflops 1e-05 excludes every model of this search; the smallest, width 0.5"),
        ({"budget": "10 parsecs"}, "'parsecs'"),
    ],
)
def test_errors_are_explained_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)) as caught:
        set_up(**settings)
    assert "\n" not in str(caught.value)


def test_a_wrong_option_is_named_as_the_user_gave_it() -> None:
    with pytest.raises(ValueError, match=r"^--rule: .*'compond'"):
        tune_settings(PARAMS, {"rules": ["compond"]})
    with pytest.raises(ValueError, match=r"^--max-gflops: .*got -1"):
        tune_settings(PARAMS, {"max_gflops": -1})
    assert tune_settings(PARAMS, {"seed": 3, "base": None}).seed == 3


def test_data_must_be_prepared_and_have_a_val_split(prepared: PreparedData) -> None:
    write_json(stage_folder("prepare") / "dataset.json", prepared.model_copy(update={"splits": {"train": 10}}))
    with pytest.raises(SettingError, match=r"data\.val is null"):
        set_up()
    (stage_folder("prepare") / "dataset.json").unlink()
    with pytest.raises(ArtifactError, match="yolov7 prepare"):
        set_up()


def test_only_the_same_search_is_resumed_with_any_budget(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    check_resume(set_up(), journal, resume=True)  # there is no interrupted search
    journal.begin({"search": set_up().describe()})
    with pytest.raises(SettingError, match="continue it with `yolov7 tune --rule width --resume`"):
        check_resume(set_up(), journal, resume=False)
    check_resume(set_up(budget="9trials"), journal, resume=True)
    with pytest.raises(SettingError, match="differs from this one: its seed was 0"):
        check_resume(set_up(seed=1), journal, resume=True)
    with pytest.raises(SettingError, match="its candidates was 2; give the same settings and options to continue it"):
        check_resume(set_up(candidates=3), journal, resume=True)


def test_the_whole_command_that_continues_a_search_is_printed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    options = {"base": "nano", "space": "train", "vary": ["optim.lr0", "loss"], "seed": 4, "max_gflops": 9.5}
    before = make_setup(PARAMS, TuneSettings.model_validate(options))
    journal.begin({"search": before.describe()})
    command = "yolov7 tune --space train --base nano --vary optim.lr0,loss --seed 4 --max-gflops 9.5 --resume"
    assert before.resume_command() == command
    now = make_setup(PARAMS, TuneSettings(budget="9trials"))
    with_budget = command.replace("--seed", "--budget 9trials --seed")
    for resume in (False, True):
        with pytest.raises(SettingError, match=f"continue it with `{with_budget}`, or discard it"):
            check_resume(now, journal, resume=resume)
    check_resume(make_setup(PARAMS, TuneSettings.model_validate(options)), journal, resume=True)
    assert make_setup(PARAMS, PARAMS.tune).resume_command() == "yolov7 tune --resume"
    assert make_setup(PARAMS, TuneSettings(base="small")).fingerprint == make_setup(PARAMS, PARAMS.tune).fingerprint


def test_every_option_of_the_command_can_be_printed() -> None:
    options = {option for parameter in COMMAND.params for option in parameter.opts if option.startswith("--")}
    assert set(OPTIONS.values()) == options - {"--resume", "--adopt", "--help"}
    assert OPTIONS.keys() <= TuneSettings.model_fields.keys()


def test_weights_are_resolved_and_their_content_belongs_to_the_search(tmp_path: Path) -> None:
    def params() -> Experiment:
        train = {"image_size": 96, "weights": "given.safetensors"}
        return parse_experiment({"variants": VARIANTS, "train": train})

    settings = TuneSettings.model_validate({**FEW, "base": "nano"})
    with pytest.raises(ArtifactError, match=r"train\.weights=.*given\.safetensors does not exist"):
        make_setup(params(), settings)
    Path("given.safetensors").write_bytes(b"one")
    first = make_setup(params(), settings)
    job = first.trial_job(first.candidates[0], PLAN, loader_workers=0)
    assert job.settings.weights == tmp_path / "given.safetensors"  # trials run in other folders
    assert job.weights_hash == hashlib.sha256(b"one").hexdigest()
    Path("given.safetensors").write_bytes(b"two")
    second, journal = make_setup(params(), settings), Journal(tmp_path / "search")
    assert first.fingerprint != second.fingerprint
    journal.begin({"search": first.describe()})
    check_resume(first, journal, resume=True)
    with pytest.raises(SettingError, match="its weights was"):
        check_resume(second, journal, resume=True)
