"""The stage `train`: one variant with one seed, from prepared data to the weights of its moving average.

A variant with given weights is not trained: the stage writes these weights in the place of trained ones. Of an external
variant there are no weights: the stage checks that its results exist.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import (
    WEIGHTS,
    read_json,
    run_folder,
    stage_folder,
    whole_folder,
    write_json,
    write_no_weights,
)
from pipeline.artifacts.prepared import prepared_fit
from pipeline.artifacts.reports import PreparedData, TrainSummary
from pipeline.console import console, stage_line
from pipeline.experiment import ResolvedVariant, check_weights
from pipeline.external import ExternalVariant, external_fingerprint, require_zoo_library
from pipeline.ray.mirror import kept_up_to_date
from pipeline.ray.run_folders import claim_run, copy_of_run, with_earlier_run
from pipeline.ray.trainer import train_with_ray
from pipeline.report.plots import draw_training
from yolov7.errors import ArtifactError
from yolov7.spec.spec_files import spec_to_json
from yolov7.system.files import why_no_file
from yolov7.system.settings_base import AUTO_BATCH
from yolov7.training.checkpoint import delete_older_checkpoints
from yolov7.training.job import TrainJob
from yolov7.training.record import FIGURES, final_line, read_epochs


def build_job(variant: ResolvedVariant, *, seed: int) -> TrainJob:
    """Describe the training of a variant on the prepared data.

    If the last finished run of the variant and seed differs only by fewer epochs, the training continues it.

    Args:
        variant: The resolved variant.
        seed: The seed of the training.

    Returns:
        Plain values that can be sent to another process or node.

    Raises:
        ArtifactError: If the data are not prepared, or the weights to start from are missing.
    """
    prepared = read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    check_weights(variant)
    job = TrainJob(
        spec_json=spec_to_json(variant.spec),
        settings=variant.train,
        seed=seed,
        data_folder=stage_folder("prepare").resolve(),
        data_hash=prepared.content_hash,
        weights_hash=variant.weights_hash,
        teacher_hash=variant.teacher_hash,
        run_folder=run_folder(variant.name, seed).resolve(),
        own_code=dict(variant.own_code),
    )
    if job.settings.batch_size == AUTO_BATCH:
        job = _settle_batch(job, variant)
    return with_earlier_run(job, fit=prepared_fit(job.settings))


def _settle_batch(job: TrainJob, variant: ResolvedVariant) -> TrainJob:
    from pipeline.ray.auto_batch import choose_batch_with_ray  # these import torch
    from yolov7.training.auto_batch import settle_batch

    settled, note = settle_batch(job, lambda described: choose_batch_with_ray(described, variant.ray))
    if note:
        console.print(stage_line("train", variant.name, note))
    return settled


def train(job: TrainJob, variant: ResolvedVariant, *, on_tick: Callable[[Path], None]) -> TrainSummary:
    """Train to the end, from where an interrupted run of the same data and settings stopped.

    The run's folder stays, so that a kill before the end of the stage costs no training; `forget_run` removes it. Of
    its checkpoints only the last one is kept.

    Args:
        job: What to train, from `build_job`.
        variant: The variant that it was built from.
        on_tick: Called with the run's folder about twice a second.

    Returns:
        How the run ended.
    """
    copy = copy_of_run(variant, seed=job.seed)
    if note := claim_run(job, copy):
        console.print(stage_line("train", variant.name, note))
    if not (job.run_folder / WEIGHTS).is_file():
        with kept_up_to_date(copy, job.run_folder) if copy else nullcontext():
            train_with_ray(job, variant.ray, on_tick=lambda: on_tick(job.run_folder))
    epochs = read_epochs(job.run_folder)
    summary = _summarise(job, epochs, variant=variant.name)
    with whole_folder(stage_folder("train", variant.name, job.seed)) as folder:
        shutil.copyfile(job.run_folder / WEIGHTS, folder / WEIGHTS)
        _write_curve(folder / "curve.csv", epochs)
        draw_training(folder / "curve.png", epochs)
        write_json(folder / "train.json", summary)
    delete_older_checkpoints(job.run_folder)
    return summary


def use_given_weights(variant: ResolvedVariant, *, seed: int) -> TrainSummary:
    """Write the weights that a variant gives in the place of trained ones.

    Args:
        variant: A variant with given weights.
        seed: The seed in whose folder they are written; it has no effect on them.

    Returns:
        A summary that says where the weights are from.

    Raises:
        ArtifactError: If the data are not prepared, or the weights cannot be used.
    """
    from pipeline.artifacts.given_weights import load_given
    from yolov7.weights.weight_files import save_weights

    assert variant.given is not None
    prepared = read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    weights = load_given(variant, class_names=prepared.class_names)
    parts = (spec_to_json(variant.spec), variant.weights_hash, variant.train.image_size, seed, prepared.content_hash)
    fingerprint = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]
    summary = _untrained(variant.name, seed, fingerprint, given=variant.given.name)
    origin = {"fingerprint": summary.fingerprint, "given": variant.given.name, "sha256": variant.weights_hash}
    with _untrained_folder(summary) as folder:
        save_weights(
            folder / WEIGHTS,
            weights.model,
            class_names=weights.class_names,
            image_size=weights.image_size,
            letterbox=weights.letterbox,
            training=weights.training | origin,
        )
    return summary


def use_external_results(variant: ExternalVariant, *, seed: int) -> TrainSummary:
    """Write a file without weights, and a summary that says which results file takes their place.

    Args:
        variant: An external variant.
        seed: The seed in whose folder they are written; it has no effect on them.

    Returns:
        The summary.

    Raises:
        ArtifactError: If the data are not prepared, or the results file does not exist.
        ModuleNotFoundError: If the variant is a model of a library that is not installed.
    """
    require_zoo_library(variant)  # `tables` counts the model
    prepared = read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    if variant.predictions is not None and variant.predictions_hash == "missing":
        why = why_no_file(variant.predictions)
        raise ArtifactError(
            f"external.predictions={variant.predictions} of variant {variant.name!r} {why}; name a COCO results file"
        )
    fingerprint = external_fingerprint(variant, seed=seed, content_hash=prepared.content_hash)
    summary = _untrained(variant.name, seed, fingerprint, external=variant.source)
    with _untrained_folder(summary) as folder:
        write_no_weights(folder / WEIGHTS, results=variant.source)
    return summary


@contextmanager
def _untrained_folder(summary: TrainSummary) -> Iterator[Path]:
    """Provide a draft of the folder of the stage, and complete it with empty curves and the summary."""
    with whole_folder(stage_folder("train", summary.variant, summary.seed)) as folder:
        yield folder
        _write_curve(folder / "curve.csv", [])
        draw_training(folder / "curve.png", [])
        write_json(folder / "train.json", summary)


def _untrained(variant: str, seed: int, fingerprint: str, *, given: str = "", external: str = "") -> TrainSummary:
    return TrainSummary(
        variant=variant,
        seed=seed,
        fingerprint=fingerprint,
        given=given,
        external=external,
        epochs=0,
        seconds=0.0,
        images_per_second=0.0,
        loader_wait_share=0.0,
        skipped_steps=0,
        AP=None,
        AP50=None,
        precision="none",
        device="none",
        workers=0,
    )


def _summarise(job: TrainJob, epochs: list[dict[str, Any]], *, variant: str) -> TrainSummary:
    last = epochs[-1]
    kept = final_line(epochs, best=job.settings.best_epochs > 0)
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
        batch_size=job.settings.batch_size,
        threads=last.get("threads"),
        val_hash=_val_hash(),
        continued_from=job.continued_from,
    )


def _val_hash() -> str | None:
    prepared = read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    return prepared.split_hashes.get("val")


def _write_curve(path: Path, epochs: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=("epoch", *FIGURES), extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(epochs)
