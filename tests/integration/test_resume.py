"""A training that is killed at any moment and started again ends with the weights of an undisturbed one."""

from __future__ import annotations

import dataclasses
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import yolov7.training.job
from tests.integration.runs import (
    KILLS,
    WORKER,
    assert_same,
    checkpoint_steps,
    make_job,
    prepared,
    read_weights,
    start,
)
from yolov7.errors import ArtifactError
from yolov7.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS, Trainer, fit
from yolov7.training.record import read_epochs, read_notes
from yolov7.training.steps import Stepper
from yolov7.weights.weight_files import load_weights

STEPS = 12  # of a whole run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    return prepared(root, train_images=16, val_images=4, image_size=64)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert fit(make_job(data, folder), WORKER)
    return folder


def count_steps(patch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every step appends its number."""
    taken: list[int] = []
    real = Stepper.step

    def step(stepper: Stepper, *args: Any) -> None:
        taken.append(stepper._state.progress.step)
        real(stepper, *args)

    patch.setattr(Stepper, "step", step)
    return taken


def assert_ends_like(undisturbed: Path, folder: Path) -> None:
    assert_same(read_weights(folder), read_weights(undisturbed))
    figures = ("epoch", "box", "objectness", "classification", "AP", "AP50", "lr")
    left, right = ([{name: line[name] for name in figures} for line in read_epochs(f)] for f in (folder, undisturbed))
    assert left == right


def test_the_same_seed_gives_the_same_figures_and_weights_twice(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    fit(make_job(data, tmp_path), WORKER)
    assert_ends_like(undisturbed, tmp_path)


@pytest.mark.parametrize("stop_after", [1, 4, 7, STEPS])  # at the first step, an epoch's end, in one, at the last
def test_a_run_that_is_asked_to_stop_goes_on_from_there(
    data: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Gradients of two steps are summed, so a step after the last step of the optimizer is repeated."""
    taken = count_steps(monkeypatch)
    job = make_job(data, tmp_path, checkpoint_minutes=60)
    assert not fit(job, WORKER, should_stop=lambda: len(taken) == stop_after)
    saved = checkpoint_steps(tmp_path)[-1]
    assert stop_after - saved in (0, 1)
    taken.clear()
    assert fit(job, WORKER)
    assert taken == list(range(saved, STEPS))
    assert_ends_like(undisturbed, tmp_path)


def test_a_run_keeps_the_precision_with_which_it_began(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the machine that continues, `auto` would be another type."""
    job = make_job(data, tmp_path, epochs=2, precision="auto", multi_scale=0.0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    taken = count_steps(monkeypatch)
    assert not fit(job, WORKER, should_stop=lambda: len(taken) == 2)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert fit(job, WORKER)
    assert [line["precision"] for line in read_epochs(tmp_path)] == ["bfloat16", "bfloat16"]
    assert load_weights(tmp_path / WEIGHTS).training["precision"] == "bfloat16"


def test_a_run_that_continues_with_another_number_of_threads_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, taken = make_job(data, tmp_path, epochs=1), count_steps(monkeypatch)
    assert not fit(job, WORKER, should_stop=lambda: len(taken) == 2)
    path = max(tmp_path.glob("checkpoint-*.pt"))
    save_checkpoint(path, dataclasses.replace(load_checkpoint(path), threads=99))
    assert fit(job, WORKER)
    assert f"on {torch.get_num_threads()} instead of 99 threads" in read_notes(tmp_path)[-1]
    assert {line["threads"] for line in read_epochs(tmp_path)} == {torch.get_num_threads()}


def test_the_last_two_checkpoints_are_kept(undisturbed: Path) -> None:
    assert checkpoint_steps(undisturbed) == [STEPS - 2, STEPS]


def test_what_was_written_while_training_went_on_is_of_one_moment(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(make_job(data, tmp_path), WORKER)
    trainer.resume()
    (path,) = tmp_path.glob("checkpoint-*.pt")
    before = load_checkpoint(path)
    trainer.run_epoch()
    after = trainer._state.checkpoint(fingerprint="")
    assert before.step == 0
    assert not torch.equal(next(iter(after.model.values())), next(iter(before.model.values())))
    assert_same(load_checkpoint(tmp_path / "checkpoint-000000004.pt").model, after.model)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_text(path: Path) -> None:
    path.write_text("no checkpoint")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, replace_by_text])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_serves(
    tmp_path: Path, data: Path, undisturbed: Path, damage: Any
) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    newest = max(tmp_path.glob("checkpoint-*.pt"))
    damage(newest)
    said: list[str] = []
    found = Checkpoints(tmp_path, kept=2, report=said.append).newest()
    assert found is not None
    assert found.step == STEPS - 2
    assert len(said) == 1
    assert said[0].startswith(f"checkpoint {newest} is damaged (")


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    truncate(max(tmp_path.glob("checkpoint-*.pt")))
    (tmp_path / "weights.safetensors").unlink()
    assert fit(make_job(data, tmp_path), WORKER)
    assert read_notes(tmp_path)[-1] == f"continues after step {STEPS - 2} of {STEPS}"
    assert_ends_like(undisturbed, tmp_path)


def test_later_checkpoints_than_the_one_gone_back_to_are_deleted(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    older, newest = (load_checkpoint(path) for path in sorted(tmp_path.glob("checkpoint-*.pt")))
    assert (older.step, newest.step) == (STEPS - 2, STEPS)
    back = dataclasses.replace(older, progress={**older.progress, "step": STEPS - 1})
    checkpoints = Checkpoints(tmp_path, kept=2, report=print)
    checkpoints.save(back)
    checkpoints.wait()
    assert checkpoint_steps(tmp_path) == [STEPS - 2, STEPS - 1]


def test_a_process_that_may_be_taken_away_saves_often(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yolov7.training.loop, "_HURRIED_SECONDS", 0.0)
    job = make_job(data, tmp_path, epochs=1, checkpoint_minutes=60, optim={"nominal_batch": 4})
    saved: list[int] = []
    real = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, state: (saved.append(state.step), real(self, state)))
    fit(job, WORKER, should_hurry=lambda: len(saved) < 3)
    assert saved[:3] == [0, 1, 2]
    assert 3 not in saved[:-1]


def test_where_all_checkpoints_are_damaged_nothing_is_deleted(data: Path, tmp_path: Path) -> None:
    job = make_job(data, tmp_path, epochs=1)
    fit(job, WORKER)
    for path in tmp_path.glob("checkpoint-*.pt"):
        truncate(path)
    with pytest.raises(ArtifactError, match=rf"no other is left; delete {tmp_path} to train from the beginning"):
        fit(job, WORKER)
    assert len(checkpoint_steps(tmp_path)) == 2


def test_a_disk_that_is_full_for_a_while_is_told_and_survived(
    data: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yolov7.training.checkpoint as module

    real, written = module.write_whole, []

    def write(path: Path, content: bytes) -> None:
        written.append(path)
        if 2 <= len(written) <= 3:
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(module, "write_whole", write)
    fit(make_job(data, tmp_path), WORKER)
    notes = read_notes(tmp_path)
    assert len(notes) == 2
    assert "No space left on device" in notes[0]
    assert_ends_like(undisturbed, tmp_path)


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yolov7.training.checkpoint as module

    def write(path: Path, _: bytes) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(module, "write_whole", write)
    taken = count_steps(monkeypatch)
    with pytest.raises(OSError, match="Read-only file system"):
        fit(make_job(data, tmp_path), WORKER)
    assert taken == []


def test_two_trainings_do_not_write_into_one_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yolov7.training.job, "_PATIENCE", 0.3)
    job = make_job(data, tmp_path / "run")
    with (
        job.sole_writer(),
        pytest.raises(ArtifactError, match=r"the run folder .*run is in use by another process \(\d+\); wait"),
    ):
        fit(job, WORKER)
    fit(make_job(data, tmp_path / "run", epochs=1), WORKER)


@pytest.mark.slow
@pytest.mark.parametrize(("point", "at"), KILLS)
def test_a_run_killed_at_a_point_ends_as_if_nothing_had_been(
    data: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, point: str, at: int
) -> None:
    folder = tmp_path / "run"
    process = start(make_job(data, folder), point=point, at=at)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    finish_and_compare(make_job(data, folder), undisturbed, monkeypatch)


def finish_and_compare(job: TrainJob, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = max(checkpoint_steps(job.run_folder), default=0)
    taken = count_steps(monkeypatch)
    assert fit(job, WORKER)
    assert taken == list(range(saved, STEPS))
    assert_ends_like(undisturbed, job.run_folder)
    assert list(job.run_folder.glob(".*.tmp")) == []


@pytest.mark.slow
def test_a_run_killed_again_and_again_at_chance_moments_ends_as_if_nothing_had_been(
    data: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, kills = random.Random(0), 0
    job = make_job(data, tmp_path / "run")
    while kills < 25:
        process = start(job)
        process.join(generator.uniform(0.2, 2.0))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert kills > 2
    finish_and_compare(job, undisturbed, monkeypatch)


@pytest.mark.slow
def test_a_killed_writer_frees_its_folder_at_once(data: Path, tmp_path: Path) -> None:
    job = make_job(data, tmp_path / "run", epochs=200)
    process = start(job)
    deadline = time.monotonic() + 60
    while not checkpoint_steps(job.run_folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.join()
    began = time.monotonic()
    with job.sole_writer():
        assert time.monotonic() - began < 5
