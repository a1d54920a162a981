"""Training runs of one or two seconds, and processes that are killed at a chosen point of a run."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import yolov7.training.loop
import yolov7.training.validation
from pipeline.data_settings import DataSettings, SyntheticSettings
from pipeline.stages.prepare import prepare
from tests.artifacts import SMALL
from yolov7.settings import TrainSettings
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS, fit
from yolov7.training.record import RunRecord
from yolov7.training.worker import Worker
from yolov7.weights.weight_files import load_weights

QUICK: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "image_size": 64,
    "precision": "float32",
    "multi_scale": 0.4,
    "checkpoint_minutes": 0,  # one after every move of the optimizer
    "optim": {"nominal_batch": 8, "ema_ramp": 10},
}
WORKER = Worker(device=torch.device("cpu"))
_PROCESSES = multiprocessing.get_context("forkserver")  # a fork of this process could not compute gradients
_PROCESSES.set_forkserver_preload([__name__])


def prepared(root: Path, *, train_images: int, val_images: int, image_size: int) -> Path:
    """Prepare embedded data below `root` and return their folder."""
    synthetic = SyntheticSettings(train_images=train_images, val_images=val_images, image_size=image_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        prepare(DataSettings(synthetic=synthetic))
    return root / "artifacts" / "prepare"


def make_job(data: Path, run_folder: Path, **changes: Any) -> TrainJob:
    """Describe a run of a narrow model."""
    return TrainJob(
        spec_json=spec_to_json(resolve_spec(SMALL, name="small")),
        settings=TrainSettings.model_validate({**QUICK, **changes}),
        seed=3,
        data_folder=data,
        data_hash="the same",
        run_folder=run_folder,
    )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / WEIGHTS).model.state_dict()


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


def checkpoint_steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in folder.glob("checkpoint-*.pt"))


def start(job: TrainJob, *, point: str = "", at: int = 0) -> BaseProcess:
    """Start a process that trains and kills itself when it reaches a point for the `at`-th time."""
    process = _PROCESSES.Process(target=_train, args=(job.model_dump_json(), point, at))
    process.start()
    return process


@dataclass(frozen=True)
class Shared:
    """A run in several processes, each of which calls `prelude`, a function of a module, before."""

    job: TrainJob
    world_size: int
    prelude: Callable[[], None]


def train_together(*runs: Shared) -> None:
    """Train one run after the other, each in new processes."""
    process = _PROCESSES.Process(target=_train_all, args=(runs,))
    process.start()
    process.join(300)
    process.kill()
    process.join()
    assert process.exitcode == 0


def fix_statistics() -> None:
    """Train with batch norm in evaluation mode, so that images do not influence each other's gradients."""

    def set_training(model: nn.Module, settings: TrainSettings, *, epoch: int) -> None:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    yolov7.training.loop.set_training = set_training


def _train_all(runs: tuple[Shared, ...]) -> None:
    importlib.import_module("torch.distributed.fsdp")  # takes seconds, which every process would need otherwise
    for run in runs:
        run.job.run_folder.mkdir(parents=True)
        fork = multiprocessing.get_context("fork")
        ranks = [fork.Process(target=_train_rank, args=(run, rank), daemon=True) for rank in range(run.world_size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0] * run.world_size


def _train_rank(run: Shared, rank: int) -> None:
    torch.set_num_threads(1)
    run.prelude()
    meeting, world_size = f"file://{run.job.run_folder / 'meeting'}", run.world_size
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    fit(run.job, Worker(device=torch.device("cpu"), rank=rank, world_size=world_size))
    dist.destroy_process_group()


def _train(job: str, point: str, at: int) -> None:
    torch.set_num_threads(1)
    if point:
        POINTS[point](_Countdown(at))
    fit(TrainJob.model_validate_json(job), WORKER)


class _Countdown:
    """Kills the process when it is called for a given time."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def __call__(self) -> None:
        if self.is_over():
            os.kill(os.getpid(), signal.SIGKILL)

    def is_over(self) -> bool:
        self._left -= 1
        return self._left == 0


def _before(owner: Any, name: str) -> Callable[[_Countdown], None]:
    def install(countdown: _Countdown) -> None:
        real = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            countdown()
            return real(*args, **kwargs)

        setattr(owner, name, patched)

    return install


def _after(owner: Any, name: str) -> Callable[[_Countdown], None]:
    def install(countdown: _Countdown) -> None:
        real = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            countdown()
            return result

        setattr(owner, name, patched)

    return install


def _half_a_file(countdown: _Countdown) -> None:
    real = os.fsync

    def patched(descriptor: int) -> None:
        if countdown.is_over():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = patched


def _half_a_line(countdown: _Countdown) -> None:
    real = RunRecord.add_epoch

    def patched(record: RunRecord, line: dict[str, Any]) -> None:
        if countdown.is_over():
            with (record._folder / "epochs.jsonl").open("a") as file:
                file.write('{"epoch": ')
            os.kill(os.getpid(), signal.SIGKILL)
        real(record, line)

    RunRecord.add_epoch = patched  # type: ignore[method-assign]


POINTS: dict[str, Callable[[_Countdown], None]] = {
    "in the backward pass": _before(torch.Tensor, "backward"),
    "after the optimizer, before the average": _before(torch, "_foreach_mul_"),
    "with half a checkpoint written": _half_a_file,
    "with a checkpoint written but not in place": _before(os, "replace"),
    "with a checkpoint in place": _after(os, "replace"),
    "in validation": _before(yolov7.training.validation, "evaluate_split"),
    "after validation": _after(yolov7.training.validation, "evaluate_split"),
    "with half an epoch recorded": _half_a_line,
    "with an epoch recorded": _after(RunRecord, "add_epoch"),
    "before the weights are written": _before(yolov7.training.loop, "save_weights"),
    "after the weights are written": _after(yolov7.training.loop, "save_weights"),
}

_OF_AN_EPOCH = ("in validation", "after validation", "with half an epoch recorded", "with an epoch recorded")
_OF_THE_RUN = ("before the weights are written", "after the weights are written")
KILLS = [
    (point, at)
    for point in POINTS
    for at in ((1,) if point in _OF_THE_RUN else (1, 2, 3) if point in _OF_AN_EPOCH else (1, 2, 5))
]
