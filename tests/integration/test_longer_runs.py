"""A finished run that is given more epochs continues, says so in its record, and can be interrupted like any other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pipeline.artifacts.files import run_folder, stage_folder, write_json
from pipeline.experiment import ResolvedVariant, parse_experiment
from pipeline.ray.run_folders import claim_run, forget_run
from pipeline.stages.train import build_job
from tests.artifacts import train_summary
from tests.integration.runs import QUICK, WORKER, assert_same, make_job, prepared, read_weights, start
from tests.unit.data_files import write_yolo
from yolov7.api.train import train
from yolov7.errors import SettingError
from yolov7.training.continuation import begin_longer_run, read_owner, with_history
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS, fit
from yolov7.training.record import read_epochs, read_notes
from yolov7.training.validation import Validator
from yolov7.weights.weight_files import load_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    return prepared(root, train_images=8, val_images=2, image_size=64)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    job = make_job(data, folder, epochs=2)
    (folder / "fingerprint").write_text(job.fingerprint)
    assert fit(job, WORKER)
    return folder


def continued(data: Path, finished: Path, folder: Path, *, epochs: int = 4) -> TrainJob:
    """Copy the finished run, and begin its continuation."""
    shutil.copytree(finished, folder)
    job = with_history(make_job(data, folder, epochs=epochs), folder)
    begin_longer_run(job, folder)
    return job


def test_more_epochs_continue_a_finished_run_and_the_record_says_so(data: Path, finished: Path, tmp_path: Path) -> None:
    job = continued(data, finished, tmp_path / "run")
    owner = read_owner(finished)
    assert job.continued_from == (f"{owner}@2",)
    assert job.fingerprint != make_job(data, tmp_path / "run", epochs=4).fingerprint
    assert fit(job, WORKER)
    lines, before = read_epochs(job.run_folder), read_epochs(finished)
    assert lines[:2] == before
    assert [(line["epoch"], line["epochs"]) for line in lines[2:]] == [(3, 4), (4, 4)]
    assert before[-1]["lr"] < lines[2]["lr"]  # that of epoch 3 of 4
    note = read_notes(job.run_folder)[-1]
    assert note.startswith(f"continues the finished run {owner} after epoch 2, with the learning rates of a run of 4")
    training = load_weights(job.run_folder / WEIGHTS).training
    assert (training["continued_from"], training["epochs"]) == ([f"{owner}@2"], 4)
    again = with_history(make_job(data, tmp_path / "run", epochs=4), job.run_folder)
    assert again.fingerprint == job.fingerprint
    twice = with_history(make_job(data, tmp_path / "run", epochs=5), job.run_folder)
    assert twice.continued_from == (f"{owner}@2", f"{job.fingerprint}@4")


@pytest.mark.slow
def test_a_continued_run_that_is_killed_ends_with_the_same_weights(data: Path, finished: Path, tmp_path: Path) -> None:
    undisturbed = continued(data, finished, tmp_path / "undisturbed")
    assert fit(undisturbed, WORKER)
    continued(data, finished, tmp_path / "killed")
    for point in ("in the backward pass", "with an epoch recorded"):  # before its first checkpoint, and after several
        again = with_history(make_job(data, tmp_path / "killed", epochs=4), tmp_path / "killed")
        assert again.fingerprint == undisturbed.fingerprint
        process = start(again, point=point, at=1)
        process.join(60)
        assert process.exitcode == -9
    assert fit(again, WORKER)
    assert_same(read_weights(tmp_path / "killed"), read_weights(tmp_path / "undisturbed"))


def test_the_beginning_of_a_continuation_can_be_interrupted(data: Path, finished: Path, tmp_path: Path) -> None:
    job = continued(data, finished, tmp_path / "run")
    (tmp_path / "run/fingerprint").write_text(read_owner(finished) or "")
    assert with_history(make_job(data, tmp_path / "run", epochs=4), tmp_path / "run") == job


@pytest.mark.parametrize("checkpoint_every", [1, 9])
def test_more_epochs_add_none_to_a_run_that_patience_ended(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_every: int
) -> None:
    monkeypatch.setattr(Validator, "measure_average", lambda *_: {"AP": 0.5, "AP50": 0.5})
    settings = {"patience": 1, "checkpoint_every": checkpoint_every}
    first = make_job(data, tmp_path, epochs=3, **settings)
    (tmp_path / "fingerprint").write_text(first.fingerprint)
    assert fit(first, WORKER)
    lines, weights = read_epochs(tmp_path), read_weights(tmp_path)
    assert len(lines) == 2
    continued_from = [f"{first.fingerprint}@2"]
    for epochs in (6, 9):
        longer = with_history(make_job(data, tmp_path, epochs=epochs, **settings), tmp_path)
        begin_longer_run(longer, tmp_path)
        assert fit(longer, WORKER)
        assert read_epochs(tmp_path) == [lines[0], lines[1] | {"epochs": epochs, "epochs_before": 3}]
        assert_same(read_weights(tmp_path), weights)
        training = load_weights(tmp_path / WEIGHTS).training
        assert (training["epochs"], training["continued_from"]) == (2, continued_from)
        assert re.fullmatch(
            r"ends after epoch 2: AP .* not improved for 1 epoch\. This had ended the finished run of at most 3 "
            rf"epochs, so epochs={epochs} adds none; with a larger patience, training starts from the beginning",
            read_notes(tmp_path)[-1],
        )
        continued_from.append(f"{longer.fingerprint}@2")


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"epochs": 2}, {"epochs": 4, "patience": 3}])
def test_fewer_epochs_or_other_differences_continue_nothing(
    data: Path, finished: Path, changes: dict[str, int]
) -> None:
    job = make_job(data, finished, **changes)
    assert with_history(job, finished) == job


def test_a_run_that_is_not_finished_is_not_continued(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / WEIGHTS).unlink()
    job = make_job(data, tmp_path / "run", epochs=4)
    assert with_history(job, tmp_path / "run") == job


def resolved(epochs: int) -> ResolvedVariant:
    settings = {**QUICK, "epochs": epochs, "multi_scale": 0.0}
    variants = {"a": {"spec": "nano", "scale": {"rule": "width", "width": 0.5}}}
    return parse_experiment({"train": settings, "variants": variants}).variant("a")


def finish(variant: ResolvedVariant) -> TrainJob:
    """Train a variant like the stage `train`, and put the finished run aside."""
    job = build_job(variant, seed=0)
    claim_run(job, None)
    assert fit(job, WORKER)
    summary = train_summary("a", 0, 0.5).model_copy(update={"fingerprint": job.fingerprint})
    write_json(stage_folder("train", "a", 0) / "train.json", summary)
    forget_run(variant, seed=0)
    return job


def test_the_stage_continues_the_last_finished_run(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parents[1])
    Path("dvc.yaml").write_text("stages: {train: {deps: []}}\n")
    first = finish(resolved(1))
    assert not run_folder("a", 0).exists()
    assert build_job(resolved(1), seed=0) == first  # the same training starts from the beginning
    longer = build_job(resolved(2), seed=0)
    assert longer.continued_from == (f"{first.fingerprint}@1",)
    assert claim_run(longer, None).startswith("the last finished run had fewer epochs and is continued; delete ")
    assert build_job(resolved(2), seed=0) == longer
    assert claim_run(longer, None) == ""
    assert fit(longer, WORKER)
    assert [line["epoch"] for line in read_epochs(longer.run_folder)] == [1, 2]
    in_place = build_job(resolved(3), seed=0)  # the run is finished, and DVC has not yet recorded it
    assert in_place.continued_from == (*longer.continued_from, f"{longer.fingerprint}@2")
    claim_run(in_place, None)
    assert build_job(resolved(3), seed=0) == in_place
    assert build_job(resolved(2), seed=0).continued_from == longer.continued_from
    shutil.rmtree(run_folder("a", 0))


def test_a_call_with_more_epochs_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "photos"
    write_yolo(root, {"a": "0 0.5 0.5 0.5 0.5\n", "b": "0 0.4 0.4 0.3 0.3\n"})

    def call(**changes: int) -> Path:
        settings = {**QUICK, "epochs": 1, "batch_size": 2, **changes}
        return train("nano", root, tmp_path / "out", settings=settings, train_split="train", val_split=None)

    first = load_weights(call()).training
    second = load_weights(call(epochs=2)).training
    assert second["continued_from"] == [f"{first['fingerprint']}@1"]
    assert "the result differs from that of a run of 2 epochs from the beginning" in caplog.text
    with pytest.raises(SettingError, match="has a training with other data or settings"):
        call(epochs=1)
    small = {"recipe": "small", "epochs": 1, "image_size": 64, "loader_workers": 0}
    train("nano", root, tmp_path / "small", settings=small, val_split=None)
    assert read_notes(tmp_path / "small")[0] == "recipe small: batch_size=2: an epoch has only 2 images"
