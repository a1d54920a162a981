"""The final weights of a run: those of the best epoch or the mean of the last ones; and the end of patience."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.artifacts import NAMES, SMALL
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import resolve_spec
from yolov7.training.averaging import weights_id
from yolov7.training.final_weights import FinalModel, FinalWeights
from yolov7.training.record import RunRecord, best_line, final_line, read_epochs

MODEL = DetectionModel(resolve_spec(SMALL, name="small"), num_classes=len(NAMES))


def with_bias(value: float) -> DetectionModel:
    """Copy the model and mark the copy with a value."""
    model = copy.deepcopy(MODEL)
    model.head.convs[0].bias.data.fill_(value)  # type: ignore[union-attr, operator]
    return model


def bias_of(model: DetectionModel) -> float:
    return float(model.head.convs[0].bias.detach()[0])  # type: ignore[union-attr, operator]


def lines_of(*figures: float | None) -> list[dict[str, Any]]:
    return [{"epoch": i, "AP": ap} for i, ap in enumerate(figures, start=1)]


def keep_all(kept_weights: FinalWeights, lines: list[dict[str, Any]]) -> None:
    for i, line in enumerate(lines):
        epoch = line["epoch"]
        kept_weights.store_epoch(line, earlier=lines[:i], model=with_bias(epoch), ema=with_bias(10 * epoch))


def weights_of(folder: Path, **settings: Any) -> FinalWeights:
    stated = {"image_size": 64, "weights": "given.safetensors", **settings}
    return FinalWeights(folder, TrainSettings.model_validate(stated), class_names=NAMES)


def make(kept_weights: FinalWeights, lines: list[dict[str, Any]]) -> FinalModel:
    images = torch.rand(2, 1, 3, 64, 64)
    return kept_weights.make(lines, ema=MODEL, images=images, device=torch.device("cpu"))


def test_the_best_line_is_the_first_of_the_highest_ap() -> None:
    lines = lines_of(0.1, None, 0.3, 0.3, 0.2)
    assert best_line(lines) is lines[2]
    assert best_line(lines_of(None, None)) is None


def test_with_patience_the_best_epochs_average_is_kept_and_no_other(tmp_path: Path) -> None:
    lines = lines_of(0.1, 0.3, 0.3, 0.2)
    kept_weights = weights_of(tmp_path, patience=2)
    keep_all(kept_weights, lines)
    assert bias_of(make(kept_weights, lines).model) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000002.safetensors"]


@pytest.mark.parametrize("patience", [0, 9])
def test_the_mean_is_of_the_averages_of_the_best_epochs(tmp_path: Path, patience: int) -> None:
    lines = lines_of(0.3, 0.1, None, 0.4, 0.3, 0.2)
    kept_weights = weights_of(tmp_path, average_best=2, patience=patience)
    keep_all(kept_weights, lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-000001.safetensors", "epoch-000004.safetensors"]
    model, description = make(kept_weights, lines)
    assert bias_of(model) == 25
    assert description == "the mean of the moving averages of the epochs 1, 4"
    amended = [*lines[:-1], {**lines[-1], "AP": 0.9, "AP_before": 0.2}]  # a run that was killed at its very end
    assert bias_of(make(kept_weights, amended).model) == 25


def test_patience_ends_after_so_many_epochs_without_a_better_one(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, patience=2)
    assert not kept_weights.is_out_of_patience([])
    assert not kept_weights.is_out_of_patience(lines_of(0.1, 0.3, 0.3))
    assert kept_weights.is_out_of_patience(lines_of(0.1, 0.3, 0.3, 0.2))
    assert not kept_weights.is_out_of_patience(lines_of(0.1, 0.3, None, 0.31))
    assert not weights_of(tmp_path).is_out_of_patience(lines_of(0.3, 0.1, 0.1, 0.1))


def test_patience_does_not_end_where_ap_was_not_measured(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, patience=2)
    assert not kept_weights.is_out_of_patience(lines_of(None, None, None, 0.3, None, None, None))
    assert kept_weights.is_out_of_patience(lines_of(None, None, None, 0.3, None, None, None, 0.3))
    assert kept_weights.is_out_of_patience(lines_of(0.3, None, None, 0.3, None))


def test_the_mean_is_of_the_weights_of_the_last_epochs(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, epochs=4, swa_epochs=2)
    keep_all(kept_weights, lines_of(0.1, 0.2, 0.3, 0.4))
    assert bias_of(make(kept_weights, lines_of(0.1, 0.2, 0.3, 0.4)).model) == 3.5
    assert len(list(tmp_path.iterdir())) == 2


def test_without_either_nothing_is_kept(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, epochs=2)
    keep_all(kept_weights, lines_of(0.1, 0.2))
    assert list(tmp_path.iterdir()) == []
    model, description = make(kept_weights, lines_of(0.1, 0.2))
    assert model is MODEL
    assert description == ""


def test_a_mean_gets_new_statistics_but_for_frozen_rows(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, swa_epochs=2, epochs=2, freeze="p3")
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    lines = lines_of(0.1, 0.1)
    for i, line in enumerate(lines):
        kept_weights.store_epoch(line, earlier=lines[:i], model=MODEL, ema=MODEL)
    model, description = make(kept_weights, lines)
    assert description == "the mean of the weights of 2 epochs"
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)
    assert not any(name.startswith(("rows.s1.", "rows.p2.", "rows.p3.")) for name in changed)
    assert any(name.startswith("rows.p4.") for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())


@pytest.mark.parametrize(
    ("unfreeze_epochs", "kept"), [(1, set()), (4, {"s1", "s2", "p2"}), (99, {"s1", "s2", "p2", "p3"})]
)
def test_rows_that_were_released_get_new_statistics(tmp_path: Path, unfreeze_epochs: int, kept: set[str]) -> None:
    """The third of four epochs is the last one whose average is used; the row d3 has no batch norm."""
    settings: dict[str, Any] = {"average_best": 2, "epochs": 4, "freeze": "p3", "unfreeze_epochs": unfreeze_epochs}
    kept_weights, before = weights_of(tmp_path, **settings), MODEL.state_dict()
    lines = lines_of(0.1, 0.3, 0.4, 0.1)
    for i, line in enumerate(lines):
        kept_weights.store_epoch(line, earlier=lines[:i], model=MODEL, ema=MODEL)
    model, _ = make(kept_weights, lines)
    changed = {name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"s1", "s2", "p2", "p3"} - changed == kept


def test_a_kept_epoch_is_that_models_weights(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, patience=1)
    (line,) = lines_of(0.5)
    kept_weights.store_epoch(line, earlier=[], model=MODEL, ema=with_bias(7.0))
    kept = make(kept_weights, [line])
    assert weights_id(kept.model) == weights_id(with_bias(7.0))


def test_the_last_line_can_be_amended(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.start_after(0)
    for line in lines_of(0.1, 0.2):
        record.add_epoch(line)
    record.amend({"AP": 0.25, "AP50": 0.5})
    record.amend({"AP": 0.15, "AP50": 0.5})
    last = {"epoch": 2, "AP": 0.15, "AP50": 0.5, "AP_before": 0.2, "AP50_before": None}
    lines = read_epochs(tmp_path)
    assert lines == [{"epoch": 1, "AP": 0.1}, last]
    assert best_line(lines) == last  # its average was the best one
    assert final_line(lines, best=True) == last


def test_the_final_line_is_that_of_the_epoch_whose_weights_are_final() -> None:
    lines = lines_of(0.1, 0.3, 0.2)
    assert final_line(lines, best=True)["epoch"] == 2
    assert final_line(lines, best=False)["epoch"] == 3
    assert final_line(lines_of(None, None), best=True)["epoch"] == 2
