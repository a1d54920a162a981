"""Training with a teacher: what it records, exact continuation, and several processes that share each batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.runs import (
    WORKER,
    Shared,
    assert_same,
    fix_statistics,
    make_job,
    prepared,
    read_weights,
    train_together,
)
from yolov7.data.index import load_index
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import resolve_spec
from yolov7.training.checkpoint import load_checkpoint
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS, fit
from yolov7.training.record import read_epochs, read_notes
from yolov7.weights.weight_files import load_weights, save_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("project"), train_images=10, val_images=3, image_size=64)


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider model with other anchors, which sees objects in many cells."""
    torch.manual_seed(5)
    spec = resolve_spec({"base": "nano", "image_size": 64}, name="wide")
    names = load_index(data / "train.npz").class_names
    model = DetectionModel(spec, num_classes=len(names))
    model.anchors_px = model.anchors_px * 1.25
    for conv in model.head.convs:  # type: ignore[union-attr]
        torch.nn.init.normal_(conv.bias)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(path, model, class_names=names, image_size=64, training={})
    return path


def distilled(data: Path, folder: Path, teacher: Path, *, gains: dict[str, float], **changes: Any) -> TrainJob:
    job = make_job(data, folder, distil={"teacher": teacher, **gains}, **changes)
    return job.model_copy(update={"teacher_hash": "of its content"})


def test_an_interrupted_run_ends_with_the_same_weights_and_leaves_no_adapters(
    data: Path, tmp_path: Path, teacher: Path
) -> None:
    gains = {"outputs": 1.0, "features": 2.0}
    whole, parts = (distilled(data, tmp_path / name, teacher, gains=gains, epochs=2) for name in ("whole", "parts"))
    fit(whole, WORKER)
    steps = iter(range(99))
    assert not fit(parts, WORKER, should_stop=lambda: next(steps) == 3)
    between = load_checkpoint(max(parts.run_folder.glob("checkpoint-*.pt"))).adapters
    assert fit(parts, WORKER)
    assert_same(read_weights(parts.run_folder), read_weights(whole.run_folder))
    ends = [load_checkpoint(max(job.run_folder.glob("checkpoint-*.pt"))) for job in (whole, parts)]
    assert_same(ends[0].adapters, ends[1].adapters)
    assert between.keys() == {"0.weight", "1.weight", "2.weight"}
    assert all(not torch.equal(between[name], ends[0].adapters[name]) for name in between)
    lines = [read_epochs(job.run_folder) for job in (whole, parts)]
    assert [line["distillation"] for line in lines[0]] == [line["distillation"] for line in lines[1]]
    assert all(0 < line["teacher_share"] < 1 for line in lines[0])
    weights = load_weights(whole.run_folder / WEIGHTS)
    assert weights.training["teacher"] == "of its content"
    assert len(weights.training["ancestors"]) == 1
    assert torch.equal(weights.model.anchors_px, load_weights(teacher).model.anchors_px)
    assert "the anchors are those of the teacher" in read_notes(whole.run_folder)


@pytest.mark.slow
def test_several_processes_imitate_like_one(
    data: Path, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten images, four a step: of the last two of an epoch, one of three workers has none."""
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {
        "epochs": 1,
        "multi_scale": 0.0,
        "optim": {"nominal_batch": 8, "warmup_epochs": 0},
        "loss": {"assigner": "anchor"},
    }
    gains = {"outputs": 1.0, "features": 1.0}
    alone, shared = (
        distilled(data, tmp_path / "runs" / name, teacher, gains=gains, **settings) for name in ("alone", "shared")
    )
    train_together(Shared(alone, 1, fix_statistics), Shared(shared, 3, fix_statistics))
    torch.testing.assert_close(read_weights(alone.run_folder), read_weights(shared.run_folder), rtol=1e-4, atol=2e-6)
    ends = [load_checkpoint(max(job.run_folder.glob("checkpoint-*.pt"))) for job in (alone, shared)]
    torch.testing.assert_close(ends[0].adapters, ends[1].adapters, rtol=1e-4, atol=2e-6)
    values = [read_epochs(job.run_folder)[0]["distillation"] for job in (alone, shared)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
