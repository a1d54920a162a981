"""The weights that a stage left, checked against what params.yaml and the prepared data say now."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from pipeline.artifacts.files import WEIGHTS, TrainSummary, existing, read_json, stage_folder
from pipeline.params import Params
from yolov7.errors import ArtifactError, shown
from yolov7.training.anchors import differ_in_anchors_only
from yolov7.weights.weight_files import Weights, load_weights


def stage_weights(
    stage: Literal["train", "reparam"],
    params: Params,
    *,
    variant: str,
    seed: int,
    class_names: tuple[str, ...],
    device: torch.device | str = "cpu",
) -> Weights:
    """The weights of a variant and seed; ArtifactError where they are of another spec, training or set of classes.

    DVC would have run the stage again; who runs stages by hand is told which one.
    """
    path = existing(stage_folder(stage, variant, seed) / WEIGHTS, made_by=f"{stage} {variant}")
    weights = load_weights(path, device=device)
    if stage == "train" and not differ_in_anchors_only(params.variant(variant).build_spec(), weights.model.spec):
        raise _stale(path, f"is of another spec than variant {variant!r} of params.yaml", f"train {variant}")
    if stage == "reparam" and weights.training.get("fingerprint") != _trained_as(variant, seed):
        raise _stale(path, "was not made from the weights of `train` as they are now", f"reparam {variant}")
    if weights.class_names != class_names:
        known, prepared = shown(list(weights.class_names)), shown(list(class_names))
        raise _stale(path, f"knows the classes {known}, the prepared data have {prepared}", f"train {variant}")
    return weights


def _trained_as(variant: str, seed: int) -> str:
    path = stage_folder("train", variant, seed) / "train.json"
    return read_json(path, TrainSummary, made_by=f"train {variant}").fingerprint


def _stale(path: Path, what: str, command: str) -> ArtifactError:
    return ArtifactError(f"{path} {what}; run `yolov7 {command}` again, or `dvc repro` all that is stale")
