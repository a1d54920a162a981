"""The stage `train`: one variant with one seed, from prepared data to the weights of its EMA."""

from __future__ import annotations

import csv
import hashlib
import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import (
    WEIGHTS,
    PreparedData,
    TrainSummary,
    fresh_folder,
    read_json,
    run_folder,
    stage_folder,
    whole_folder,
    write_json,
)
from pipeline.params import Params
from pipeline.ray.mirror import OWNER, RunCopy, kept_up_to_date
from pipeline.ray.trainer import train_with_ray
from pipeline.report.plots import draw_training
from yolov7.errors import ArtifactError
from yolov7.spec.spec_files import spec_to_json
from yolov7.system.files import is_file
from yolov7.training.job import TrainJob
from yolov7.training.record import FIGURES, best_line, read_epochs

log = logging.getLogger(__name__)


def train(params: Params, *, variant: str, seed: int, on_tick: Callable[[Path], None]) -> TrainSummary:
    """Trains until the end, from where an interrupted run of the same settings stopped.

    `on_tick` is called with the run's folder about twice a second. The folder stays, so that what is killed before the
    stage has ended needs no training to be done again; `forget_run` removes it.
    """
    job = build_job(params, variant=variant, seed=seed)
    settings = params.ray_settings(variant)
    copy = copy_of_run(params, variant=variant, seed=seed)
    _claim(job, copy)
    with kept_up_to_date(copy, job.run_folder) if copy else nullcontext():
        train_with_ray(job, settings, on_tick=lambda: on_tick(job.run_folder))
    epochs = read_epochs(job.run_folder)
    summary = _summarise(job, epochs, variant=variant)
    with whole_folder(stage_folder("train", variant, seed)) as folder:
        shutil.move(job.run_folder / WEIGHTS, folder / WEIGHTS)
        _write_curve(folder / "curve.csv", epochs)
        draw_training(folder / "curve.png", epochs)
        write_json(folder / "train.json", summary)
    return summary


def copy_of_run(params: Params, *, variant: str, seed: int) -> RunCopy | None:
    """The copy that `train.storage` asks for."""
    storage = params.ray_settings(variant).storage
    return RunCopy(storage, variant=variant, seed=seed) if storage else None


def forget_run(params: Params, *, variant: str, seed: int) -> None:
    """Removes the folder of a finished run, and its copy, so that asking for the training again trains again."""
    if copy := copy_of_run(params, variant=variant, seed=seed):
        try:
            copy.delete()
        except OSError as error:
            log.warning("%s. Trained again, the run would be taken from there", error)
    folder = run_folder(variant, seed)
    finished = folder.with_name(f".{folder.name}.finished")
    shutil.rmtree(finished, ignore_errors=True)
    folder.rename(finished)  # at once: half a run folder would be taken for one that has just begun
    shutil.rmtree(finished)


def _claim(job: TrainJob, copy: RunCopy | None) -> None:
    """Empties a run folder that other data or settings left: their epochs must not be taken for this run's.

    Where a copy of this run is further, the run goes on from there.
    """
    owner = job.run_folder / OWNER
    with job.sole_writer():
        if not owner.is_file() or owner.read_text(encoding="utf-8") != job.fingerprint:
            fresh_folder(job.run_folder)
            owner.write_text(job.fingerprint, encoding="utf-8")
        if copy:
            copy.fetch(job.run_folder)


def build_job(params: Params, *, variant: str, seed: int) -> TrainJob:
    """The training run that params.yaml describes, on the prepared data."""
    prepared = read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    settings = params.train_settings(variant)
    weights = None if settings.weights is None else settings.weights.resolve()
    return TrainJob(
        spec_json=spec_to_json(params.variant(variant).build_spec()),
        settings=settings.model_copy(update={"weights": weights}),
        seed=seed,
        data_folder=stage_folder("prepare").resolve(),
        data_hash=prepared.content_hash,
        weights_hash="" if weights is None else _hash_of(weights),
        run_folder=run_folder(variant, seed).resolve(),
    )


def _hash_of(weights: Path) -> str:
    if not is_file(weights):
        raise ArtifactError(f"train.weights={weights} is not there; name a weight file (.safetensors)")
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _summarise(job: TrainJob, epochs: list[dict[str, Any]], *, variant: str) -> TrainSummary:
    last = epochs[-1]
    kept = (best_line(epochs) if job.settings.patience else None) or last  # the epoch whose weights these are
    speeds = [line["images_per_second"] for line in epochs]
    waits = [line["loader_wait_share"] for line in epochs]
    return TrainSummary(
        variant=variant,
        seed=job.seed,
        fingerprint=job.fingerprint,
        epochs=last["epoch"],
        seconds=last["seconds"],
        images_per_second=sum(speeds) / len(speeds),
        loader_wait_share=sum(waits) / len(waits),
        skipped_steps=last["skipped_steps"],
        AP=kept.get("AP"),
        AP50=kept.get("AP50"),
        precision=last["precision"],
        device=last["device"],
        workers=last["workers"],
    )


def _write_curve(path: Path, epochs: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=("epoch", *FIGURES), extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(epochs)
