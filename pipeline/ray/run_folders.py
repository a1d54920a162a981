"""The folder of a training run from one training to the next: which run it is, and what happens to the run before.

A change of settings does not delete a run that has trained something, because a mistake in the settings must not cost a
training. Beside the folder `<seed>` of a run, there may be hidden ones: `.<seed>.finished` is the last finished run
that DVC has recorded, which a training with more epochs continues. Each `.<seed>.<fingerprint>` is a run that had to
make room for one with other data or settings, and that continues as soon as these are as before. Of the latter, the
three with the most steps are kept.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pipeline.artifacts.files import WEIGHTS, fresh_folder, read_json, run_folder, stage_folder
from pipeline.artifacts.inputs import code_digest
from pipeline.artifacts.reports import TrainSummary
from pipeline.experiment import ResolvedVariant
from pipeline.ray.mirror import CODE, RunCopy
from yolov7.errors import ArtifactError
from yolov7.training.checkpoint import delete_older_checkpoints, trained_steps
from yolov7.training.continuation import OWNER, Fit, accepted_fingerprints, begin_longer_run, read_owner, with_history
from yolov7.training.job import TrainJob

log = logging.getLogger(__name__)

_KEPT_ASIDE = 3  # runs of a variant and seed that had to make room


def with_earlier_run(job: TrainJob, *, fit: Fit) -> TrainJob:
    """Complete the settings of a job, and find the run that it continues.

    Args:
        job: A job with the settings as they are stated.
        fit: Completes settings that follow from the data.

    Returns:
        The job with complete settings, and with `continued_from` if it continues a run of its folder, of the run that
        was put aside, or of the last finished run.
    """
    for folder in (job.run_folder, *_put_aside(job.run_folder)):
        here = with_history(job, folder, fit=fit)
        if read_owner(folder) in accepted_fingerprints(here):
            return here
    last = _last_finished(job.run_folder)
    longer = with_history(job, last, fit=fit)
    if read_owner(last) in accepted_fingerprints(longer)[1:]:
        return longer
    return with_history(job, None, fit=fit)


def copy_of_run(variant: ResolvedVariant, *, seed: int) -> RunCopy | None:
    """Return the copy of a run that `ray.storage` asks for; None where it asks for none."""
    storage = variant.ray.storage
    return RunCopy(storage, variant=variant.name, seed=seed) if storage else None


def is_finished(job: TrainJob) -> bool:
    """Return whether the run folder holds the weights of this job, trained with the same code."""
    folder = job.run_folder
    is_same = read_owner(folder) == job.fingerprint and _read(folder / CODE) == code_digest("train")
    return is_same and (folder / WEIGHTS).is_file()


def claim_run(job: TrainJob, copy: RunCopy | None) -> str:
    """Make the run folder ready for a job, from where an earlier run of it has stopped.

    A run of other data or settings is put aside, and the run that was put aside is taken back if it is that of the job.
    A finished run of other code is deleted. If the job continues a finished run, the folder gets its state. A copy that
    is further than the folder is downloaded.

    Args:
        job: What to train.
        copy: The copy of the run; None if there is none.

    Returns:
        What the user should know about it, or an empty string.

    Raises:
        ArtifactError: If the copy cannot be read, or a continued run cannot be repeated.
    """
    folder, now = job.run_folder, code_digest("train")
    with job.sole_writer():
        notes = _take_back(job)
        if read_owner(folder) != job.fingerprint:
            notes += _make_ready(job)
        if copy:
            try:
                copy.fetch(folder)
            except OSError as error:
                raise ArtifactError(str(error)) from None
        began_with = _read(folder / CODE)
        is_finished = (folder / WEIGHTS).is_file()
        if is_finished and began_with != now:
            shutil.rmtree(folder)
            _make_ready(job)
        (folder / CODE).write_text(now, encoding="utf-8")
    if is_finished and began_with != now:
        notes = ["an earlier run had other code; training starts from the beginning"]
    elif began_with not in (None, now):
        notes.append("the code changed after this run began; it continues from its last checkpoint with the new code")
    elif is_finished:
        where = f"{folder} and {copy.place}" if copy else folder
        notes.append(
            "this training was finished before with the same data, settings and code; its weights are used (delete "
            f"{where} to train again)"
        )
    return "; ".join(notes)


def forget_run(variant: ResolvedVariant, *, seed: int) -> None:
    """Move a finished run out of its folder and remove its copy, so that the same training starts from the beginning.

    Its last checkpoint is kept in a hidden folder beside it, so that a training with more epochs can continue it. A run
    that is not finished, or that is not the one whose result the stage has written, stays: it may be a training
    with other settings that goes on at this moment, or that was interrupted.

    Args:
        variant: The variant that was trained.
        seed: The seed of its training.
    """
    folder = run_folder(variant.name, seed)
    summary = stage_folder("train", variant.name, seed) / "train.json"
    if not (folder / WEIGHTS).is_file() or not summary.is_file():
        return
    if read_owner(folder) != read_json(summary, TrainSummary, made_by=f"train {variant.name}").fingerprint:
        return
    if copy := copy_of_run(variant, seed=seed):
        try:
            copy.delete()
        except OSError as error:
            log.warning("%s. If the run is trained again, it will be taken from there", error)
    aside = _last_finished(folder)
    _move(folder, aside)
    delete_older_checkpoints(aside)
    if not any(aside.glob("checkpoint-*.pt")):
        shutil.rmtree(aside)


def _last_finished(folder: Path) -> Path:
    """Return the folder in which `forget_run` keeps the last finished run of a run folder."""
    return folder.with_name(f".{folder.name}.finished")


def _put_aside(folder: Path) -> list[Path]:
    """Return the folders of the runs that had to make room for others."""
    found = folder.parent.glob(f".{folder.name}.*")
    return [path for path in found if path != _last_finished(folder) and path.is_dir()]


def _take_back(job: TrainJob) -> list[str]:
    """Move the run that was put aside back into the run folder if it is that of the job; return notes on it."""
    accepted = accepted_fingerprints(job)
    aside = next((path for path in _put_aside(job.run_folder) if read_owner(path) in accepted), None)
    if aside is None or read_owner(job.run_folder) in accepted:
        return []
    notes = _make_room(job.run_folder, keep=aside)
    _move(aside, job.run_folder)
    return [*notes, "the earlier run with these data and settings is used again"]


def _make_room(folder: Path, *, keep: Path | None = None) -> list[str]:
    """Clear the run folder. A run that has trained something is put aside; the shortest of more than three is deleted.

    Args:
        folder: The run folder.
        keep: A folder of a run that was put aside and stays.

    Returns:
        Notes that say where the run is now, and which run is deleted; empty if there was nothing to keep.
    """
    if not trained_steps(folder) and not (folder / WEIGHTS).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        return []
    aside = folder.with_name(f".{folder.name}.{read_owner(folder)}")
    _move(folder, aside)
    delete_older_checkpoints(aside)
    note = f"the run with other data or settings is kept in {aside} and continues if they are as before"
    others = [path for path in _put_aside(folder) if path not in (keep, aside)]
    for path in sorted([aside, *others], key=trained_steps, reverse=True)[_KEPT_ASIDE:]:
        shutil.rmtree(path, ignore_errors=True)
        if path == aside:
            return [f"the run with other data or settings is deleted; {_KEPT_ASIDE} others with more steps are kept"]
        note += f"; the run in {path} is deleted; {_KEPT_ASIDE} others with as many steps or more are kept"
    return [note]


def _move(folder: Path, target: Path) -> None:
    """Rename a folder in one step, because an incomplete one would look like a run that has just begun."""
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _make_ready(job: TrainJob) -> list[str]:
    """Give the run folder the state of the finished run that the job continues, or empty it; return notes on it."""
    folder, aside = job.run_folder, _last_finished(job.run_folder)
    earlier = accepted_fingerprints(job)[1:]
    notes: list[str] = []
    if (owner := read_owner(folder)) not in earlier:
        notes = _make_room(folder)
        if not earlier:
            (fresh_folder(folder) / OWNER).write_text(job.fingerprint, encoding="utf-8")
            started = "an earlier run had other data or settings; training starts from the beginning"
            return [*([] if owner is None else [started]), *notes]
        if read_owner(aside) not in earlier:
            raise ArtifactError(
                f"the run of {folder} continued a finished run that no longer exists, so it cannot be repeated; run "
                "the same command again to train from the beginning"
            )
        fresh_folder(folder)
        for path in aside.iterdir():
            if path.is_file() and path.name not in {OWNER, WEIGHTS}:  # without an owner, the folder counts as empty
                shutil.copyfile(path, folder / path.name)
    begin_longer_run(job, folder)
    places = f"{folder} and {aside}"
    return [
        f"the last finished run had fewer epochs and is continued; delete {places} to train from the beginning",
        *notes,
    ]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
