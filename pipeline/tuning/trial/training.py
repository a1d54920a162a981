"""The training of one trial in one process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, final

from pipeline.tuning.budget.plan import SpeedSample
from yolov7.system.files import write_whole
from yolov7.system.settings_base import Settings
from yolov7.training.checkpoint import load_checkpoint, save_checkpoint
from yolov7.training.job import TrainJob
from yolov7.training.loop import Trainer, fit
from yolov7.training.record import read_epochs
from yolov7.training.worker import Worker
from yolov7.weights.weight_files import load_weights

SETTINGS_FILE = "settings.json"  # written by the process of a trial: the settings with which it trains
_STEPS_FILE = "steps.txt"
_NOTE_SECONDS = 0.5  # between two updates of the file
_MEASURED_STEPS = 5


class TrialTask(Settings):
    """What a process needs to train a trial.

    Attributes:
        job: The training.
        stop_file: When this file exists, training writes a checkpoint and ends.
        max_steps: Steps that the trial may do, including steps that are repeated after an interruption.
        deadline: When training ends, in seconds since the Unix epoch.
        warm_start: Weights to start from; tensors of other names and shapes are ignored.
    """

    job: TrainJob
    stop_file: Path
    max_steps: int | None = None
    deadline: float | None = None
    warm_start: Path | None = None


def train_trial(task: TrialTask, worker: Worker, *, report: Callable[[dict[str, Any]], None]) -> None:
    """Train from the last checkpoint of the trial until its end, the deadline or the stop file.

    Args:
        task: What to train.
        worker: The process that trains.
        report: Is called with `epoch`, `AP` and `steps` (all steps so far) of each validated epoch.
    """

    def is_past_deadline() -> bool:
        return task.deadline is not None and time.time() >= task.deadline

    counter = _StepCounter(task)
    if task.warm_start is not None:
        start_from_weights(task.job, task.warm_start, worker)
    reporter = _Reporter(task.job.run_folder, counter, report)

    def should_stop() -> bool:
        reporter.send_new()  # of an epoch that ended before this step
        counter.add_step()
        return counter.is_exhausted or task.stop_file.exists() or is_past_deadline()

    if not task.stop_file.exists() and not is_past_deadline():
        write_whole(task.job.run_folder / SETTINGS_FILE, task.job.settings.model_dump_json().encode())
        fit(task.job, worker, should_stop=should_stop)
    counter.save()
    reporter.send_new()


def read_steps(folder: Path) -> int:
    """Return how many steps a trial has done, including steps that were repeated after an interruption."""
    path = folder / _STEPS_FILE
    return int(path.read_text() or 0) if path.is_file() else 0


def start_from_weights(job: TrainJob, weights: Path, worker: Worker) -> None:
    """Write the first checkpoint of a run with the tensors of a weight file that have the right name and shape.

    A run that has a checkpoint already is not changed.
    """
    if list(job.run_folder.glob("checkpoint-*.pt")):
        return
    Trainer(job, worker).resume()
    path = next(job.run_folder.glob("checkpoint-*.pt"))
    given = load_weights(weights).model.state_dict()
    checkpoint = load_checkpoint(path)
    for state in (checkpoint.model, checkpoint.ema):
        state.update({name: given[name] for name in state if name in given and given[name].shape == state[name].shape})
    save_checkpoint(path, checkpoint)


def measure_speed(job: TrainJob, worker: Worker, *, training_gflops: float, began: float) -> SpeedSample:
    """Measure a few steps of a training, and remove its run folder.

    Args:
        job: The training.
        worker: The process that trains.
        training_gflops: GFLOPs of one forward pass of the model as it is trained.
        began: When the process was requested, in seconds since the Unix epoch.
    """
    times: list[float] = []

    def should_stop() -> bool:
        times.append(time.time())
        return len(times) > _MEASURED_STEPS

    fit(job, worker, should_stop=should_stop)
    shutil.rmtree(job.run_folder, ignore_errors=True)
    steps = sorted(later - earlier for earlier, later in pairwise(times))
    typical = steps[len(steps) // 2] if steps else times[0] - began
    return SpeedSample(training_gflops, times[0] - began, typical / job.settings.batch_size)


@final
class _StepCounter:
    """Count the steps of a trial over all its processes, in a file."""

    def __init__(self, task: TrialTask) -> None:
        self._path = task.job.run_folder / _STEPS_FILE
        self._max_steps = task.max_steps
        self._saved = time.monotonic()
        self.steps = read_steps(task.job.run_folder)

    @property
    def is_exhausted(self) -> bool:
        """Whether more steps were done than the trial may do, as can happen after a rollback."""
        return self._max_steps is not None and self.steps > self._max_steps

    def add_step(self) -> None:
        """Count a step."""
        self.steps += 1
        if time.monotonic() - self._saved > _NOTE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file."""
        self._saved = time.monotonic()
        write_whole(self._path, str(self.steps).encode(), durable=False)


@final
class _Reporter:
    """Report each validated epoch of a run's record once."""

    def __init__(self, folder: Path, counter: _StepCounter, report: Callable[[dict[str, Any]], None]) -> None:
        self._folder, self._counter, self._report = folder, counter, report
        self._epoch, self._size = 0, 0

    def send_new(self) -> None:
        """Report the epochs that were added since the last call."""
        record = self._folder / "epochs.jsonl"
        size = record.stat().st_size if record.is_file() else 0
        if size == self._size:
            return
        self._size = size
        for line in read_epochs(self._folder):
            if line["epoch"] > self._epoch and line.get("AP") is not None:
                self._epoch = line["epoch"]
                self._report({"epoch": line["epoch"], "AP": line["AP"], "steps": self._counter.steps})
