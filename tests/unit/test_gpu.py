"""What a GPU computes equals what the CPU computes: assigner, suppression, training steps, CUDA graphs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.bench.gpu_cases import equality
from tests.bench.gpu_setup import find_setup, load
from tests.bench.gpu_training import Graphed, TrainingStep, Way
from tests.integration.runs import make_job, prepared
from yolov7.training.loop import fit
from yolov7.training.record import read_epochs
from yolov7.training.worker import Worker

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply float32 numbers with all their digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_assigner_and_suppression_give_equal_results() -> None:
    assert [row.figure for row in equality(find_setup())] == ["equal results"] * 2


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_of_a_step_are_those_of_the_cpu(order: torch.memory_format) -> None:
    setup, way = find_setup(), Way("", torch.float32, order)
    cpu = replace(setup, device=torch.device("cpu"))
    expected, found = (TrainingStep(s, load("nano"), way, batch=2, size=64).gradients() for s in (cpu, setup))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3 * float(one.abs().max()) + 1e-6)


def test_gradients_with_cuda_graphs_are_those_without() -> None:
    setup = find_setup()
    plain = Way("", torch.float32)
    graphed = plain._replace(wrap=partial(Graphed, dtype=torch.float32))
    expected, found = (TrainingStep(setup, load("nano"), way, batch=2, size=64).gradients() for way in (plain, graphed))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3 * float(one.abs().max()) + 1e-6)


def test_a_training_on_the_gpu_has_the_losses_of_one_on_the_cpu(tmp_path: Path) -> None:
    data = prepared(tmp_path / "project", train_images=8, val_images=4, image_size=64)
    losses = []
    for device in ("cpu", "cuda"):
        job = make_job(data, tmp_path / "runs" / device, epochs=1, multi_scale=0.0, precision="float32")
        assert fit(job, Worker(device=torch.device(device)))
        (line,) = read_epochs(job.run_folder)
        losses.append([line[name] for name in ("box", "objectness", "classification")])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
