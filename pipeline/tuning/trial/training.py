"""The training of one trial in one process, and the check of the model that it left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import torch

from pipeline.tuning.budget.plan import SpeedSample
from pipeline.tuning.search.space import Candidate
from yolov7.data.index import load_index
from yolov7.nn.cost import count_parameters
from yolov7.nn.model import DetectionModel
from yolov7.settings import Settings
from yolov7.spec.spec_files import spec_from_json
from yolov7.system.files import write_whole
from yolov7.training.anchors import differ_in_anchors_only
from yolov7.training.checkpoint import load_checkpoint, save_checkpoint
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS, Trainer, fit
from yolov7.training.record import best_line, final_line, read_epochs
from yolov7.training.worker import Worker
from yolov7.weights.weight_files import first_difference, load_weights

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


def final_ap(job: TrainJob) -> float | None:
    """Return the AP of the weights that a complete run left, or None if it was not measured.

    These are the weights of the last epoch, or of the best ones if the settings ask for them.
    """
    lines = read_epochs(job.run_folder)
    AP = final_line(lines, best=job.settings.best_epochs > 0).get("AP") if lines else None
    return None if AP is None else float(AP)


def find_mismatch(candidate: Candidate, job: TrainJob) -> str:
    """Compare the model that a trial left with the model that was sampled.

    Training may fit the anchors to the data, and `patience` may end it before its last epoch; neither is a mismatch.

    Args:
        candidate: The sampled model.
        job: The training.

    Returns:
        The first difference, or an empty string if there is none.
    """
    path = job.run_folder / WEIGHTS
    if not path.is_file():
        return _find_checkpoint_mismatch(candidate, job)
    weights = load_weights(path)
    sampled, trained = spec_from_json(candidate.spec_json), weights.model.spec
    same = sampled == trained if job.settings.anchors == "spec" else differ_in_anchors_only(sampled, trained)
    if not same:
        names = [name for name, row in sampled.rows.items() if trained.rows.get(name) != row]
        return f"the trained spec differs from the sampled one (rows: {', '.join(names) or 'other ones'})"
    pairs = {
        "parameters": (candidate.parameters, count_parameters(weights.model)),
        "image_size": (candidate.image_size, weights.image_size),
        "fingerprint": (job.fingerprint, weights.training.get("fingerprint")),
    }
    if not _ended_by_patience(job, epochs=weights.training.get("epochs")):
        pairs["epochs"] = (job.settings.epochs, weights.training.get("epochs"))
    different = [f"{name} of the sampled model is {a}, but {b} was trained" for name, (a, b) in pairs.items() if a != b]
    return different[0] if different else ""


def _ended_by_patience(job: TrainJob, *, epochs: object) -> bool:
    lines = read_epochs(job.run_folder)
    best = best_line(lines) if job.settings.patience else None
    return best is not None and lines[-1]["epoch"] == epochs and epochs - best["epoch"] >= job.settings.patience


def _find_checkpoint_mismatch(candidate: Candidate, job: TrainJob) -> str:
    """Compare the checkpoint of a trial that did not reach its end."""
    paths = sorted(job.run_folder.glob("checkpoint-*.pt"))
    if not paths:
        return "the trial left neither weights nor a checkpoint"
    checkpoint = load_checkpoint(paths[-1])
    if checkpoint.fingerprint != job.fingerprint:
        return f"fingerprint of the sampled model is {job.fingerprint}, but {checkpoint.fingerprint} was trained"
    num_classes = len(load_index(job.data_folder / "train.npz").class_names)
    with torch.device("meta"):
        sampled = DetectionModel(spec_from_json(candidate.spec_json), num_classes=num_classes)
    parameters = {name: tuple(value.shape) for name, value in sampled.named_parameters()}
    if count_parameters(sampled) != candidate.parameters:
        return f"the sampled model has {candidate.parameters} parameters, but its spec has {count_parameters(sampled)}"
    trained = {name: tuple(value.shape) for name, value in checkpoint.model.items() if name in parameters}
    return first_difference(parameters, trained)


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
