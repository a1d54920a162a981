"""One trial: a plain training in one process that ends when it is told to, and proves what it trained."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import torch

from pipeline.tuning.budget.plan import Probe
from pipeline.tuning.search.space import Candidate
from yolov7.nn.cost import count_parameters
from yolov7.nn.model import DetectionModel
from yolov7.settings import Settings
from yolov7.spec.spec_files import spec_from_json, spec_to_json
from yolov7.system.files import write_whole
from yolov7.training.checkpoint import load_checkpoint, save_checkpoint
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS, Trainer, fit
from yolov7.training.record import read_epochs
from yolov7.training.worker import Worker
from yolov7.weights.weight_files import first_difference, load_weights

_STEPS = "steps.txt"
_NOTE_SECONDS = 0.5
_PROBE_STEPS = 5


class TrialTask(Settings):
    """What a process needs to train a trial. `deadline`: since the epoch; `most_steps`: redone ones included."""

    job: TrainJob
    stop_file: Path  # once it is there, training writes a checkpoint and ends
    most_steps: int | None = None
    deadline: float | None = None
    donor: Path | None = None  # weights to begin with, where names and shapes agree


def train_trial(task: TrialTask, worker: Worker, *, report: Callable[[dict[str, Any]], None]) -> None:
    """Trains from the trial's last checkpoint until its end, the deadline, or the stop file.

    `report` gets every validated epoch: `epoch`, `AP`, and `steps`, all that training did until then.
    """
    meter = _Meter(task)
    if task.donor is not None:
        begin_with(task.job, task.donor, worker)
    reporter = _Reporter(task.job.run_folder, meter, report)

    def should_stop() -> bool:
        reporter.send_new()  # of an epoch that ended before this step
        meter.add_step()
        return meter.is_used_up or task.stop_file.exists() or _is_past(task.deadline)

    if not task.stop_file.exists() and not _is_past(task.deadline):
        fit(task.job, worker, should_stop=should_stop)
    meter.note()
    reporter.send_new()


def read_steps(folder: Path) -> int:
    """How many steps a trial's training has done, those done again after an interruption included."""
    path = folder / _STEPS
    return int(path.read_text() or 0) if path.is_file() else 0


def begin_with(job: TrainJob, donor: Path, worker: Worker) -> None:
    """Puts the tensors of a weight file that have the name and shape of the job's into the checkpoint of step 0."""
    if list(job.run_folder.glob("checkpoint-*.pt")):
        return  # it has begun already
    Trainer(job, worker).resume()
    path = next(job.run_folder.glob("checkpoint-*.pt"))
    given = load_weights(donor).model.state_dict()
    checkpoint = load_checkpoint(path)
    for state in (checkpoint.model, checkpoint.ema):
        state.update({name: given[name] for name in state if name in given and given[name].shape == state[name].shape})
    save_checkpoint(path, checkpoint)


def prove(candidate: Candidate, job: TrainJob) -> str:
    """What is wrong with the model that a trial left, compared with the one that was sampled; empty: nothing."""
    path = job.run_folder / WEIGHTS
    if not path.is_file():
        return _prove_checkpoint(candidate, job)
    weights = load_weights(path)
    found = {
        "spec": spec_to_json(weights.model.spec),
        "parameters": count_parameters(weights.model),
        "image_size": weights.image_size,
        "fingerprint": weights.training.get("fingerprint"),
        "epochs": weights.training.get("epochs"),
    }
    expected = {
        "spec": candidate.spec_json,
        "parameters": candidate.parameters,
        "image_size": candidate.image_size,
        "fingerprint": job.fingerprint,
        "epochs": job.settings.epochs,
    }
    wrong = [name for name, value in expected.items() if found[name] != value]
    return f"{wrong[0]} was sampled as {expected[wrong[0]]}, trained was {found[wrong[0]]}" if wrong else ""


def _prove_checkpoint(candidate: Candidate, job: TrainJob) -> str:
    """For a trial that did not come to its end."""
    paths = sorted(job.run_folder.glob("checkpoint-*.pt"))
    if not paths:
        return "it left neither weights nor a checkpoint"
    checkpoint = load_checkpoint(paths[-1])
    if checkpoint.fingerprint != job.fingerprint:
        return f"fingerprint was sampled as {job.fingerprint}, trained was {checkpoint.fingerprint}"
    num_classes = len(_class_names(job))
    with torch.device("meta"):
        sampled = DetectionModel(spec_from_json(candidate.spec_json), num_classes=num_classes)
    parameters = {name: tuple(value.shape) for name, value in sampled.named_parameters()}
    if count_parameters(sampled) != candidate.parameters:
        return f"parameters was sampled as {candidate.parameters}, the spec has {count_parameters(sampled)}"
    trained = {name: tuple(value.shape) for name, value in checkpoint.model.items() if name in parameters}
    return first_difference(parameters, trained)


def _class_names(job: TrainJob) -> tuple[str, ...]:
    from yolov7.data.index import load_index

    return load_index(job.data_folder / "train.npz").class_names


def probe(job: TrainJob, worker: Worker, *, training_gflops: float, began: float) -> Probe:
    """A few steps of a training that leaves nothing behind; `began`: when its process was asked for, epoch seconds."""
    times: list[float] = []

    def should_stop() -> bool:
        times.append(time.time())
        return len(times) > _PROBE_STEPS

    fit(job, worker, should_stop=should_stop)
    shutil.rmtree(job.run_folder, ignore_errors=True)
    steps = sorted(later - earlier for earlier, later in pairwise(times))
    typical = steps[len(steps) // 2] if steps else times[0] - began
    return Probe(training_gflops, times[0] - began, typical / job.settings.batch_size)


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.time() >= deadline


@final
class _Meter:
    """Counts the steps, on disk too."""

    def __init__(self, task: TrialTask) -> None:
        self._path = task.job.run_folder / _STEPS
        self._most = task.most_steps
        self.steps = read_steps(task.job.run_folder)
        self._noted = time.monotonic()

    @property
    def is_used_up(self) -> bool:
        """Whether more was done than is reserved, as after a rollback."""
        return self._most is not None and self.steps > self._most

    def add_step(self) -> None:
        self.steps += 1
        if time.monotonic() - self._noted > _NOTE_SECONDS:
            self.note()

    def note(self) -> None:
        self._noted = time.monotonic()
        write_whole(self._path, str(self.steps).encode(), durable=False)


@final
class _Reporter:
    """Hands on the epochs of a record that were validated, each once."""

    def __init__(self, folder: Path, meter: _Meter, report: Callable[[dict[str, Any]], None]) -> None:
        self._folder, self._meter, self._report = folder, meter, report
        self._epoch, self._size = 0, 0

    def send_new(self) -> None:
        record = self._folder / "epochs.jsonl"
        size = record.stat().st_size if record.is_file() else 0
        if size == self._size:
            return
        self._size = size
        for line in read_epochs(self._folder):
            if line["epoch"] > self._epoch and line.get("AP") is not None:
                self._epoch = line["epoch"]
                self._report({"epoch": line["epoch"], "AP": line["AP"], "steps": self._meter.steps})
