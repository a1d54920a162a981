"""What `resolve` writes: everything that decides a stage's result, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.experiment import Experiment, parse_experiment
from pipeline.stages.resolve import resolve, stage_inputs
from yolov7.errors import SettingError


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment(**changes: Any) -> Experiment:
    content: dict[str, Any] = {"variants": {"nano": {"spec": "nano"}}, "train": {"epochs": 3}}
    return parse_experiment(content | changes, source="here")


def written(name: str) -> Any:
    return json.loads(Path(f"artifacts/resolve/{name}.json").read_text())


def test_each_training_has_a_file_with_its_spec_settings_and_seed() -> None:
    resolve(experiment(seeds=[0, 7]))
    content = written("train/nano/7")
    assert content["seed"] == 7
    assert content["spec"]["rows"]
    assert content["settings"]["epochs"] == 3
    assert content["settings"]["optim"]["lr0"] == 0.01  # the default
    assert content["weights"] == ""
    assert not {"loader_workers", "cache_images", "checkpoint_minutes", "recipe"} & content["settings"].keys()


def test_a_missing_data_folder_is_named_before_dvc_looks_for_it(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: {}")
    with pytest.raises(SettingError, match=r"data\.path='lost' does not exist"):
        resolve(experiment(data={"format": "coco", "path": "lost"}))


def test_where_training_runs_is_in_no_file() -> None:
    plain = stage_inputs(experiment())
    assert stage_inputs(experiment(ray={"workers": 4, "storage": "s3://bucket/x"})) == plain


def test_what_changed_since_the_last_time_is_described() -> None:
    assert resolve(experiment()) == []
    assert resolve(experiment()) == []
    changes = resolve(experiment(train={"epochs": 5}))
    assert "train/nano/0: settings.epochs was 3, is 5" in changes


def test_a_spec_decides_the_image_size_unless_a_setting_does() -> None:
    sizes = experiment(
        variants={
            "large": {"spec": "yolov7-w6"},
            "stated": {"spec": "yolov7-w6", "train": {"image_size": 640}},
            "recipe": {"spec": "yolov7-tiny", "train": {"recipe": "p6"}},
        }
    )
    assert {name: variant.train.image_size for name, variant in sizes.variants.items()} == {
        "large": 1280,
        "stated": 640,
        "recipe": 1280,
    }


def test_weights_count_by_their_content() -> None:
    def inputs() -> Any:
        content = experiment(train={"weights": "start.safetensors"})
        return next(value for path, value in stage_inputs(content).items() if "train" in path.parts)

    assert inputs()["weights"] == "missing"
    Path("start.safetensors").write_bytes(b"one")
    first = inputs()
    Path("start.safetensors").write_bytes(b"two")
    assert inputs()["weights"] != first["weights"]
    assert "weights" not in first["settings"]


def test_a_teacher_counts_by_its_content() -> None:
    def inputs(**train: Any) -> Any:
        return next(value for path, value in stage_inputs(experiment(train=train)).items() if "train" in path.parts)

    assert "teacher" not in inputs()
    distil = {"teacher": "teacher.safetensors"}
    assert inputs(distil=distil)["teacher"] == "missing"
    Path("teacher.safetensors").write_bytes(b"one")
    first = inputs(distil=distil)
    Path("moved.safetensors").write_bytes(b"one")
    assert inputs(distil={"teacher": "moved.safetensors"}) == first
    Path("teacher.safetensors").write_bytes(b"two")
    assert inputs(distil=distil)["teacher"] != first["teacher"]
    assert (
        experiment(train={"distil": distil}).variants["nano"].train.distil.teacher
        == Path("teacher.safetensors").resolve()
    )


def test_the_content_of_symlinked_folders_counts() -> None:
    Path("lake/images").mkdir(parents=True)
    Path("lake/train.json").write_text("{}")
    Path("lake/images/1.jpg").write_bytes(b"one")
    Path("data").mkdir()
    Path("data/annotations").symlink_to(Path("lake").absolute())

    def symlinked() -> Any:
        content = experiment(data={"format": "coco", "path": "data"})
        return next(value for path, value in stage_inputs(content).items() if path.name == "prepare.json")["symlinked"]

    first = symlinked()
    assert list(first) == ["annotations"]
    assert symlinked() == first
    Path("lake/train.json").write_text("[]")
    second = symlinked()
    assert second != first
    Path("lake/images/2.jpg").write_bytes(b"two")
    assert symlinked() != second


def test_links_within_symlinked_folders_count_too_and_may_be_broken_or_lead_back() -> None:
    Path("lake").mkdir()
    Path("pond").mkdir()
    Path("data").mkdir()
    Path("data/all").symlink_to(Path("lake").absolute())
    Path("lake/inner").symlink_to(Path("pond").absolute())
    Path("lake/back").symlink_to(Path("lake").absolute())
    Path("lake/lost.json").symlink_to("nowhere.json")
    content = experiment(data={"format": "coco", "path": "data"})
    first = stage_inputs(content)
    Path("pond/1.jpg").write_bytes(b"one")
    assert stage_inputs(content) != first


def test_what_is_computed_for_one_stage_is_what_resolve_writes_for_it() -> None:
    content = experiment(data={"format": "coco", "path": "data"})
    for path, expected in stage_inputs(content).items():
        assert stage_inputs(content, only=path) == {path: expected}


def test_constants_of_the_code_that_decide_a_result_are_written() -> None:
    resolve(experiment())
    assert written("benchmark")["nms"]["confidence"] == 0.25
    assert written("train/nano/0")["validation"]["nms"]["confidence"] == 0.001


def test_fine_tuning_of_all_variants_may_start_from_weights_of_each() -> None:
    variants = {name: {"spec": "nano", "train": {"weights": f"{name}.safetensors"}} for name in ("one", "two")}
    tuned = experiment(variants=variants, train={"recipe": "finetune"})
    assert tuned.variants["two"].train.epochs == 50
    with pytest.raises(SettingError, match=r"^here: train\.recipe='finetune' starts from trained weights"):
        experiment(train={"recipe": "finetune"})


def test_a_base_that_cannot_be_read_is_not_called_a_variant() -> None:
    with pytest.raises(SettingError, match=r"^base 'own\.yaml': "):
        experiment().base("own.yaml")


@pytest.mark.parametrize("name", ["a.b", "x; touch FILE", "$(id)", "", "-v", "a/b"])
def test_names_that_shells_folders_or_dvc_would_misread_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match="must consist of letters, digits"):
        experiment(variants={name: {"spec": "nano"}})


def test_a_mistake_in_train_is_named_with_its_key() -> None:
    with pytest.raises(SettingError, match=r"^here: train\.epoch: unknown key; did you mean 'epochs'\?"):
        experiment(train={"epoch": 3})
    with pytest.raises(SettingError, match=r"variants\.nano\.train\.optim\.lr: unknown key"):
        experiment(variants={"nano": {"spec": "nano", "train": {"optim": {"lr": 1}}}})
    with pytest.raises(SettingError, match=r"variants\.nano\.ray\.worker: unknown key; did you mean 'workers'\?"):
        experiment(variants={"nano": {"spec": "nano", "ray": {"worker": 1}}})


def test_a_row_to_freeze_that_does_not_exist_is_named_before_a_training_begins() -> None:
    for row, fault in (("p33", "is not a row of spec 'nano'"), ("p6", "the largest stride of spec 'nano' is 32")):
        train = {"freeze": row, "weights": "w.safetensors"}
        with pytest.raises(SettingError, match=rf"variants\.a\.train: freeze='{row}':? {fault}"):
            parse_experiment({"variants": {"a": {"spec": "nano", "train": train}}})
