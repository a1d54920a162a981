"""The largest batch that a device can train, found by measurement: real steps of the real model, with growing batches.

The steps run in a process of their own, so that this process keeps its memory, and survives if the system ends the
other one for lack of memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from yolov7.data.cache import available_memory
from yolov7.errors import SettingError, TrainingError, UserError, counted, one_line
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.structures import Batch, Targets
from yolov7.system.files import write_whole
from yolov7.system.memory import keep_memory
from yolov7.system.plugins import allow_plugins
from yolov7.system.precision import precision_name, resolve_device, resolve_precision
from yolov7.system.settings_base import AUTO_BATCH
from yolov7.training.anchors import with_anchors
from yolov7.training.distillation import Distillation, anchors_to_share, open_teacher
from yolov7.training.job import TrainJob
from yolov7.training.optim import build_schedule
from yolov7.training.state import TrainState
from yolov7.training.steps import Stepper
from yolov7.training.training_split import load_training_split
from yolov7.training.worker import Worker

LARGEST_USEFUL = 64
"""The largest batch that `auto` chooses.

Gradients are summed over `optim.nominal_batch` images, which is 64 by default; a larger batch would only make the steps
of the optimizer fewer.
"""
FEWEST_STEPS = 8
"""`auto` chooses a batch with which an epoch has at least this many steps."""

_SHARE = {"cpu": 0.5, "cuda": 0.9}  # of the free memory; the CPU's also holds the loader and its cache
_MEASURED_SECONDS = 20.0  # after which no larger batch is tried, and the memory of larger ones is extrapolated
_PATIENCE = 300.0  # seconds for all steps
_OBJECTS = 8  # of each image
_GIB = 2**30


class Trial(NamedTuple):
    """One measured step.

    Attributes:
        batch: Number of images.
        memory: Peak memory in bytes.
    """

    batch: int
    memory: int


@dataclass(frozen=True)
class BatchChoice:
    """The choice of a batch.

    Attributes:
        batch_size: Images per step, over all workers.
        reason: One sentence.
    """

    batch_size: int
    reason: str


def choose_batch(job: TrainJob, *, device: str = "auto", workers: int = 1, sharing: int = 1) -> BatchChoice:
    """Find the largest power of two that fits a device, as images per step of each worker.

    Args:
        job: The run; its prepared training split exists. Its batch size has no effect.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: Number of workers of the run, all with such a device.
        sharing: Number of workers that share the memory of this device.

    Returns:
        The batch over all workers and the reason for it.

    Raises:
        SettingError: Not even one image fits, or the teacher of the run cannot be used.
        TrainingError: The steps fail for another reason.
    """
    index = load_training_split(job)
    names = index.class_names
    return find_batch(job, images=len(index), class_names=names, device=device, workers=workers, sharing=sharing)


def find_batch(
    job: TrainJob,
    *,
    images: int,
    class_names: Sequence[str],
    device: str = "auto",
    workers: int = 1,
    sharing: int = 1,
) -> BatchChoice:
    """Find the largest power of two that fits a device, for data that need not be prepared.

    Args:
        job: The run; neither its batch size nor its folders have an effect.
        images: Number of training images.
        class_names: The names of the classes.
        device: See `choose_batch`.
        workers: See `choose_batch`.
        sharing: See `choose_batch`.

    Returns:
        The batch over all workers and the reason for it.

    Raises:
        SettingError: Not even one image fits, or the teacher of the run cannot be used.
        TrainingError: The steps fail for another reason.
    """
    most = min(LARGEST_USEFUL, max(workers, images // FEWEST_STEPS)) // workers
    sizes = [1 << power for power in range(most.bit_length())]
    budget, trials = _measure(job, sizes, class_names=class_names, device=device, sharing=sharing)
    each = largest_that_fits(trials, sizes, budget=budget)
    if each == 0:
        raise SettingError(
            f"batch_size=auto: one image of {job.settings.image_size} pixels needs {trials[0].memory / _GIB:.1f} GiB, "
            f"more than the {budget / _GIB:.1f} GiB that may be used; lower image_size or choose a smaller model"
        )
    reason = _describe(each, trials, sizes, budget=budget, images=images, workers=workers)
    return BatchChoice(each * workers, reason)


def largest_that_fits(trials: Sequence[Trial], sizes: Sequence[int], *, budget: int) -> int:
    """Return the largest batch whose memory is within a budget.

    The memory of batches that were not measured is extrapolated from the last two that were.

    Args:
        trials: The measured batches, in ascending order.
        sizes: All batches that may be chosen, in ascending order.
        budget: The largest memory in bytes.

    Returns:
        One of the sizes; 0 if none fits.
    """
    fitting = [trial.batch for trial in trials if trial.memory <= budget]
    if len(fitting) < len(trials) or len(trials) < 2:
        return fitting[-1] if fitting else 0
    further = [size for size in sizes if size > trials[-1].batch and predict_memory(trials, size) <= budget]
    return (fitting + further)[-1]


def predict_memory(trials: Sequence[Trial], batch: int) -> float:
    """Extrapolate the memory of a batch linearly from the last two trials.

    Args:
        trials: At least two measured batches, in ascending order.
        batch: A larger batch.

    Returns:
        Bytes.
    """
    before, last = trials[-2:]
    each = max(0.0, (last.memory - before.memory) / (last.batch - before.batch))
    return last.memory + each * (batch - last.batch)


def settle_batch(job: TrainJob, choose: Callable[[TrainJob], BatchChoice]) -> tuple[TrainJob, str]:
    """Replace the batch size `auto` of a job by a number, which stays the same when the job is described again.

    The number is kept in a file beside the run folder, for the same data, seed and settings except `epochs`. A finished
    run therefore stays the same run, with more epochs it is continued with its batch, and so is an interrupted one, on
    whatever device.

    Args:
        job: The run.
        choose: Chooses the number if there is none yet.

    Returns:
        The job with a number, and the reason for a number that was chosen now; an empty text otherwise.
    """
    if job.settings.batch_size != AUTO_BATCH:
        return job, ""
    path = job.run_folder.with_name(f"{job.run_folder.name}.batch.json")
    choices, note, key = _read_choices(path), "", _fingerprint_of_any_length(job)
    entry = choices.get(job.fingerprint) or choices.get(key)  # earlier versions wrote the fingerprint with the epochs
    if entry is None:
        choice = choose(job)
        note = f"batch_size=auto is {choice.batch_size}: {choice.reason}"
        entry = {"batch_size": choice.batch_size, "reason": choice.reason}
    if key not in choices:
        write_whole(path, json.dumps(choices | {key: entry}, indent=2).encode())
    return job.model_copy(update={"settings": with_batch(job.settings, entry["batch_size"])}), note


def with_batch(settings: TrainSettings, batch_size: int) -> TrainSettings:
    """Return settings with another batch size.

    Args:
        settings: The settings of a training.
        batch_size: Images per step, over all workers.
    """
    return settings.model_copy(update={"batch_size": batch_size})


def _fingerprint_of_any_length(job: TrainJob) -> str:
    """Return a fingerprint that is the same for every number of epochs, on which the memory of a step never depends."""
    return job.model_copy(update={"settings": job.settings.model_copy(update={"epochs": 1})}).fingerprint


def _read_choices(path: Path) -> dict[str, dict[str, Any]]:
    """Return the choices so far by their fingerprints; none if the file is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
        return {key: one for key, one in content.items() if type(one["batch_size"]) is int and one["batch_size"] > 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _describe(
    each: int, trials: Sequence[Trial], sizes: Sequence[int], *, budget: int, images: int, workers: int
) -> str:
    measured = {trial.batch: trial.memory for trial in trials}
    memory = measured.get(each) or predict_memory(trials, each)
    how = "needs" if each in measured else f"needs, extrapolated from {trials[-2].batch} and {trials[-1].batch} images,"
    text = (
        f"a step of {counted(each, 'image')} {how} {memory / _GIB:.1f} of the {budget / _GIB:.1f} GiB that may be used"
    )
    if each < sizes[-1]:
        text += f", and {2 * each} images need more"
    elif 2 * each * workers > LARGEST_USEFUL:
        text += "; larger batches are not more useful"
    else:
        text += f"; an epoch of {counted(images, 'image')} should have at least {FEWEST_STEPS} steps"
    return text + (f". There are {workers} workers" if workers > 1 else "")


def _measure(
    job: TrainJob, sizes: Sequence[int], *, class_names: Sequence[str], device: str, sharing: int
) -> tuple[int, list[Trial]]:
    """Run the steps in a process of their own; return the memory that may be used, and what was measured."""
    task = {"job": job.model_dump(mode="json"), "sizes": list(sizes), "class_names": list(class_names)}
    given = json.dumps(task | {"device": device, "sharing": sharing}).encode()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "yolov7.training.auto_batch"]
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, env=environment, timeout=_PATIENCE, check=False
        )
        output, reason = done.stdout, done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        is_complete = done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, reason, is_complete = error.stdout or b"", [f"it takes more than {_PATIENCE:.0f} seconds"], False
    lines = [json.loads(line) for line in output.splitlines() if line.endswith(b"}")]
    for line in lines:
        if "error" in line:
            raise SettingError(str(line["error"]))
    trials = [Trial(line["batch"], line["memory"]) for line in lines if "batch" in line]
    if not trials:
        why = one_line(reason[0] if reason else "its process was ended, perhaps for lack of memory")
        raise TrainingError(f"batch_size=auto: a step with one image fails ({why}); state a number for batch_size")
    budget = int(lines[0]["budget"])
    if not is_complete:  # the next batch ended the process, perhaps for lack of memory
        trials += [Trial(size, budget + 1) for size in sizes[len(trials) :][:1]]
    return budget, trials


def _run_steps(task: Mapping[str, Any]) -> None:
    """Print the memory that may be used, and the peak memory of a step for each size, one line each."""
    job = TrainJob.model_validate(task["job"])
    allow_plugins(row.of for row in job.spec.plugin_rows.values())
    device = resolve_device(task["device"])
    if device.type == "cpu":
        keep_memory()
    budget = int(_free_memory(device) * _SHARE[device.type] / task["sharing"])
    print(json.dumps({"budget": budget}), flush=True)
    began, trials = time.monotonic(), list[Trial]()
    steps = _Steps(job, task["class_names"], device)
    for size in task["sizes"]:
        if len(trials) > 1 and (predict_memory(trials, size) > budget or time.monotonic() - began > _MEASURED_SECONDS):
            return
        try:
            steps.take(size)
        except torch.OutOfMemoryError:
            trials.append(Trial(size, budget + 1))
        else:
            trials.append(Trial(size, _peak_memory(device)))
        print(json.dumps(trials[-1]._asdict()), flush=True)
        if trials[-1].memory > budget:
            return


@final
class _Steps:
    """Takes real training steps on random images of the largest size of the run, with its teacher if it has one."""

    def __init__(self, job: TrainJob, class_names: Sequence[str], device: torch.device) -> None:
        settings, self._device, self._classes = job.settings, device, len(class_names)
        precision = precision_name(resolve_precision(settings.precision, device))
        same_size = {"multi_scale": 0.0, "low_resolution_share": 0.0}
        self._settings = settings.model_copy(update={"precision": precision, **same_size})
        self._job, self._dtype, spec = job, resolve_precision(precision, device), job.spec
        teacher = open_teacher(job, class_names)
        fitted = settings.model_copy(update={"anchors": "auto"})  # those of the run may be fitted to its data
        if (anchors_px := anchors_to_share(teacher, spec, fitted)) is not None:
            spec = with_anchors(spec, anchors_px.numpy())
        model = DetectionModel(spec, num_classes=self._classes).to(device).train()
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model = model
        self._distillation = Distillation(teacher, model, self._settings, dtype=self._dtype) if teacher else None
        stride = max(*model.strides, self._distillation.stride if self._distillation else 0)
        self._side = round(settings.image_size * (1 + settings.multi_scale) / stride) * stride

    def take(self, size: int) -> None:
        """Take two steps of the optimizer; the first one makes its buffers."""
        optim = self._settings.optim.model_copy(update={"nominal_batch": size})
        settings = self._settings.model_copy(update={"batch_size": size, "optim": optim})
        schedule = build_schedule(optim, batch_size=size, steps_per_epoch=FEWEST_STEPS, epochs=settings.epochs)
        distillation, device = self._distillation, self._device
        adapters = distillation.adapters if distillation else None
        state = TrainState(self._model, settings=settings, schedule=schedule, device=device, adapters=adapters)
        job, worker = self._job.model_copy(update={"settings": settings}), Worker(device=device)
        stepper = Stepper(job, worker, state, schedule=schedule, dtype=self._dtype, distillation=distillation)
        images = torch.randint(0, 256, (size, 3, self._side, self._side), dtype=torch.uint8)
        count = size * _OBJECTS
        boxes = torch.rand(count, 4) * 0.3 + 0.1
        targets = Targets(torch.arange(size).repeat_interleave(_OBJECTS), torch.arange(count) % self._classes, boxes)
        for _ in range(2):
            stepper.step(Batch(images, targets, tuple(range(size))))


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def _peak_memory(device: torch.device) -> int:
    """Return the largest memory of this process so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, getrusage may say the peak of the process that started this one
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    try:
        _run_steps(json.load(sys.stdin))
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
