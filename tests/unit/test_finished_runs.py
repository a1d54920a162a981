"""The folder of a run is removed once its result is safe, and no other run's folder is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.files import run_folder, stage_folder, write_json
from pipeline.experiment import ResolvedVariant, parse_experiment
from pipeline.ray.mirror import RunCopy
from pipeline.ray.run_folders import claim_run, forget_run, with_earlier_run
from tests.artifacts import train_summary
from yolov7.errors import ArtifactError
from yolov7.settings import OptimSettings, TrainSettings
from yolov7.training.checkpoint import delete_older_checkpoints
from yolov7.training.continuation import with_history
from yolov7.training.data_recipe import DataFacts, Fitted, fit_to_data
from yolov7.training.job import TrainJob


@pytest.fixture
def variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResolvedVariant:
    monkeypatch.chdir(tmp_path)
    write_json(stage_folder("train", "nano", 0) / "train.json", train_summary("nano", 0, 0.5))
    return parse_experiment({"variants": {"nano": {"spec": "nano"}}}).variant("nano")


def make_run(*, fingerprint: str, finished: bool) -> Path:
    folder = run_folder("nano", 0)
    folder.mkdir(parents=True)
    (folder / "fingerprint").write_text(fingerprint)
    (folder / ("weights.safetensors" if finished else "checkpoint-000000001.pt")).write_bytes(b"tensors")
    return folder


def test_the_finished_run_whose_result_is_written_is_removed(variant: ResolvedVariant) -> None:
    folder = make_run(fingerprint="nano0", finished=True)
    forget_run(variant, seed=0)
    assert not list(folder.parent.iterdir())


@pytest.mark.parametrize(("fingerprint", "finished"), [("nano0", False), ("other", False), ("other", True)])
def test_a_run_that_goes_on_or_has_other_settings_stays(
    variant: ResolvedVariant, fingerprint: str, finished: bool
) -> None:
    folder = make_run(fingerprint=fingerprint, finished=finished)
    forget_run(variant, seed=0)
    assert len(list(folder.iterdir())) == 2


def test_nothing_is_removed_without_a_run(variant: ResolvedVariant) -> None:
    forget_run(variant, seed=0)
    assert not run_folder("nano", 0).exists()


@pytest.fixture
def job(variant: ResolvedVariant) -> TrainJob:
    Path("dvc.yaml").write_text("stages: {train: {deps: [yolov7/nn]}}\n")
    write_code("one")
    folder = run_folder("nano", 0).absolute()
    return TrainJob(
        spec_json="{}", settings=TrainSettings(), seed=0, data_folder=Path("data"), data_hash="", run_folder=folder
    )


def write_code(text: str) -> None:
    Path("yolov7/nn").mkdir(parents=True, exist_ok=True)
    Path("yolov7/nn/model.py").write_text(text)


def test_a_finished_run_is_used_if_its_code_is_the_same(job: TrainJob) -> None:
    assert claim_run(job, None) == ""
    (job.run_folder / "weights.safetensors").write_bytes(b"tensors")
    assert "was finished before with the same data, settings and code" in claim_run(job, None)
    write_code("two")
    assert claim_run(job, None) == "an earlier run had other code; training starts from the beginning"
    assert not (job.run_folder / "weights.safetensors").exists()
    assert claim_run(job, None) == ""


def test_an_unfinished_run_continues_with_other_code_and_says_so(job: TrainJob) -> None:
    claim_run(job, None)
    (job.run_folder / "checkpoint-000000001.pt").write_bytes(b"state")
    write_code("two")
    assert "continues from its last checkpoint with the new code" in claim_run(job, None)
    assert (job.run_folder / "checkpoint-000000001.pt").exists()
    assert claim_run(job, None) == ""


BEGINNING = "an earlier run had other data or settings; training starts from the beginning"


@pytest.mark.parametrize("file", ["checkpoint-000000009.pt", "weights.safetensors"])
def test_a_run_of_other_settings_makes_room_and_is_taken_back(job: TrainJob, file: str) -> None:
    claim_run(job, None)
    (job.run_folder / file).write_bytes(b"tensors")
    other = job.model_copy(update={"seed": 1})
    note = claim_run(other, None)
    assert note.startswith(f"{BEGINNING}; the run with other data or settings is kept in ")
    assert not (job.run_folder / file).exists()
    assert claim_run(other, None) == ""
    assert claim_run(job, None).startswith("the earlier run with these data and settings is used again")
    assert (job.run_folder / file).read_bytes() == b"tensors"
    assert len(list(job.run_folder.parent.glob("*0*"))) == 2  # the folder and its lock; the other run had not begun


def test_the_longest_three_runs_that_made_room_are_kept_and_the_note_says_which_is_deleted(job: TrainJob) -> None:
    jobs = [job.model_copy(update={"seed": seed}) for seed in range(6)]
    aside = [job.run_folder.with_name(f".0.{one.fingerprint}") for one in jobs]
    notes = []
    for one, steps in zip(jobs, (90, 2, 30, 9, 1, 0), strict=True):
        notes.append(claim_run(one, None))
        (job.run_folder / f"checkpoint-{steps:09d}.pt").write_text(str(steps))
    assert not any("deleted" in note for note in notes[:4])
    assert notes[4].endswith(f"; the run in {aside[1]} is deleted; 3 others with as many steps or more are kept")
    assert notes[5] == f"{BEGINNING}; the run with other data or settings is deleted; 3 others with more steps are kept"
    assert [path.is_dir() for path in aside] == [True, False, True, True, False, False]
    claim_run(jobs[0], None)
    assert (job.run_folder / "checkpoint-000000090.pt").read_text() == "90"


def test_a_run_that_has_only_begun_is_discarded(job: TrainJob) -> None:
    claim_run(job, None)
    (job.run_folder / "checkpoint-000000000.pt").write_bytes(b"tensors")
    assert claim_run(job.model_copy(update={"seed": 1}), None) == BEGINNING
    assert not list(job.run_folder.parent.glob(".0.*"))


def test_a_finished_run_that_made_room_can_be_continued(job: TrainJob) -> None:
    claim_run(job, None)
    for name in ("checkpoint-000000009.pt", "weights.safetensors"):
        (job.run_folder / name).write_bytes(b"tensors")
    (job.run_folder / "epochs.jsonl").write_text('{"epoch": 300, "epochs": 300}\n')
    claim_run(job.model_copy(update={"settings": TrainSettings(epochs=400, optim=OptimSettings(lr0=1.0))}), None)
    longer = with_earlier_run(
        job.model_copy(update={"settings": TrainSettings(epochs=400)}), fit=lambda settings: Fitted(settings, ())
    )
    assert longer.continued_from == (f"{job.fingerprint}@300",)
    note = claim_run(longer, None)
    assert "is used again" in note
    assert "had fewer epochs and is continued" in note
    assert (job.run_folder / "checkpoint-000000009.pt").exists()
    assert not (job.run_folder / "weights.safetensors").exists()


def test_more_epochs_continue_a_run_of_the_recipe_that_follows_from_the_data(job: TrainJob) -> None:
    facts = DataFacts(200, np.array([0.2]))

    def fit(settings: TrainSettings) -> Fitted:
        return fit_to_data(settings, facts)

    def stated(**settings: object) -> TrainJob:
        return job.model_copy(update={"settings": TrainSettings.model_validate({"recipe": "small", **settings})})

    first = with_earlier_run(stated(epochs=40), fit=fit)
    assert (first.settings.batch_size, first.continued_from) == (4, ())
    claim_run(first, None)
    for name in ("checkpoint-000002000.pt", "weights.safetensors"):
        (job.run_folder / name).write_bytes(b"tensors")
    (job.run_folder / "epochs.jsonl").write_text('{"epoch": 40, "epochs": 40, "batch_size": 4}\n')
    assert with_earlier_run(stated(epochs=40), fit=fit) == first
    longer = with_earlier_run(stated(epochs=100), fit=fit)
    assert fit(stated(epochs=100).settings).settings.batch_size == 8
    assert longer.settings.batch_size == 4
    assert longer.settings.optim.ema_ramp == 500  # a tenth of the steps of the longer run
    assert longer.continued_from == (f"{first.fingerprint}@40",)
    assert "recipe small: batch_size=4: as in the earlier run that is continued" in longer.notes
    assert "had fewer epochs and is continued" in claim_run(longer, None)
    assert with_earlier_run(stated(epochs=100), fit=fit) == longer
    assert with_earlier_run(stated(epochs=100, batch_size=8), fit=fit).continued_from == ()
    assert with_earlier_run(stated(epochs=100, optim={"lr0": 0.1}), fit=fit).continued_from == ()


def test_a_continued_run_of_other_code_is_not_repeated_from_the_beginning_under_its_name(job: TrainJob) -> None:
    claim_run(job, None)
    for name in ("checkpoint-000000009.pt", "weights.safetensors"):
        (job.run_folder / name).write_bytes(b"tensors")
    (job.run_folder / "epochs.jsonl").write_text('{"epoch": 300, "epochs": 300}\n')
    plain = job.model_copy(update={"settings": TrainSettings(epochs=400)})
    longer = with_history(plain, job.run_folder)
    assert longer.continued_from == (f"{job.fingerprint}@300",)
    claim_run(longer, None)
    assert not (job.run_folder / "weights.safetensors").exists()
    (job.run_folder / "weights.safetensors").write_bytes(b"tensors")
    write_code("two")
    with pytest.raises(ArtifactError, match="run the same command again to train from the beginning"):
        claim_run(longer, None)
    assert with_history(plain, job.run_folder) == plain
    assert "starts from the beginning" not in claim_run(plain, None)


def test_a_finished_copy_of_other_code_is_not_used(job: TrainJob, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    copy = RunCopy((tmp_path / "store").as_uri(), variant="nano", seed=0)
    claim_run(job, None)
    for name in ("checkpoint-000000009.pt", "weights.safetensors"):
        (job.run_folder / name).write_bytes(b"tensors")
    (tmp_path / "store/nano/0").mkdir(parents=True)  # object stores have no folders
    copy.send(job.run_folder)
    elsewhere = job.model_copy(update={"run_folder": tmp_path / "elsewhere/nano/0"})
    assert "was finished before" in claim_run(elsewhere, copy)
    again = job.model_copy(update={"run_folder": tmp_path / "again/nano/0"})
    write_code("two")
    assert "other code" in claim_run(again, copy)
    assert not (again.run_folder / "weights.safetensors").exists()


def test_a_copy_that_cannot_be_read_is_an_error_of_the_user(job: TrainJob) -> None:
    copy = RunCopy("unknown://bucket", variant="nano", seed=0)
    with pytest.raises(ArtifactError, match=r"^ray\.storage: unknown://bucket/nano/0 cannot be read"):
        claim_run(job, copy)


def test_a_finished_run_keeps_its_last_checkpoint_only(tmp_path: Path) -> None:
    for step in (900, 1000, 999999999):
        (tmp_path / f"checkpoint-{step:09d}.pt").write_bytes(b"tensors")
    (tmp_path / "weights.safetensors").write_bytes(b"tensors")
    delete_older_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-999999999.pt", "weights.safetensors"]
