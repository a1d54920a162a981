"""Under DVC, a stage fails when one of its inputs changes while it runs, because DVC would record the changed input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.artifacts.files import resolved_path, write_json
from pipeline.artifacts.inputs import code_digest, dvc_stage, unchanged_inputs
from yolov7.errors import ArtifactError

DVC_YAML = """
stages:
  train:
    cmd: yolov7 train
    deps:
      - artifacts/resolve/train/${item.variant}/${item.seed}.json
      - ${data.path}
      - yolov7/nn
"""
RESOLVED = {"epochs": 3}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train@nano-0")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    for name in ("yolov7/nn/model.py", "data/train.json", "data/images/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    write_json(resolved_path("train", "nano", 0), RESOLVED)
    return tmp_path


@contextmanager
def running(resolved: dict[str, int] | None = None) -> Iterator[None]:
    path = resolved_path("train", "nano", 0)
    content = RESOLVED if resolved is None else resolved
    with unchanged_inputs("train", data_path="data", resolved=path, resolve=lambda: content, variant="nano", seed=0):
        yield


def test_a_stage_whose_inputs_stay_passes() -> None:
    with running():
        Path("somewhere-else.txt").write_text("two")
        Path("yolov7/nn/__pycache__").mkdir()
        Path("yolov7/nn/__pycache__/model.pyc").write_text("compiled")


def test_settings_that_changed_since_they_were_resolved_stop_the_stage_at_once() -> None:
    with (
        pytest.raises(ArtifactError, match=r"changed after this `dvc repro` began.*train/nano/0\.json.*again"),
        running({"epochs": 4}),
    ):
        raise AssertionError("the stage must not start")


@pytest.mark.parametrize(
    "path", ["yolov7/nn/model.py", "data/train.json", "data/images/2.jpg", "artifacts/resolve/train/nano/0.json"]
)
def test_an_input_that_changes_meanwhile_is_named(path: str) -> None:
    with pytest.raises(ArtifactError, match=rf"{path} changed while `train` ran"), running():
        Path(path).write_text("two")


def test_an_input_behind_a_link_to_a_folder_is_watched_too(tmp_path: Path) -> None:
    Path("lake").mkdir()
    Path("lake/val.json").write_text("one")
    Path("lake/back").symlink_to(tmp_path / "lake")
    Path("data/annotations").symlink_to(tmp_path / "lake")
    with pytest.raises(ArtifactError, match=r"data/annotations/val\.json changed while"), running():
        Path("lake/val.json").write_text("two")


def test_an_input_that_is_deleted_meanwhile_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"data/images/1\.jpg changed while"), running():
        Path("data/images/1.jpg").unlink()


def test_a_change_that_is_undone_is_none() -> None:
    with running():
        Path("yolov7/nn/model.py").write_text("two")
        Path("yolov7/nn/model.py").write_text("one")
        os.utime("data/train.json", ns=(1, 1))


def test_outside_of_dvc_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE")
    assert dvc_stage() is None
    with running({"epochs": 4}):
        Path("data/train.json").write_text("two")


@pytest.mark.parametrize("stage", ["fit", "evaluate@nano-0", "other/dvc.yaml:fit"])
def test_nothing_is_checked_in_another_stage_that_calls_the_command(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", stage)
    with running({"epochs": 4}):
        Path("data/train.json").write_text("two")


@pytest.mark.parametrize("content", ["stages:\n  fit: {cmd: make}\n", "{}\n", "stages: {train: {cmd: make}}\n", None])
def test_a_project_with_other_dvc_stages_can_train(content: str | None) -> None:
    Path("dvc.yaml").unlink()
    if content is not None:
        Path("dvc.yaml").write_text(content)
    assert code_digest("train") == ""
    with running({"epochs": 4}):
        Path("data/train.json").write_text("two")


def test_the_search_is_checked_with_the_dependencies_of_its_own_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "tune/dvc.yaml:tune")
    Path("tune").mkdir()
    Path("tune/dvc.yaml").write_text("stages: {tune: {wdir: .., deps: [yolov7/nn]}}\n")
    path = resolved_path("tune")
    write_json(path, RESOLVED)
    with (
        pytest.raises(ArtifactError, match=r"yolov7/nn/model\.py changed while `tune` ran"),
        unchanged_inputs("tune", data_path="data", resolved=path, resolve=lambda: RESOLVED),
    ):
        Path("yolov7/nn/model.py").write_text("two")


def test_the_digest_of_code_follows_its_content() -> None:
    before = code_digest("train")
    Path("data/train.json").write_text("two")
    assert code_digest("train") == before
    Path("yolov7/nn/model.py").write_text("two")
    assert code_digest("train") != before


def test_a_stage_of_another_dvc_yaml_has_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "tune/dvc.yaml:tune")
    assert dvc_stage() == "tune"
