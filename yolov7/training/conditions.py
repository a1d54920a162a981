"""The conditions of a run that affect the last digits of its result, and sentences about the course of a run.

The conditions are the floating-point type and the number of threads.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping
from typing import Any

import torch

from yolov7.errors import counted
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


def describe_early_end(line: Mapping[str, Any], settings: TrainSettings) -> tuple[str, int]:
    """Say that a run ends because of its patience.

    If patience had ended the run before more epochs were asked for, no epoch is added, and a warning says so.

    Args:
        line: The record of the last epoch.
        settings: The settings of the run.

    Returns:
        The note and its level of logging.
    """
    epoch, patience = line["epoch"], settings.patience
    epochs = line.get("epochs_before", line.get("epochs", settings.epochs))
    text = f"ends after epoch {epoch}: AP on the validation split has not improved for {counted(patience, 'epoch')}"
    if epochs == settings.epochs:
        return text, logging.INFO
    return (
        f"{text}. This had ended the finished run of at most {epochs} epochs, so epochs={settings.epochs} adds none; "
        "with a larger patience, training starts from the beginning",
        logging.WARNING,
    )


def describe_skipped_steps(progress: Progress) -> str | None:
    """Say how many steps of a run were skipped.

    Args:
        progress: How far the run is.

    Returns:
        The note; None if no step was skipped.
    """
    skipped = progress.skipped_steps
    if not skipped:
        return None
    why = "because the loss or the gradient was not finite"
    if progress.rollbacks:  # the number of steps does not include those that were repeated
        return f"{skipped} step{'s were' if skipped > 1 else ' was'} skipped, {why}"
    if skipped == progress.step:
        return f"all {skipped} steps were skipped, {why}, so the weights are those from which training began"
    return f"{skipped} of {progress.step} steps were skipped, {why}"


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
        "batch_size": settings.batch_size,
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
