"""Runs that end early, average epochs, freeze rows, or sample rare classes more often."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.commands.soup import make_soup
from tests.integration.runs import WORKER, assert_same, make_job, prepared, read_weights
from yolov7.data.index import load_index
from yolov7.errors import ArtifactError, SettingError
from yolov7.evaluation.split import evaluate_split
from yolov7.inference.engine import ModelEngine
from yolov7.settings import COCO_NMS
from yolov7.training.callbacks import Callback, RunState
from yolov7.training.loop import WEIGHTS, Trainer, fit
from yolov7.training.record import best_line, read_epochs, read_notes
from yolov7.training.validation import Validator
from yolov7.weights.weight_files import load_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    return prepared(root, train_images=8, val_images=3, image_size=64)


class Epochs(Callback):
    """Remembers the epochs that have ended."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    def on_epoch_end(self, run: RunState, figures: Any) -> None:
        assert figures["epoch"] == run.epoch
        self.ended.append(run.epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self.ended}

    def load_state_dict(self, state: Any) -> None:
        self.ended = list(state["ended"])


def measure(data: Path, folder: Path) -> float | None:
    model = load_weights(folder / WEIGHTS).model
    index = load_index(data / "val.npz")
    engine = ModelEngine(model, torch.float32)
    return evaluate_split(engine, index, image_size=64, batch_size=4, nms=COCO_NMS).figures.AP


def test_it_ends_when_patience_does_and_leaves_the_best_epochs_weights(data: Path, tmp_path: Path) -> None:
    optim = {"lr0": 1e-9, "warmup_bias_lr": 0.0, "nominal_batch": 8}  # nothing changes, so nothing gets better
    fit(make_job(data, tmp_path, epochs=9, patience=2, optim=optim), WORKER)
    lines = read_epochs(tmp_path)
    best = best_line(lines)
    assert best is not None
    assert lines[-1]["epoch"] == best["epoch"] + 2 < 9
    assert measure(data, tmp_path) == pytest.approx(best["AP"], abs=1e-6)
    assert any("has not improved for 2 epochs" in note for note in read_notes(tmp_path))


def test_a_run_out_of_patience_is_not_trained_on(data: Path, tmp_path: Path) -> None:
    optim = {"lr0": 1e-9, "warmup_bias_lr": 0.0, "nominal_batch": 8}
    job = make_job(data, tmp_path, epochs=9, patience=1, optim=optim)
    fit(job, WORKER)
    again = Trainer(job, WORKER)
    again.resume()
    assert again.is_complete


@pytest.mark.parametrize("checkpoint_every", [1, 9])
def test_a_run_that_patience_ended_is_completed_after_a_kill(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_every: int
) -> None:
    """The process is killed before the weights are written."""
    monkeypatch.setattr(Validator, "measure_average", lambda *_: {"AP": 0.5, "AP50": 0.5})
    job = make_job(data, tmp_path, epochs=9, patience=1, checkpoint_every=checkpoint_every)
    fit(job, WORKER, callbacks=[Epochs()])
    weights, lines = read_weights(tmp_path), read_epochs(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    again = Epochs()
    assert fit(job, WORKER, callbacks=[again])
    assert_same(read_weights(tmp_path), weights)
    assert load_weights(tmp_path / WEIGHTS).training["epochs"] == 2
    assert read_epochs(tmp_path) == lines
    assert again.ended == [1, 2]
    assert read_notes(tmp_path)[-1].startswith("ends after epoch 2: AP on the validation split has not improved for 1 ")


def test_patience_counts_from_measurement_to_measurement(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validator, "measure_average", lambda *_: {"AP": 0.5, "AP50": 0.5})
    fit(make_job(data, tmp_path, epochs=9, patience=2, validate_every=3, batch_size=8), WORKER)
    assert [line.get("AP") for line in read_epochs(tmp_path)] == [None, None, 0.5, None, None, 0.5]


def test_patience_and_best_epochs_need_something_to_watch(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.npz").write_bytes((data / "train.npz").read_bytes())
    for name in ("patience", "average_best"):
        with pytest.raises(SettingError, match=f"{name}=1 needs a validation split"):
            fit(make_job(folder, tmp_path / "run", **{name: 1}), WORKER)


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"swa_epochs": 2}, r"with the mean of the weights of 2 epochs,"),
        ({"average_best": 2}, r"with the mean of the moving averages of the epochs \d, \d,"),
    ],
    ids=["last", "best"],
)
def test_final_weights_are_measured_and_the_same_after_an_interruption(
    data: Path, tmp_path: Path, settings: dict[str, Any], note: str
) -> None:
    whole, parts = (make_job(data, tmp_path / name, **settings) for name in ("whole", "parts"))
    fit(whole, WORKER)
    lines, weights = read_epochs(whole.run_folder), read_weights(whole.run_folder)
    assert measure(data, whole.run_folder) == pytest.approx(lines[-1]["AP"], abs=1e-6)
    assert any(re.search(note, text) for text in read_notes(whole.run_folder))
    first = Trainer(parts, WORKER)
    first.resume()
    first.run_epoch()
    first.run_epoch()
    first._wait_for_checkpoint()
    del first
    fit(parts, WORKER)
    assert_same(read_weights(parts.run_folder), weights)
    (whole.run_folder / WEIGHTS).unlink()  # as if the process had been killed after it had amended the record
    fit(whole, WORKER)
    assert_same(read_weights(whole.run_folder), weights)
    assert read_epochs(whole.run_folder) == lines


def test_frozen_rows_end_as_they_began(data: Path, tmp_path: Path) -> None:
    fit(make_job(data, tmp_path / "began", epochs=1), WORKER)
    job = make_job(data, tmp_path / "run", epochs=1, freeze="p3", weights=tmp_path / "began" / WEIGHTS)
    began = read_weights(tmp_path / "began")
    fit(job, WORKER)
    ended = read_weights(tmp_path / "run")
    changed = {  # the average of equal numbers may differ in its last bit
        name.split(".")[1]
        for name, value in ended.items()
        if not torch.allclose(value, began[name], rtol=1e-6, atol=1e-7)
    }
    assert changed.isdisjoint({"s1", "s2", "p2", "d3", "p3"})
    assert {"p4", "n3", "h5"} <= changed


def test_the_options_of_fine_tuning_and_muon_are_the_same_after_an_interruption(data: Path, tmp_path: Path) -> None:
    fit(make_job(data, tmp_path / "began", epochs=1), WORKER)
    optim = {"optimizer": "muon", "lr0": 0.002, "layer_decay": 0.9, "nominal_batch": 8, "clip_norm": 10.0}
    options: dict[str, Any] = {"freeze": "p3", "unfreeze_epochs": 2, "freeze_batch_norm": True, "optim": optim}
    options |= {"low_resolution_share": 0.4, "loss": {"four_cells": True}, "weights": tmp_path / "began" / WEIGHTS}
    fit(make_job(data, tmp_path / "whole", **options), WORKER)
    first = Trainer(make_job(data, tmp_path / "parts", **options), WORKER)
    first.resume()
    first.run_epoch()
    first._wait_for_checkpoint()
    del first
    fit(make_job(data, tmp_path / "parts", **options), WORKER)
    began, ended = read_weights(tmp_path / "began"), read_weights(tmp_path / "whole")
    assert_same(ended, read_weights(tmp_path / "parts"))
    statistics = [name for name in began if "running" in name]
    assert all(torch.allclose(began[name], ended[name], rtol=1e-6) for name in statistics)
    kernels = [name for name in began if name.startswith("rows.s1.") and began[name].dim() == 4]
    assert not any(
        torch.allclose(began[name], ended[name], rtol=1e-6) for name in kernels
    )  # released in the last epoch


def test_the_weights_say_where_they_come_from(data: Path, tmp_path: Path) -> None:
    fit(make_job(data, tmp_path / "a", epochs=1), WORKER)
    fit(make_job(data, tmp_path / "b", epochs=1, augment={"mosaic": 0.0}), WORKER)
    ours, theirs = (load_weights(tmp_path / name / WEIGHTS).training["ancestors"] for name in ("a", "b"))
    assert ours == theirs  # one seed, one beginning
    assert len(ours) == 1


def test_balanced_sampling_and_pasting_train(data: Path, tmp_path: Path) -> None:
    augment = {"mosaic_nine": 0.5, "paste_in": 1.0, "copy_paste": 0.5}
    fit(make_job(data, tmp_path, epochs=1, class_balance=0.9, augment=augment), WORKER)
    assert all(torch.isfinite(value).all() for value in read_weights(tmp_path).values())


def test_what_is_fine_tuned_from_one_file_makes_a_soup_and_what_is_not_does_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data.parents[1])
    fit(make_job(data, tmp_path / "base", epochs=1), WORKER)
    base = tmp_path / "base" / WEIGHTS
    for name, rate in (("a", 0.001), ("b", 0.01)):
        changes = {"epochs": 1, "weights": base, "augment": {"mosaic": 0.0}, "optim": {"lr0": rate, "nominal_batch": 8}}
        fit(make_job(data, tmp_path / name, **changes), WORKER)
    tuned = [tmp_path / name / WEIGHTS for name in ("a", "b")]
    make_soup(tuned, output=tmp_path / "soup.safetensors", greedy=True)
    make_soup([*tuned, base], output=tmp_path / "soup.safetensors", greedy=False)
    assert "mean of all" in capsys.readouterr().out
    fit(make_job(data, tmp_path / "other", epochs=1).model_copy(update={"seed": 4}), WORKER)
    with pytest.raises(ArtifactError, match="not trained from the same weights"):
        make_soup([base, tmp_path / "other" / WEIGHTS], output=tmp_path / "no.safetensors", greedy=False)
