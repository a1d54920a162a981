"""How every attempt at a training begins, and how its end is reported, with a cluster and without one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pipeline.ray.errors import ClusterError
from pipeline.ray.worker import ERROR_FILE, STARTED_FILE, STOP_FILE, TOKEN_FILE
from yolov7.errors import TrainingError, one_line
from yolov7.training.job import TrainJob


def begin_attempt(job: TrainJob) -> str:
    """Remove what an earlier attempt left in the run folder for the process that follows it, and mark the folder.

    Args:
        job: The training.

    Returns:
        The new content of TOKEN_FILE, by which workers recognise the folder.
    """
    for name in (ERROR_FILE, STOP_FILE, STARTED_FILE):
        (job.run_folder / name).unlink(missing_ok=True)
    token = uuid.uuid4().hex
    (job.run_folder / TOKEN_FILE).write_text(token, encoding="utf-8")
    return token


def has_error(job: TrainJob) -> bool:
    """Return whether a worker wrote an error that the user has to correct."""
    return (job.run_folder / ERROR_FILE).is_file()


def is_complete(job: TrainJob, result: Mapping[str, Any]) -> bool:
    """Return whether a training is complete after its workers have ended.

    Args:
        job: The training.
        result: What `work` returned; empty if it raised an error.

    Raises:
        TrainingError: If a worker wrote an error that the user has to correct.
        ClusterError: If the training cannot run where it was started.
    """
    if has_error(job):
        raise TrainingError((job.run_folder / ERROR_FILE).read_text(encoding="utf-8"))
    if result["refusal"]:
        raise ClusterError(result["refusal"])
    return bool(result["complete"])


def death_error(max_failures: int, last: str) -> TrainingError:
    """Return the error of a training whose processes were ended from outside too often.

    Args:
        max_failures: The setting `ray.max_failures`.
        last: How the last of them ended.
    """
    return TrainingError(
        f"the training processes ended without an error of their own, {max_failures + 1} times "
        f"(ray.max_failures={max_failures}): {last}; often the machine has too little memory: lower train.batch_size "
        "or train.loader_workers"
    )


def last_line(text: str) -> str:
    """Return the last line of a message or traceback that is not empty; an empty string if there is none."""
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1], limit=300) if lines else ""
