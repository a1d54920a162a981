"""The final weights of a run: those of the best epoch or the mean of the last ones; and the end of patience."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from tests.artifacts import NAMES, SMALL
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import resolve_spec
from yolov7.training.averaging import weights_id
from yolov7.training.final_weights import FinalWeights
from yolov7.training.record import RunRecord, best_line, read_epochs

MODEL = DetectionModel(resolve_spec(SMALL, name="small"), num_classes=len(NAMES))


def with_bias(value: float) -> DetectionModel:
    """Copy the model and mark the copy with a value."""
    model = copy.deepcopy(MODEL)
    model.head.convs[0].bias.data.fill_(value)  # type: ignore[union-attr, operator]
    return model


def bias_of(model: DetectionModel | None) -> float:
    assert model is not None
    return float(model.head.convs[0].bias.detach()[0])  # type: ignore[union-attr, operator]


def lines_of(*figures: float | None) -> list[dict[str, Any]]:
    return [{"epoch": i, "AP": ap} for i, ap in enumerate(figures, start=1)]


def keep_all(kept_weights: FinalWeights, lines: list[dict[str, Any]]) -> None:
    for i, line in enumerate(lines):
        epoch = line["epoch"]
        kept_weights.store_epoch(line, earlier=lines[:i], model=with_bias(epoch), ema=with_bias(10 * epoch))


def weights_of(folder: Path, **settings: Any) -> FinalWeights:
    return FinalWeights(folder, TrainSettings.model_validate({"image_size": 64, **settings}), class_names=NAMES)


def test_the_best_line_is_the_first_of_the_highest_ap() -> None:
    lines = lines_of(0.1, None, 0.3, 0.3, 0.2)
    assert best_line(lines) is lines[2]
    assert best_line(lines_of(None, None)) is None


def test_with_patience_the_best_epochs_average_is_kept_and_no_other(tmp_path: Path) -> None:
    lines = lines_of(0.1, 0.3, 0.3, 0.2)
    kept_weights = weights_of(tmp_path, patience=2)
    keep_all(kept_weights, lines)
    assert bias_of(kept_weights.load_best(lines)) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["best-000002.safetensors"]


def test_patience_ends_after_so_many_epochs_without_a_better_one(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, patience=2)
    assert not kept_weights.is_out_of_patience([])
    assert not kept_weights.is_out_of_patience(lines_of(0.1, 0.3, 0.3))
    assert kept_weights.is_out_of_patience(lines_of(0.1, 0.3, 0.3, 0.2))
    assert not kept_weights.is_out_of_patience(lines_of(0.1, 0.3, None, 0.31))
    assert not weights_of(tmp_path).is_out_of_patience(lines_of(0.3, 0.1, 0.1, 0.1))


def test_the_mean_is_of_the_weights_of_the_last_epochs(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, epochs=4, swa_epochs=2)
    keep_all(kept_weights, lines_of(0.1, 0.2, 0.3, 0.4))
    mean = kept_weights.average_last_epochs(torch.rand(2, 1, 3, 64, 64), device=torch.device("cpu"))
    assert bias_of(mean) == 3.5
    assert len(list(tmp_path.iterdir())) == 2


def test_without_either_nothing_is_kept(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, epochs=2)
    keep_all(kept_weights, lines_of(0.1, 0.2))
    assert list(tmp_path.iterdir()) == []
    assert kept_weights.average_last_epochs([], device=torch.device("cpu")) is None
    assert kept_weights.load_best(lines_of(0.1, 0.2)) is None


def test_a_kept_epoch_is_that_models_weights(tmp_path: Path) -> None:
    kept_weights = weights_of(tmp_path, patience=1)
    (line,) = lines_of(0.5)
    kept_weights.store_epoch(line, earlier=[], model=MODEL, ema=with_bias(7.0))
    kept = kept_weights.load_best([line])
    assert kept is not None
    assert weights_id(kept) == weights_id(with_bias(7.0))


def test_the_last_line_can_be_amended(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.start_after(0)
    for line in lines_of(0.1, 0.2):
        record.add_epoch(line)
    record.amend({"AP": 0.25, "AP50": 0.5})
    assert read_epochs(tmp_path) == [{"epoch": 1, "AP": 0.1}, {"epoch": 2, "AP": 0.25, "AP50": 0.5}]
