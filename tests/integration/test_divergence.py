"""Steps that are not finite are skipped without a trace and counted; many of them lead back to a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integration.runs import WORKER, assert_same, checkpoint_steps, make_job, prepared, read_weights
from yolov7.errors import TrainingError
from yolov7.structures import Batch
from yolov7.training.callbacks import Callback, RunState
from yolov7.training.checkpoint import load_checkpoint
from yolov7.training.loop import Trainer, fit
from yolov7.training.optim import build_schedule
from yolov7.training.record import read_epochs, read_notes
from yolov7.training.state import Progress
from yolov7.training.steps import Stepper

ONE_BY_ONE = {"nominal_batch": 4}  # the optimizer moves after every step
SPARING = {"checkpoint_minutes": 60, "validate_every": 100, "multi_scale": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    return prepared(root, train_images=16, val_images=4, image_size=64)


def spoil_images(patch: pytest.MonkeyPatch, spoilt: Callable[[Progress], bool]) -> None:
    """Replace the images of some steps by NaN."""
    real = Stepper._prepare

    def prepare_images(stepper: Stepper, images: Tensor) -> Tensor:
        prepared = real(stepper, images)
        return prepared * float("nan") if spoilt(stepper._state.progress) else prepared

    patch.setattr(Stepper, "_prepare", prepare_images)


def moving_parts(trainer: Trainer) -> dict[str, Any]:
    """Return all tensors of the state except the progress."""
    saved = trainer._state.checkpoint(fingerprint="")
    slots = {f"{i}.{name}": slot for i, state in saved.optimizer["state"].items() for name, slot in state.items()}
    average = {f"ema.{name}": value for name, value in saved.ema.items()}
    return {**saved.model, **average, **{name: value for name, value in slots.items() if isinstance(value, Tensor)}}


def test_a_batch_of_nan_images_leaves_no_trace(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(make_job(data, tmp_path, optim=ONE_BY_ONE, checkpoint_minutes=60), WORKER)
    trainer._state.model.train()
    batches = list(trainer._loader.epoch(0))
    trainer._stepper.step(batches[0])
    before, updates = moving_parts(trainer), trainer._state.ema.updates
    spoil_images(monkeypatch, lambda progress: progress.step == 1)
    trainer._stepper.step(batches[1])
    assert_same(moving_parts(trainer), before)
    assert trainer._state.ema.updates == updates == 1
    assert (trainer.progress.step, trainer.progress.batch, trainer.progress.skipped_steps) == (2, 2, 1)
    trainer._stepper.step(batches[2])
    assert trainer._stepper.last_step_succeeded
    assert all(torch.isfinite(value).all() for value in moving_parts(trainer).values())


def test_a_gradient_that_is_not_finite_moves_nothing(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(make_job(data, tmp_path, checkpoint_minutes=60), WORKER)
    trainer._state.model.train()
    batches = list(trainer._loader.epoch(0))
    before = moving_parts(trainer)
    parameter = next(trainer._state.model.parameters())
    hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
    trainer._stepper.step(batches[0])
    trainer._stepper.step(batches[1])
    hook.remove()
    assert_same(moving_parts(trainer), before)
    assert trainer._state.ema.updates == 0
    assert trainer.progress.skipped_steps == 2  # both that the gradient was summed over
    assert parameter.grad is None


def test_a_step_that_the_loss_scaler_skips_does_not_count_for_the_average(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(make_job(data, tmp_path, optim=ONE_BY_ONE, checkpoint_minutes=60), WORKER)
    trainer._state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, enabled=True)
    before = moving_parts(trainer)
    (first, second, *_) = trainer._loader.epoch(0)
    trainer._stepper.step(first)
    assert_same(moving_parts(trainer), before)
    assert trainer._state.ema.updates == 0
    assert trainer._state.scaler.get_scale() == 2.0**125
    trainer._state.scaler.update(new_scale=1024.0)
    trainer._stepper.step(second)
    assert trainer._state.ema.updates == 1


def test_skipped_steps_are_counted_in_the_record(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_images(monkeypatch, lambda progress: progress.step in (1, 6))
    fit(make_job(data, tmp_path, optim=ONE_BY_ONE, **SPARING), WORKER)
    assert [line["skipped_steps"] for line in read_epochs(tmp_path)] == [1, 2, 2]
    assert all(torch.isfinite(value).all() for value in read_weights(tmp_path).values())
    why = "because the loss or the gradient was not finite"
    assert read_notes(tmp_path) == [f"2 of 12 steps were skipped, {why}"]
    spoil_images(monkeypatch, lambda _: True)
    fit(make_job(data, tmp_path / "all", epochs=1, optim=ONE_BY_ONE, **SPARING), WORKER)
    (note,) = read_notes(tmp_path / "all")
    assert note == f"all 4 steps were skipped, {why}, so the weights are those from which training began"


class Steps(Callback):
    """Counts steps of the optimizer."""

    count = 0

    def on_step_end(self, run: RunState) -> None:
        self.count += 1


def test_callbacks_are_not_called_after_a_skipped_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_images(monkeypatch, lambda progress: progress.step == 1)
    real, steps = Stepper._add_gradients, Steps()

    def add_gradients(stepper: Stepper, batch: Batch) -> None:
        real(stepper, batch)
        if stepper._state.progress.step == 3:  # the last one of the first epoch
            gradient = next(stepper._state.model.parameters()).grad
            assert gradient is not None
            gradient.fill_(torch.inf)

    monkeypatch.setattr(Stepper, "_add_gradients", add_gradients)
    fit(make_job(data, tmp_path, epochs=2, optim=ONE_BY_ONE, **SPARING), WORKER, callbacks=[steps])
    updates = load_checkpoint(max(tmp_path.glob("checkpoint-*.pt"))).ema_updates
    assert steps.count == updates == 6


def test_after_many_skipped_steps_training_goes_back_and_on_with_half_the_rate(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_images(monkeypatch, lambda progress: progress.step >= 10 and progress.rollbacks == 0)
    job = make_job(data, tmp_path, epochs=9, optim=ONE_BY_ONE, **SPARING)
    fit(job, dataclasses.replace(WORKER, loader_workers=1))  # which has batches ready that are not wanted any more
    assert read_notes(tmp_path) == [
        "the loss was not finite in 20 steps in a row: training returns to the checkpoint of step 8, "
        "with half the learning rate",
        "20 steps were skipped, because the loss or the gradient was not finite",
    ]
    lines = read_epochs(tmp_path)
    assert [line["epoch"] for line in lines] == list(range(1, 10))
    assert [line["rollbacks"] for line in lines] == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    plans = build_schedule(job.settings.optim, batch_size=4, steps_per_epoch=4, epochs=9)
    assert [line["lr"] for line in lines[1:3]] == [plans.at(7).lr, plans.at(11).lr / 2]
    assert lines[-1]["skipped_steps"] == 20
    assert checkpoint_steps(tmp_path) == [32, 36]


def test_a_run_that_diverges_again_and_again_ends_with_a_remedy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_images(monkeypatch, lambda progress: progress.step >= 2)
    remedy = r"not finite in 20 steps in a row, also after 3 returns to a checkpoint .* lower optim\.lr0=0\.01"
    with pytest.raises(TrainingError, match=remedy):
        fit(make_job(data, tmp_path, epochs=20, **SPARING), WORKER)
    assert len(read_notes(tmp_path)) == 3


def test_a_learning_rate_that_is_far_too_high_is_told(data: Path, tmp_path: Path) -> None:
    optim = {**ONE_BY_ONE, "lr0": 1000, "warmup_epochs": 0}
    with pytest.raises(TrainingError, match=r"also after 3 returns to a checkpoint .* lower optim\.lr0=1000"):
        fit(make_job(data, tmp_path, epochs=20, optim=optim, **SPARING), WORKER)


def test_weights_that_are_not_finite_are_never_saved(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(make_job(data, tmp_path, epochs=1), WORKER)
    trainer.resume()
    trainer._after_step = lambda: next(trainer._state.model.parameters()).data.fill_(torch.inf)  # type: ignore[method-assign]
    with pytest.raises(Exception, match="the weights are not finite"):
        trainer.run_epoch()
    assert checkpoint_steps(tmp_path) == [0]
