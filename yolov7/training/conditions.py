"""The conditions of a run that affect the last digits of its result: floating-point type and number of threads."""

from __future__ import annotations

import multiprocessing

import torch

from yolov7.settings import TrainSettings
from yolov7.system.precision import precision_name, resolve_precision
from yolov7.system.threads import states_threads, use_free_cpus
from yolov7.training.checkpoint import Checkpoint
from yolov7.training.continuation import describe_longer_run
from yolov7.training.job import TrainJob
from yolov7.training.state import Progress
from yolov7.training.worker import Worker


def with_lasting_precision(settings: TrainSettings, found: Checkpoint | None, worker: Worker) -> TrainSettings:
    """Replace the precision `auto` by that with which the run began, on whatever device it continues.

    A run that begins takes what suits the device of the leading worker.

    Args:
        settings: The settings of the run.
        found: The checkpoint from which the run continues.
        worker: This process.

    Returns:
        The settings with the name of a type, the same in all processes.
    """
    began_with = found.precision if found is not None else ""
    own = began_with or precision_name(resolve_precision(settings.precision, worker.device))
    return settings.model_copy(update={"precision": worker.gather(own)[0]})


def describe_continuation(job: TrainJob, found: Checkpoint, worker: Worker, *, total_steps: int) -> str:
    """Say where a run continues, and whether it does so under other conditions.

    Args:
        job: The run.
        found: The checkpoint from which the run continues.
        worker: This process.
        total_steps: The number of steps of the whole run.

    Returns:
        The note.
    """
    if found.fingerprint != job.fingerprint:
        return describe_longer_run(job)
    workers = f" with {worker.world_size} workers" if worker.world_size > 1 else ""
    text = f"continues after step {found.step} of {total_steps}{workers}"
    threads = torch.get_num_threads()
    if worker.device.type != "cpu" or found.threads in (0, threads):
        return text
    return (
        f"{text} on {threads} instead of {found.threads} threads, so the last digits differ from those of a run "
        f"without interruption (OMP_NUM_THREADS={found.threads} avoids this)"
    )


def describe_epoch(
    progress: Progress, settings: TrainSettings, worker: Worker, *, precision: str
) -> dict[str, float | str]:
    """Return what the line of an epoch says, apart from what was measured.

    Args:
        progress: How far the run is, before the epoch is counted.
        settings: The settings of the run.
        worker: This process.
        precision: The type of the forward pass, by its name.
    """
    return {
        "epoch": progress.epoch + 1,
        "epochs": settings.epochs,
        **progress.mean_losses(),
        "skipped_steps": progress.skipped_steps,
        "rollbacks": progress.rollbacks,
        "seconds": progress.seconds,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "device": worker.device.type,
        "workers": worker.world_size,
    }


def describe_progress(progress: Progress, *, total_steps: int) -> dict[str, float]:
    """Return the values that are shown while a run goes on.

    Args:
        progress: How far the run is.
        total_steps: The number of steps of the whole run.
    """
    place = {"epochs_done": progress.epoch, "step": progress.step, "total_steps": total_steps}
    return {**place, **progress.mean_losses(), **progress.rates()}


def settle_threads(found: Checkpoint | None, worker: Worker) -> str | None:
    """Set the number of threads of a run: as other processes leave room when it begins, and then always the same.

    Nothing is changed on a GPU, if the process may not follow the load, or if OMP_NUM_THREADS is set.

    Args:
        found: The checkpoint from which the run continues.
        worker: This process.

    Returns:
        What the user should know; None if nothing.
    """
    if not worker.follows_load or worker.device.type != "cpu" or states_threads():
        return None
    most = torch.get_num_threads()
    if found is not None:
        torch.set_num_threads(min(found.threads or most, most))
        return None
    parent = multiprocessing.parent_process()
    threads = use_free_cpus(family=parent.pid if parent else None)
    if threads.count == most or threads.busy is None:
        return None
    return (
        f"computes with {threads.count} instead of {most} threads, because other processes keep {threads.busy:.1f} of "
        f"{threads.cpus} CPUs busy; the number stays the same, because the last digits of the result depend on it "
        f"(OMP_NUM_THREADS={most} sets another one)"
    )
