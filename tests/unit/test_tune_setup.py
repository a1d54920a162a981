"""What a search is about: its base, sizes and models; what is told where it cannot work; which search is resumed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.files import PreparedData, stage_folder, write_json
from pipeline.experiment import parse_experiment
from pipeline.params import TuneSettings
from pipeline.tuning.budget.plan import Plan
from pipeline.tuning.setup import Setup, check_resume, make_setup
from pipeline.tuning.trial.journal import Journal
from yolov7.errors import ArtifactError

VARIANTS: dict[str, Any] = {
    "small": {"spec": "nano", "scale": {"rule": "width", "width": 0.5}, "train": {"epochs": 7, "image_size": 64}},
    "nano": {"spec": "nano"},
}
PARAMS = parse_experiment({"variants": VARIANTS, "train": {"image_size": 96}})
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


def test_the_first_variant_is_the_base_and_its_training_that_of_every_trial() -> None:
    setup = set_up()
    assert (setup.base_name, setup.base) == ("small", PARAMS.variants["small"].build_spec())
    plan = Plan(epochs=3, train_images=10, val_images=4, batch_size=8, at_once=1)
    job = setup.job(setup.candidates[0], plan, folder=Path("runs/tune"), loader_workers=0)
    assert (job.settings.epochs, job.settings.image_size) == (3, 64)
    assert job.spec_json == setup.candidates[0].spec_json
    assert Path("runs/costs.json").is_file()


def test_a_spec_may_be_the_base_and_sizes_are_searched() -> None:
    setup = set_up(base="nano", image_sizes=[96, 128], candidates=12)
    assert {candidate.image_size for candidate in setup.candidates} == {96, 128}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"base": "nanoo"}, "base 'nanoo' is neither a variant of params.yaml (small, nano) nor a spec; did you mean"),
        ({"image_sizes": [100]}, "100 must be a multiple of 32, the base's largest stride; try 96"),
        ({"max_gflops": 1e-5}, "--max-gflops 1e-05 is met by no model of this space; the smallest, width 0.5"),
        ({"budget": "10 parsecs"}, "'parsecs'"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        set_up(**settings)
    assert "\n" not in str(caught.value)


def test_a_wrong_option_is_named_as_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"^--rule: .*'compond'"):
        PARAMS.tune_settings({"rules": ["compond"]})
    with pytest.raises(ValueError, match=r"^--max-gflops: .*got -1"):
        PARAMS.tune_settings({"max_gflops": -1})
    assert PARAMS.tune_settings({"seed": 3, "base": None}).seed == 3


def test_data_that_are_not_prepared_or_have_no_val_split_are_told(prepared: PreparedData) -> None:
    write_json(stage_folder("prepare") / "dataset.json", prepared.model_copy(update={"splits": {"train": 10}}))
    with pytest.raises(ValueError, match=r"data\.val is null"):
        set_up()
    (stage_folder("prepare") / "dataset.json").unlink()
    with pytest.raises(ArtifactError, match="yolov7 prepare"):
        set_up()


def test_only_the_same_search_is_resumed_but_with_any_budget(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    check_resume(set_up(), journal, folder=tmp_path, resume=True)  # there is none: it begins
    journal.begin({"search": set_up().describe()})
    with pytest.raises(ValueError, match="`yolov7 tune --resume` goes on with it"):
        check_resume(set_up(), journal, folder=tmp_path, resume=False)
    check_resume(set_up(budget="9trials"), journal, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="is another: seed was 0"):
        check_resume(set_up(seed=1), journal, folder=tmp_path, resume=True)
