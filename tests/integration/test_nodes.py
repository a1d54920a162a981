"""A training on two Ray nodes loses nothing when workers, nodes, the driver or checkpoints are lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import yolov7.training.loop
from tests.integration.nodes import Cluster, Driver, Step, StepRecord, cluster, record_steps
from tests.integration.runs import WORKER, checkpoint_steps, fix_statistics, make_job, prepared, read_weights
from yolov7.training.job import TrainJob
from yolov7.training.loop import fit
from yolov7.training.record import read_epochs, read_notes
from yolov7.training.steps import Stepper

pytestmark = pytest.mark.slow

EPOCHS, IMAGES, STEPS = 30, 15, 120  # four steps an epoch, the last of three images
TRAIN: dict[str, Any] = {
    "epochs": EPOCHS,
    "multi_scale": 0.0,
    "validate_every": EPOCHS,
    "optim": {"nominal_batch": 8, "lr0": 0.002},
    "loss": {"assigner": "anchor"},  # the other assigner may choose other matches when the last digit differs
    "loader_workers": 0,
}
ELASTIC = {"workers": [1, 2], "placement": "SPREAD", "cpus_per_worker": 1, "max_failures": 5, "resize_seconds": 3}


def test_faults_on_two_nodes_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared(tmp_path, train_images=IMAGES, val_images=6, image_size=64)
    job = make_job(data, tmp_path / "runs" / "faults", **TRAIN)
    with cluster(tmp_path) as nodes:
        nodes.add_node()
        start_in_vain(nodes, data, tmp_path)
        faults = survive(nodes, job, StepRecord(tmp_path / "steps"))
    seen = StepRecord(tmp_path / "steps").final()
    assert list(seen) == list(range(STEPS))
    assert_each_image_once_an_epoch(seen)
    assert [line["epoch"] for line in read_epochs(job.run_folder)] == list(range(1, EPOCHS + 1))
    print(f"faults injected: {faults}, runs lost: 0")

    alone = make_job(data, tmp_path / "runs" / "alone", **TRAIN)
    train_undisturbed(alone, tmp_path / "steps alone", monkeypatch)
    assert StepRecord(tmp_path / "steps alone").final() == seen
    assert_alike(job, alone)


def start_in_vain(nodes: Cluster, data: Path, folder: Path) -> None:
    """Start trainings that cannot run: each ends in one line that names the remedy."""
    few = {"workers": 1, "cpus_per_worker": 1}
    vain = {
        "many": ({"workers": 3, "cpus_per_worker": 1, "start_timeout": 8}, "room for 2 of 3 workers with 1 CPUs each"),
        "version": (few, "it needs this version of Ray (2.0.0)"),
        "blind": (few, f"cannot access {folder / 'runs' / 'blind'} of the machine that started"),
    }
    jobs = {fault: make_job(data, folder / "runs" / fault, **TRAIN) for fault in vain}
    drivers = {
        fault: Driver(nodes, job, vain[fault][0], record=folder / "vain", fault=fault) for fault, job in jobs.items()
    }
    for fault, driver in drivers.items():
        *_, last = driver.output().strip().splitlines()
        assert vain[fault][1] in last
        assert driver.process.returncode == 1
    assert not (folder / "vain").exists()


def survive(nodes: Cluster, job: TrainJob, record: StepRecord) -> int:
    """Inject four faults, the last two at once; return their number."""

    def goes_on(driver: Driver, *, workers: int, steps: int = 4) -> list[Step]:
        """Wait until that many workers have done some more steps."""
        before = len(record.read())
        driver.wait_until(lambda: done_by(record.read()[before:], workers=workers) >= steps)
        return record.read()[before:]

    record.set_pace(8)
    driver = Driver(nodes, job, ELASTIC, record=job.run_folder.parents[1] / "steps")
    last = goes_on(driver, workers=2)
    os.kill(last[-1].pid, signal.SIGKILL)
    goes_on(driver, workers=2)
    nodes.kill_last_node()
    goes_on(driver, workers=1)
    nodes.add_node()
    goes_on(driver, workers=2)
    driver.kill()
    time.sleep(1)
    newest = job.run_folder / f"checkpoint-{max(checkpoint_steps(job.run_folder)):09d}.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    record.set_pace(STEPS)
    driver = Driver(nodes, job, ELASTIC, record=job.run_folder.parents[1] / "steps")
    said = driver.output()
    assert driver.process.returncode == 0, said
    assert any(note.startswith(f"checkpoint {newest} is damaged") for note in read_notes(job.run_folder))
    return 4


def assert_each_image_once_an_epoch(seen: dict[int, list[int]]) -> None:
    for first in range(0, STEPS, STEPS // EPOCHS):
        steps = range(first, first + STEPS // EPOCHS)
        assert sorted(image for step in steps for image in seen[step]) == list(range(IMAGES))


def done_by(shares: list[Step], *, workers: int) -> int:
    return len({share.step for share in shares if share.world_size == workers})


def train_undisturbed(job: TrainJob, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yolov7.training.loop, "set_training", yolov7.training.loop.set_training)
    monkeypatch.setattr(Stepper, "step", Stepper.step)
    fix_statistics()
    record_steps(record)
    fit(job.model_copy(update={"settings": job.settings.model_copy(update={"checkpoint_minutes": 60})}), WORKER)


def assert_alike(left: TrainJob, right: TrainJob) -> None:
    """Compare weights and figures; they may differ by the order in which float32 numbers are summed."""
    torch.testing.assert_close(read_weights(left.run_folder), read_weights(right.run_folder), rtol=1e-3, atol=1e-5)
    mine, theirs = read_epochs(left.run_folder)[-1], read_epochs(right.run_folder)[-1]
    for name in ("box", "objectness", "classification", "AP", "lr"):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5)
