"""Several processes that share each batch train like one process: same steps, gradients and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import yolov7.training.steps
from tests.integration.runs import Shared, fix_statistics, make_job, prepared, read_weights, train_together
from yolov7.criterion.loss import DetectionLoss
from yolov7.training.job import TrainJob
from yolov7.training.record import read_epochs

pytestmark = pytest.mark.slow

# ten images, four a step: three workers have 2, 1 and 1 of them, and of an epoch's last two images 1, 1 and none;
# two steps make a move, but for the last step's
UNEVEN: dict[str, Any] = {
    "epochs": 2,
    "multi_scale": 0.0,
    "optim": {"nominal_batch": 8, "warmup_epochs": 0},
    "loss": {"assigner": "anchor"},  # the other one turns the last digit of an untrained model into another match
}
FIGURES = ("epoch", "box", "objectness", "classification", "AP", "AP50", "lr", "skipped_steps")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("project"), train_images=10, val_images=10, image_size=64)


def count_all_reduces() -> None:
    """Write into a file per rank how often gradients were exchanged."""
    fix_statistics()

    rounds: list[int] = []

    def count(group, bucket):  # type: ignore[no-untyped-def]  # torch wants its own types, not their names
        if bucket.is_last():
            rounds.append(1)
            Path(f"rounds-{dist.get_rank()}").write_text(str(len(rounds)))
        return default_hooks.allreduce_hook(group, bucket)

    class Counting(DistributedDataParallel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_comm_hook(dist.group.WORLD, count)

    yolov7.training.steps.DistributedDataParallel = Counting  # type: ignore[misc]


def break_a_step() -> None:
    """Make the loss of the second step, after which the optimizer is due, NaN on one worker."""
    fix_statistics()
    real, calls = DetectionLoss.__call__, []

    def loss(self: DetectionLoss, *args: Any, **kwargs: Any) -> Any:
        parts = real(self, *args, **kwargs)
        calls.append(parts)
        is_one = dist.get_rank() == dist.get_world_size() - 1
        return parts._replace(total=parts.total * float("nan")) if len(calls) == 2 and is_one else parts

    DetectionLoss.__call__ = loss  # type: ignore[method-assign]


def count_statistics() -> None:
    """Leave batch norm unchanged."""


def assert_alike(left: TrainJob, right: TrainJob) -> None:
    """Compare weights and figures with a tolerance for the order of summation in float32."""
    mine, theirs = read_weights(left.run_folder), read_weights(right.run_folder)
    assert_close = torch.testing.assert_close
    assert_close(mine, theirs, rtol=1e-4, atol=2e-6)
    for one, other in zip(read_epochs(left.run_folder), read_epochs(right.run_folder), strict=True):
        assert {name: one[name] for name in FIGURES} == pytest.approx({name: other[name] for name in FIGURES}, rel=1e-4)


def test_uneven_and_empty_shares_and_a_skipped_step_train_as_in_one_process(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("alone", "shared", "broken alone", "broken shared")
    alone, shared, broken_alone, broken_shared = (make_job(data, tmp_path / "runs" / name, **UNEVEN) for name in names)
    one_cell = make_job(data, tmp_path / "runs" / "one cell", **UNEVEN | {"image_size": 32})  # of an image's last map
    train_together(
        Shared(alone, 1, fix_statistics),
        Shared(shared, 3, count_all_reduces),
        Shared(broken_alone, 1, break_a_step),
        Shared(broken_shared, 2, break_a_step),
        Shared(one_cell, 3, count_statistics),
    )
    assert_alike(alone, shared)
    assert [line["workers"] for line in read_epochs(shared.run_folder)] == [3, 3]
    assert [Path(f"rounds-{rank}").read_text() for rank in range(3)] == ["4"] * 3  # two moves an epoch of three steps
    assert_alike(broken_alone, broken_shared)
    assert read_epochs(broken_shared.run_folder)[0]["skipped_steps"] == 1
    assert [line["skipped_steps"] for line in read_epochs(one_cell.run_folder)] == [0, 0]
