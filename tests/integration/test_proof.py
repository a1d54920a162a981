"""The proof of re-parameterisation: a model that is not the trained one never leaves the stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.artifacts.files import stage_folder, write_json
from pipeline.artifacts.prepared import load_split
from pipeline.artifacts.reports import TrainSummary
from pipeline.data_settings import DataSettings, SyntheticSettings
from pipeline.experiment import parse_experiment
from pipeline.stages.evaluate import evaluate
from pipeline.stages.prepare import prepare
from pipeline.stages.reparam import reparam
from yolov7.data.index import load_index
from yolov7.errors import ArtifactError
from yolov7.nn.blocks import ConvAct
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import load_weights, save_weights

EXPERIMENT = parse_experiment({"variants": {"tiny": {"spec": "yolov7-tiny"}}})
TINY = EXPERIMENT.variant("tiny")
DEPLOYED = stage_folder("reparam", "tiny", 0) / "weights.safetensors"


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data and the weights of a model whose batch norms have seen something."""
    monkeypatch.chdir(tmp_path)
    prepare(DataSettings(synthetic=SyntheticSettings(train_images=4, val_images=3, image_size=128)))
    torch.manual_seed(0)
    index = load_index(stage_folder("prepare") / "val.npz")
    model = DetectionModel(load_spec("yolov7-tiny"), num_classes=len(index.class_names))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.normal_(module.weight, 1.0, 0.1)
    folder = stage_folder("train", "tiny", 0)
    save_weights(
        folder / "weights.safetensors",
        model,
        class_names=index.class_names,
        image_size=128,
        training={"fingerprint": "x"},
    )
    write_json(
        folder / "train.json",
        TrainSummary(
            variant="tiny", seed=0, fingerprint="x", epochs=1, seconds=1, images_per_second=1, loader_wait_share=0,
            skipped_steps=0, AP=None, AP50=None, precision="float32", device="cpu", workers=1,
        ),
    )  # fmt: skip
    return tmp_path


def wrong_epsilon(model: DetectionModel) -> DetectionModel:
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5
    return fuse(model)


def forgotten_bias(model: DetectionModel) -> DetectionModel:
    fused = fuse(model)
    block = next(module for module in fused.modules() if isinstance(module, ConvAct))
    next(module for module in block.modules() if isinstance(module, torch.nn.Conv2d)).bias.data[0] += 1e-2
    return fused


def not_a_number(model: DetectionModel) -> DetectionModel:
    fused = fuse(model)
    next(fused.parameters()).data[0] = float("nan")
    return fused


def test_an_exact_fuse_passes_and_is_measured(trained: Path) -> None:
    report = reparam(EXPERIMENT.reparam, TINY, seed=0)
    assert 0 < report.max_error_float32 < 1e-4
    assert 0 < report.max_error_float64 < 1e-9
    assert report.parameters_after < report.parameters_before
    assert load_weights(DEPLOYED).model.fused


@pytest.mark.parametrize("fuse_wrongly", [forgotten_bias, not_a_number])
def test_a_wrong_fuse_fails_and_leaves_nothing(
    trained: Path, fuse_wrongly: Callable[[DetectionModel], DetectionModel]
) -> None:
    with pytest.raises(ArtifactError, match="the re-parameterised model differs from the trained one"):
        reparam(EXPERIMENT.reparam, TINY, seed=0, fuse_model=fuse_wrongly)
    assert not DEPLOYED.exists()


def test_a_fuse_with_another_epsilon_fails(trained: Path) -> None:
    """The commonest mistake; it alters the model that it is given, so it gets a copy."""
    import copy

    with pytest.raises(ArtifactError, match="largest output error"):
        reparam(EXPERIMENT.reparam, TINY, seed=0, fuse_model=lambda model: wrong_epsilon(copy.deepcopy(model)))


def test_evaluate_compares_the_deployed_model_with_the_trained_one(trained: Path) -> None:
    reparam(EXPERIMENT.reparam, TINY, seed=0)
    metrics = evaluate(EXPERIMENT.evaluate, TINY, seed=0)
    assert abs(metrics.AP - metrics.AP_before_reparam) <= 1 / load_split("val").num_boxes  # AP resolves no less
    assert metrics.split == "val"


def test_models_that_round_differently_are_compared_in_float32(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reparam(EXPERIMENT.reparam, TINY, seed=0)
    summary = Path("artifacts/train/tiny/0/train.json")
    measured = {"AP": 0.9, "val_hash": load_split("val").evaluation_hash(), "precision": "bfloat16"}
    stated = json.loads(summary.read_text()) | measured
    summary.write_text(json.dumps(stated))
    monkeypatch.setattr("pipeline.stages.evaluate._precision", lambda: torch.bfloat16)
    assert evaluate(EXPERIMENT.evaluate, TINY, seed=0).AP_before_reparam == 0.9
    summary.write_text(json.dumps(stated | {"precision": "float32"}))
    monkeypatch.setattr("pipeline.stages.evaluate._precision", lambda: torch.float32)
    with pytest.raises(ArtifactError, match=r"after re-parameterisation and was 0\.9000 before"):
        evaluate(EXPERIMENT.evaluate, TINY, seed=0)
