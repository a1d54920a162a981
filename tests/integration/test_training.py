"""The training loop on small real data: it learns, and a resumed run ends like an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.integration.runs import WORKER, assert_same, checkpoint_steps, prepared, read_weights
from tests.unit.exported import small_spec
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import load_spec, spec_to_json
from yolov7.training.job import TrainJob
from yolov7.training.loop import Trainer, fit
from yolov7.training.record import read_epochs, read_notes
from yolov7.training.start import frozen_rows
from yolov7.training.worker import Worker
from yolov7.weights.weight_files import save_weights

QUICK = {"epochs": 3, "batch_size": 4, "image_size": 96, "precision": "float32", "optim": {"nominal_batch": 8}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    return prepared(root, train_images=10, val_images=4, image_size=128)


def job(data: Path, run_folder: Path, *, spec: ModelSpec | None = None, **changes: object) -> TrainJob:
    return TrainJob(
        spec_json=spec_to_json(spec or load_spec("nano")),
        settings=TrainSettings.model_validate({**QUICK, **changes}),
        seed=3,
        data_folder=data,
        data_hash="the same",
        run_folder=run_folder,
    )


@pytest.mark.parametrize("recipe", [None, "ppyoloe"])
def test_a_resumed_run_ends_with_the_same_weights(data: Path, tmp_path: Path, recipe: str | None) -> None:
    """With the recipe of PP-YOLOE, the assigner changes after the first epoch, and the average is corrected."""
    spec = small_spec("ppyoloe") if recipe else load_spec("nano")
    whole, parts = (job(data, tmp_path / name, spec=spec, recipe=recipe) for name in ("whole", "parts"))
    fit(whole, WORKER)
    first = Trainer(parts, WORKER)
    first.resume()
    first.run_epoch()
    del first
    fit(parts, WORKER)
    assert_same(read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts"))
    assert [line["epoch"] for line in read_epochs(tmp_path / "parts")] == [1, 2, 3]


def test_the_norm_of_the_gradient_of_a_step_is_limited(data: Path, tmp_path: Path) -> None:
    moved = {}
    for limit in (0.0, 0.1):
        optim = {"nominal_batch": 4, "clip_norm": limit, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0.0}
        one = job(data, tmp_path / str(limit), spec=small_spec(), epochs=1, multi_scale=0.0, optim=optim)
        trainer = Trainer(one, WORKER)
        before = [parameter.detach().clone() for parameter in trainer._state.model.parameters()]
        trainer.resume()
        trainer.run_epoch()
        changes = [after - old for after, old in zip(trainer._state.model.parameters(), before, strict=True)]
        moved[limit] = float(torch.stack([change.detach().norm() for change in changes]).norm())
    steps = 3
    assert moved[0.1] <= 1.01 * steps * 0.01 * 0.1 < moved[0.0]


def test_frozen_rows_do_not_count_for_the_norm(data: Path, tmp_path: Path) -> None:
    """Rows that will be released have gradients, which are limited apart, because they enter the momentum."""
    weights, spec = tmp_path / "given.safetensors", small_spec()
    torch.manual_seed(3)
    model = DetectionModel(spec, num_classes=3)
    save_weights(weights, model, class_names=("a", "b", "c"), image_size=96, training={})
    options = {"freeze": "p3", "unfreeze_epochs": 2, "weights": weights}
    optim = {"nominal_batch": 4, "clip_norm": 0.1}
    trainer = Trainer(job(data, tmp_path / "run", spec=spec, optim=optim, **options), WORKER)
    state, norms = trainer._state, list[tuple[float, float]]()
    released = {id(parameter) for row in frozen_rows(state.model, last="p3") for parameter in row.parameters()}

    def note_norms(*_: object) -> None:
        parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for parameter in state.parameters():
            if parameter.grad is not None:
                parts[id(parameter) in released].append(parameter.grad)
        moving, frozen = (float(torch.nn.utils.get_total_norm(part)) for part in parts)
        norms.append((moving, frozen))

    state.optimizer.register_step_pre_hook(note_norms)
    trainer.resume()
    trainer.run_epoch()
    assert len(norms) == 3
    assert all(moving == pytest.approx(0.1, rel=1e-3) for moving, _ in norms)
    assert all(0.0 < frozen < 0.1001 for _, frozen in norms)


def test_the_same_seed_gives_the_same_weights_with_or_without_loader_processes(data: Path, tmp_path: Path) -> None:
    fit(job(data, tmp_path / "a", epochs=2), WORKER)
    fit(job(data, tmp_path / "b", epochs=2), Worker(device=torch.device("cpu"), loader_workers=2))
    assert_same(read_weights(tmp_path / "a"), read_weights(tmp_path / "b"))
    a, b = ([line["AP"] for line in read_epochs(tmp_path / name)] for name in "ab")
    assert a == b


def test_a_checkpoint_of_other_settings_is_not_resumed(data: Path, tmp_path: Path) -> None:
    fit(job(data, tmp_path, epochs=1), WORKER)
    other = Trainer(job(data, tmp_path, epochs=2), WORKER)
    other.resume()
    assert other.progress.epoch == 0
    assert checkpoint_steps(tmp_path) == [0]
    (note,) = read_notes(tmp_path)
    assert note.startswith("an earlier run in this folder, trained up to step 3, had other settings, data or starting")
    assert read_epochs(tmp_path) == []


def test_a_finished_run_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    fit(job(data, tmp_path, epochs=1), WORKER)
    before = read_epochs(tmp_path)
    last = Trainer(job(data, tmp_path, epochs=1), WORKER)
    last.resume()
    assert last.is_complete
    assert (last.progress.epoch, last.progress.batch, last.progress.step) == (1, 0, 3)
    assert fit(job(data, tmp_path, epochs=1), WORKER)
    assert checkpoint_steps(tmp_path) == [0, 3]
    assert read_epochs(tmp_path) == before


def test_the_loss_falls(data: Path, tmp_path: Path) -> None:
    optim = {"optimizer": "adamw", "lr0": 0.005, "momentum": 0.9, "nominal_batch": 4}
    fit(job(data, tmp_path, epochs=25, augment={"mosaic": 0.0, "scale": 0.0}, optim=optim), WORKER)
    box = [line["box"] for line in read_epochs(tmp_path)]
    assert np.mean(box[-3:]) < 0.85 * np.mean(box[:3])


def test_every_epoch_is_recorded_whole(data: Path, tmp_path: Path) -> None:
    fit(job(data, tmp_path, epochs=2, validate_every=2), WORKER)
    first, last = read_epochs(tmp_path)
    assert "AP" not in first
    assert 0 <= last["AP"] <= 1
    assert last["images_per_second"] > 0
    assert 0 <= last["loader_wait_share"] <= 1
    assert last["skipped_steps"] == 0


def test_multi_scale_and_bfloat16_train(data: Path, tmp_path: Path) -> None:
    fit(job(data, tmp_path, epochs=1, multi_scale=0.5, precision="bfloat16"), WORKER)
    assert all(torch.isfinite(value).all() for value in read_weights(tmp_path).values())


def test_an_image_that_ends_in_one_cell_trains_with_the_running_statistics(data: Path, tmp_path: Path) -> None:
    alone = Trainer(job(data, tmp_path / "alone", batch_size=1, image_size=32), WORKER)
    alone.resume()
    alone.run_epoch()
    assert alone.progress.step == 10
    counted = [n for name, n in alone._state.model.named_buffers() if name.endswith("num_batches_tracked")]
    assert not any(counted)


def test_settings_without_effect_on_the_result_may_change_in_between(data: Path, tmp_path: Path) -> None:
    changed = {"checkpoint_minutes": 1, "checkpoint_every": 2, "loader_workers": 1, "cache_images": "none"}
    assert job(data, tmp_path, **changed).fingerprint == job(data, tmp_path).fingerprint
    assert job(data, tmp_path, multi_scale=0.5).fingerprint != job(data, tmp_path).fingerprint
