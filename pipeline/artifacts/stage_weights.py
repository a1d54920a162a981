"""The weights that a stage left, checked against the resolved variant and the prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from pipeline.artifacts.files import WEIGHTS, existing, read_json, stage_folder
from pipeline.artifacts.reports import TrainSummary
from pipeline.experiment import ResolvedVariant
from yolov7.errors import ArtifactError, shown
from yolov7.training.anchors import differ_in_anchors_only
from yolov7.weights.weight_files import Weights, load_weights


def stage_weights(
    stage: Literal["train", "reparam"],
    variant: ResolvedVariant,
    *,
    seed: int,
    class_names: tuple[str, ...],
    device: torch.device | str = "cpu",
) -> Weights:
    """Load the weights that a stage made of a variant and seed.

    DVC would run a stale stage again. If stages are run by hand, the message names the stage to run.

    Args:
        stage: The stage that made them.
        variant: The resolved variant.
        seed: The seed of its training.
        class_names: The classes of the prepared data.
        device: Where to put the model.

    Returns:
        The weights, with the model in evaluation mode.

    Raises:
        ArtifactError: If they are missing, or of another spec, training or set of classes.
    """
    path = existing(stage_folder(stage, variant.name, seed) / WEIGHTS, made_by=f"{stage} {variant.name}")
    weights = load_weights(path, device=device)
    is_trained = stage == "train" and variant.given is None
    if is_trained and not differ_in_anchors_only(variant.spec, weights.model.spec):
        raise _stale(path, f"has another spec than variant {variant.name!r} of params.yaml", f"train {variant.name}")
    if stage == "train" and variant.given and weights.training.get("sha256") != variant.weights_hash != "missing":
        raise _stale(path, f"was not made from {variant.given}", f"train {variant.name}")
    if stage == "reparam" and weights.training.get("fingerprint") != _fingerprint(variant.name, seed):
        raise _stale(path, "was not made from the current weights of `train`", f"reparam {variant.name}")
    if weights.class_names != class_names:
        known, prepared = shown(list(weights.class_names)), shown(list(class_names))
        raise _stale(path, f"has the classes {known}, the prepared data have {prepared}", f"train {variant.name}")
    return weights


def _fingerprint(variant: str, seed: int) -> str:
    path = stage_folder("train", variant, seed) / "train.json"
    return read_json(path, TrainSummary, made_by=f"train {variant}").fingerprint


def _stale(path: Path, fault: str, command: str) -> ArtifactError:
    return ArtifactError(f"{path} {fault}; run `yolov7 {command}` again, or `dvc repro` to run every stale stage")
