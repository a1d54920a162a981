"""Continuation of a finished run with more epochs.

The weights of a run depend on its number of epochs from the first step, because the schedule of learning rates does. A
run of 8 epochs that is continued to 12 is therefore not a run of 12 epochs, and its fingerprint, its weight file and
its record say so. It begins with the last checkpoint of the finished run, and has the learning rates of epochs 9 to 12
of a run of 12. From then on, it is a run like any other: after an interruption, it continues exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolov7.settings import TrainSettings
from yolov7.system.files import write_whole
from yolov7.training.checkpoint import Checkpoint, Checkpoints
from yolov7.training.job import TrainJob
from yolov7.training.record import read_epochs

OWNER = "fingerprint"
"""The file of a run folder that says which data and settings its state belongs to."""

HISTORY = "continued.json"
"""The file of a run folder that lists the runs that it continues, as `TrainJob.continued_from`."""

_WEIGHTS = "weights.safetensors"
Fit = Callable[[TrainSettings], tuple[TrainSettings, tuple[str, ...]]]
"""Completes settings that follow from the data, and says why; see `data_recipe.fit_to_data`."""


def _as_stated(settings: TrainSettings) -> tuple[TrainSettings, tuple[str, ...]]:
    return settings, ()


def with_history(job: TrainJob, folder: Path | None, *, fit: Fit = _as_stated) -> TrainJob:
    """Return a job with complete settings and with the earlier runs that it continues, which a run folder tells.

    Args:
        job: A job that continues nothing, with the settings as they are stated.
        folder: The folder of a run; None for no run.
        fit: Completes settings that follow from the data and from the number of epochs (the recipe `small`). A run that
            continues another one keeps its batch size, because the number of its steps depends on it.

    Returns:
        The job with `continued_from`: that of the run if the run is of this job; the run itself in addition, if it is
        finished and differs from the job only by fewer epochs. Otherwise the job continues nothing. Its notes also have
        the reasons for the settings that were completed.
    """
    plain = _complete(job, fit)
    owner = read_owner(folder) if folder else None
    if folder is None or owner is None:
        return plain
    history, lines = _read_history(folder), read_epochs(folder)
    has_begun = bool(history) and _fingerprint_of(history[-1]) == owner  # `begin_longer_run` was interrupted
    past = history[:-1] if has_begun else history
    kept = job if plain.settings == job.settings else _keep_batch(job, lines)
    for candidate in (job, kept):
        same = _complete(candidate, fit, continued_from=past)
        if same.fingerprint == owner:
            return same
    if not any(folder.glob("checkpoint-*.pt")) or not (has_begun or (folder / _WEIGHTS).is_file()):
        return plain
    before = lines[-1].get("epochs") if lines else None
    if not isinstance(before, int) or not 0 < before < plain.settings.epochs:
        return plain
    earlier = (_complete(one, fit, continued_from=past) for one in _with_fewer_epochs((job, kept), before))
    if all(one.settings.epochs != before or one.fingerprint != owner for one in earlier):
        return plain
    return _complete(kept, fit, continued_from=(*past, f"{owner}@{lines[-1]['epoch']}"))


def begin_longer_run(job: TrainJob, folder: Path) -> None:
    """Turn the folder of a finished run into that of its continuation.

    A process that is killed here leaves a folder from which `with_history` returns the same job again.

    Args:
        job: What `with_history` returned for the folder.
        folder: The folder.
    """
    write_whole(folder / HISTORY, json.dumps(job.continued_from).encode())
    (folder / _WEIGHTS).unlink(missing_ok=True)
    write_whole(folder / OWNER, job.fingerprint.encode())


def read_owner(folder: Path) -> str | None:
    """Return the fingerprint of the run in a folder; None if there is none."""
    path = folder / OWNER
    return path.read_text(encoding="utf-8") if path.is_file() else None


def accepted_fingerprints(job: TrainJob) -> tuple[str, ...]:
    """Return the fingerprints of the checkpoints that a run may start from: its own, and that of the run it continues.

    If that run added no epoch to an earlier one, because patience had ended it, its checkpoint is that of the earlier
    one.

    Args:
        job: The run.
    """
    last = [_epoch_of(entry) for entry in job.continued_from[-1:]]
    same = (entry for entry in reversed(job.continued_from) if _epoch_of(entry) in last)
    return (job.fingerprint, *map(_fingerprint_of, same))


def newest_checkpoint(job: TrainJob, checkpoints: Checkpoints, *, report: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest intact checkpoint from which a run may continue.

    Args:
        job: The run.
        checkpoints: The checkpoints of its folder.
        report: Called with one sentence if the newest checkpoint is that of another run.

    Returns:
        The checkpoint; None if there is none.

    Raises:
        ArtifactError: There are checkpoints, but all are damaged.
    """
    newest = checkpoints.newest()
    if newest is None or newest.fingerprint in accepted_fingerprints(job):
        return newest
    report(
        f"an earlier run in this folder, trained up to step {newest.step}, had other settings, data or starting "
        "weights; it is not continued, and training starts from the beginning"
    )
    return None


def describe_longer_run(job: TrainJob) -> str:
    """Say that a run continues a finished one, and what that means for its result.

    Args:
        job: A run that continues another one.

    Returns:
        The note.
    """
    fingerprint, _, epoch = job.continued_from[-1].partition("@")
    last = job.settings.epochs
    return (
        f"continues the finished run {fingerprint} after epoch {epoch}, with the learning rates of a run of {last} "
        f"epochs; the result differs from that of a run of {last} epochs from the beginning, and its record says so"
    )


def _complete(job: TrainJob, fit: Fit, *, continued_from: tuple[str, ...] = ()) -> TrainJob:
    settings, reasons = fit(job.settings)
    notes = (*job.notes, *reasons)
    return job.model_copy(update={"settings": settings, "notes": notes, "continued_from": continued_from})


def _keep_batch(job: TrainJob, lines: Sequence[Mapping[str, Any]]) -> TrainJob:
    """State the batch size of a run's record in a job whose recipe would choose it."""
    size = lines[-1].get("batch_size") if lines else None
    if "batch_size" in job.settings.model_fields_set or not isinstance(size, int):
        return job
    note = f"recipe {job.settings.recipe}: batch_size={size}: as in the earlier run that is continued"
    settings = job.settings.model_copy(update={"batch_size": size})
    return job.model_copy(update={"settings": settings, "notes": (*job.notes, note)})


def _with_fewer_epochs(jobs: Sequence[TrainJob], epochs: int) -> Iterator[TrainJob]:
    """Yield each job twice: with this number of epochs stated, and with no number stated."""
    for job in jobs:
        stated = job.settings.model_dump(exclude_unset=True)
        free = TrainSettings.model_validate({key: value for key, value in stated.items() if key != "epochs"})
        yield job.model_copy(update={"settings": job.settings.model_copy(update={"epochs": epochs})})
        yield job.model_copy(update={"settings": free})


def _fingerprint_of(entry: str) -> str:
    return entry.partition("@")[0]


def _epoch_of(entry: str) -> str:
    return entry.partition("@")[2]


def _read_history(folder: Path) -> tuple[str, ...]:
    try:
        content = json.loads((folder / HISTORY).read_bytes())
    except (OSError, ValueError):
        return ()
    is_list = isinstance(content, list) and all(isinstance(item, str) for item in content)
    return tuple(content) if is_list else ()
