"""Train a model in this process, from a data set in a readable format to a weight file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError

from yolov7.data.find_data import FoundData, find_data, read_split
from yolov7.data.index import ImageIndex, save_index
from yolov7.data.loader import count_workers
from yolov7.data.selection import keep_images
from yolov7.errors import ArtifactError, DataError, SettingError, one_line, shown
from yolov7.recipes import expand_recipe, leaves
from yolov7.settings import TrainSettings
from yolov7.spec.graph import ModelSpec, check_image_size
from yolov7.spec.spec_files import load_spec, spec_to_json
from yolov7.system.files import sha256_of, write_whole
from yolov7.system.precision import resolve_device
from yolov7.system.settings_base import describe_fault
from yolov7.training.auto_batch import BatchChoice, find_batch, settle_batch
from yolov7.training.callbacks import Callback, hash_callbacks
from yolov7.training.continuation import (
    OWNER,
    Fit,
    accepted_fingerprints,
    begin_longer_run,
    describe_longer_run,
    read_owner,
    with_history,
)
from yolov7.training.data_recipe import describe_data, fit_to_data
from yolov7.training.job import TrainJob, hash_own_code
from yolov7.training.loop import WEIGHTS, fit
from yolov7.training.unused_settings import depends_on_data, stated_without_effect
from yolov7.training.worker import Worker

log = logging.getLogger(__name__)

_MAX_SEED = 2**64 - 1  # the largest that torch accepts
_SEED = TypeAdapter(Annotated[int, Field(ge=0, le=_MAX_SEED)])


def train(
    spec: str | ModelSpec,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    settings: TrainSettings | Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    train_split: str = "train",
    val_split: str | None = "val",
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train a model on one device.

    A training that was interrupted continues from its last checkpoint if it is called again with the same arguments. A
    finished one that is called again with more epochs continues too; the metadata of the weights say so, because the
    result differs from that of a training with so many epochs from the beginning. Several devices need the pipeline.

    Args:
        spec: The name of a packaged specification, the path of a specification file, or a specification.
        data: The folder of a data set, a data.yaml, or a COCO file.
        output: The folder for the weights, the record of the epochs and the checkpoints.
        settings: Settings of the training; keys that are left out have their defaults. Without an image size, that of
            the specification is used. With `recipe: small`, settings that are left out follow from the data.
        seed: The seed of all random numbers, from 0 to 2**64 - 1.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        train_split: The name of the training split.
        val_split: The name of the split on which AP is measured; without such a split, nothing is measured.
        callbacks: Called beside those of the settings; an edit of their file makes another training.

    Returns:
        The weight file. Beside it, `epochs.jsonl` has the figures of each epoch, and `notes.txt` the notes on settings.

    Raises:
        DataError: If the data cannot be read.
        SettingError: If a setting is wrong or does not fit the data, or the output folder belongs to another training.
        SpecError: If the specification is wrong.
        TrainingError: If training diverges.
        ArtifactError: If named weights cannot be read, or a file in the output folder is damaged.
    """
    model, folder = load_spec(spec) if isinstance(spec, str) else spec, Path(output).resolve()
    chosen = _settings(settings, spec=model)
    job = TrainJob(
        spec_json=spec_to_json(model),
        settings=chosen,
        weights_hash=_hash_file("weights", chosen.weights),
        teacher_hash=_hash_file("distil.teacher", chosen.distil.teacher),
        seed=_check_seed(seed),
        data_folder=folder / "data",
        data_hash="",  # the data are read after everything else was checked, because that takes longest
        run_folder=folder,
        own_code=hash_own_code(model, chosen) | hash_callbacks(callbacks),
    )
    splits = _read_splits(find_data(Path(data)), train=train_split, val=val_split)
    job = job.model_copy(update={"data_hash": " ".join(index.content_hash() for index in splits.values())})
    used = keep_images(splits["train"], chosen.max_images)
    job = _claim(_with_batch(job, used, device=device), splits, complete=_completion(model, chosen, used))
    if not (folder / WEIGHTS).is_file():
        fit(job, _worker(device, chosen), callbacks=callbacks)
    return folder / WEIGHTS


def _with_batch(job: TrainJob, used: ImageIndex, *, device: str) -> TrainJob:
    """Replace the batch size `auto` of a job by a number, and add a note if the number was measured now."""

    def choose(described: TrainJob) -> BatchChoice:
        return find_batch(described, images=len(used), class_names=used.class_names, device=device)

    job, note = settle_batch(job, choose)
    return job.model_copy(update={"notes": (note,) if note else ()})


def _completion(spec: ModelSpec, chosen: TrainSettings, used: ImageIndex) -> Fit:
    """Return what completes settings for these training images, and describes stated ones that have no effect."""
    facts, names = describe_data(used), _stated(chosen)

    def complete(settings: TrainSettings) -> tuple[TrainSettings, tuple[str, ...]]:
        fitted, reasons = fit_to_data(settings, facts)
        return fitted, (*reasons, *stated_without_effect(spec.head, fitted, names))

    return complete


def _stated(settings: TrainSettings) -> list[str]:
    """List the stated settings that `fit_to_data` does not describe, apart from those with the recipe's value."""
    named = {"recipe": settings.recipe, "optim": {"optimizer": settings.optim.optimizer}}
    of_recipe = dict(leaves(expand_recipe(named)))
    stated = leaves(settings.model_dump(exclude_unset=True))
    names = (".".join(path) for path, value in stated if of_recipe.get(path) != value)
    return [name for name in names if not depends_on_data(name, recipe=settings.recipe)]


def _worker(device: str, settings: TrainSettings) -> Worker:
    processes = count_workers(settings.loader_workers, cpus=torch.get_num_threads())
    return Worker(device=resolve_device(device), loader_workers=processes)


def _hash_file(key: str, file: Path | None) -> str:
    try:
        return "" if file is None else sha256_of(file)
    except OSError as error:
        raise ArtifactError(
            one_line(f"{key}={file} cannot be read ({error.strerror or error}); name a weight file (.safetensors)")
        ) from None


def _check_seed(seed: int) -> int:
    try:
        return _SEED.validate_python(seed)
    except ValidationError:
        raise SettingError(f"seed={shown(seed)} must be a whole number from 0 to {_MAX_SEED}") from None


def _settings(given: TrainSettings | Mapping[str, Any] | None, *, spec: ModelSpec) -> TrainSettings:
    """Return complete settings, with the image size of the spec if none is stated."""
    if isinstance(given, TrainSettings) and "image_size" in given.model_fields_set:
        chosen = given
    else:
        stated = given.model_dump(exclude_unset=True) if isinstance(given, TrainSettings) else given or {}
        try:
            chosen = TrainSettings.model_validate({"image_size": spec.image_size, **stated})
        except ValidationError as error:
            raise SettingError(one_line(describe_fault(error, TrainSettings))) from None
    check_image_size(spec, chosen.image_size, what=f"image_size={chosen.image_size}")
    return chosen


def _read_splits(found: FoundData, *, train: str, val: str | None) -> dict[str, ImageIndex]:
    """Read the index of the training split, and that of the validation split if the data have one."""
    if train not in found.splits:
        raise DataError(f"{found.description}: there is no split {train!r} to train on")
    splits = {"train": train} | ({"val": val} if val is not None and val in found.splits else {})
    indices = {}
    for name, split in splits.items():
        indices[name], _ = read_split(found, split, class_names=found.class_names)
        if not len(indices[name]):
            raise DataError(f"{found.description}: the split {split!r} has no images that can be read")
    return indices


def _claim(job: TrainJob, splits: Mapping[str, ImageIndex], *, complete: Fit) -> TrainJob:
    """Make the run folder that of the job, which may continue a finished run there, and write the data into it.

    Raise SettingError if the folder belongs to another training, of which nothing is changed.
    """
    folder = job.run_folder
    job, owner = with_history(job, folder, fit=complete), read_owner(folder)
    if owner is not None and owner not in accepted_fingerprints(job):
        raise SettingError(
            f"{folder} has a training with other data or settings; name another output folder, or remove this one"
        )
    if owner is None:
        write_whole(folder / OWNER, job.fingerprint.encode())
    elif owner != job.fingerprint:
        log.warning("%s %s", folder, describe_longer_run(job))
        with job.sole_writer():
            begin_longer_run(job, folder)
    for name, index in splits.items():
        save_index(job.data_folder / f"{name}.npz", index)
    return job
