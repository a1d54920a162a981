"""One worker on this machine: Ray Train's local mode in a process that may be killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.params import RaySettings
from pipeline.ray.errors import ClusterError
from pipeline.ray.trainer import train_with_ray
from tests.integration.runs import WORKER, assert_same, make_job, prepared, read_weights
from yolov7.errors import TrainingError
from yolov7.training.job import TrainJob
from yolov7.training.loop import fit
from yolov7.training.record import read_notes, read_progress


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    return prepared(root, train_images=16, val_images=4, image_size=64)


@pytest.fixture
def job(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainJob:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "run").mkdir()
    return make_job(data, tmp_path / "run", loader_workers=1)


def killing(job: TrainJob, *, times: int) -> Callable[[], None]:
    """Return a function that kills the training process, once it has trained, for some times."""
    killed: set[int] = set()

    def tick() -> None:
        has_saved = read_progress(job.run_folder).get("step", 0) >= 4
        process = int(job.run_folder.with_name("run.lock").read_text() or 0) if has_saved else 0
        if process and process not in killed and len(killed) < times:
            killed.add(process)
            os.kill(process, signal.SIGKILL)

    return tick


def train(job: TrainJob, *, max_failures: int, on_tick: Callable[[], None] = lambda: None) -> None:
    train_with_ray(job, RaySettings(cpus_per_worker=1, max_failures=max_failures), on_tick=on_tick)


def test_a_killed_process_is_replaced_and_the_weights_are_those_of_the_loop(job: TrainJob, tmp_path: Path) -> None:
    sigterm = signal.getsignal(signal.SIGTERM)
    long = job.model_copy(update={"settings": job.settings.model_copy(update={"epochs": 12})})
    train(long, max_failures=1, on_tick=killing(long, times=1))
    signal.signal(signal.SIGTERM, sigterm)
    assert "the training process was ended by signal 9 and starts again" in read_notes(job.run_folder)
    assert any(note.startswith("continues after step ") for note in read_notes(job.run_folder))
    fit(long.model_copy(update={"run_folder": tmp_path / "direct"}), WORKER)
    assert_same(read_weights(job.run_folder), read_weights(tmp_path / "direct"))


def in_thread(call: Callable[[], None]) -> BaseException | None:
    """Call outside of the main thread, whose SIGTERM then keeps its meaning; return the error that was raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_a_process_that_is_killed_too_often_is_an_error_of_one_line(job: TrainJob) -> None:
    long = job.model_copy(update={"settings": job.settings.model_copy(update={"epochs": 500})})
    error = in_thread(lambda: train(long, max_failures=0, on_tick=killing(long, times=1)))
    assert isinstance(error, TrainingError)
    assert "ended without an error of their own, 1 times (ray.max_failures=0): the last one was ended by" in str(error)


def test_an_error_of_the_process_is_raised_with_its_traceback(job: TrainJob) -> None:
    error = in_thread(lambda: train(job.model_copy(update={"seed": "no number"}), max_failures=1))
    assert isinstance(error, RuntimeError)
    assert "in work\n" in error.__notes__[0]
    assert len(read_notes(job.run_folder)) == 1


def test_what_this_machine_lacks_is_told(job: TrainJob) -> None:
    settings = RaySettings(gpus_per_worker=64)
    error = in_thread(lambda: train_with_ray(job, settings, on_tick=lambda: None))
    assert isinstance(error, ClusterError)
    assert "there is room for 0 of 1 workers with" in str(error)
