"""The folder of a run is removed once its result is safe, and no other run's folder is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.artifacts.files import run_folder, stage_folder, write_json
from pipeline.experiment import ResolvedVariant, parse_experiment
from pipeline.ray.mirror import RunCopy
from pipeline.stages.train import claim_run, forget_run
from tests.artifacts import train_summary
from yolov7.errors import ArtifactError
from yolov7.settings import TrainSettings
from yolov7.training.checkpoint import delete_older_checkpoints
from yolov7.training.continuation import with_history
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


def test_a_run_of_other_settings_is_discarded(job: TrainJob) -> None:
    claim_run(job, None)
    (job.run_folder / "weights.safetensors").write_bytes(b"tensors")
    other = job.model_copy(update={"seed": 1})
    assert claim_run(other, None) == "an earlier run had other data or settings; training starts from the beginning"
    assert not (job.run_folder / "weights.safetensors").exists()


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
