"""A training that starts from the weights of another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integration.runs import WORKER, make_job, prepared, read_weights
from yolov7.data.coco_names import COCO_NAMES
from yolov7.errors import ArtifactError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.training.loop import fit
from yolov7.weights.weight_files import save_weights

STILL = {"epochs": 1, "optim": {"lr0": 1e-12, "warmup_bias_lr": 0.0, "nominal_batch": 8}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    return prepared(root, train_images=8, val_images=2, image_size=64)


@pytest.fixture
def model(data: Path, tmp_path: Path) -> DetectionModel:
    torch.manual_seed(7)
    return DetectionModel(make_job(data, tmp_path).spec, num_classes=len(COCO_NAMES))


def save(path: Path, model: DetectionModel) -> Path:
    save_weights(path, model, class_names=COCO_NAMES, image_size=64, training={})
    return path


def test_training_starts_from_the_weights_but_for_the_classes(
    data: Path, tmp_path: Path, model: DetectionModel
) -> None:
    path = save(tmp_path / "coco.safetensors", model)
    fit(make_job(data, tmp_path / "run", weights=path, **STILL), WORKER)
    trained, given = read_weights(tmp_path / "run"), model.state_dict()
    for name, tensor in trained.items():
        if name.startswith("rows.") and name.endswith("conv.weight"):
            torch.testing.assert_close(tensor, given[name], rtol=0, atol=1e-6)
        if name.startswith("head.convs."):
            ours, theirs = (weight.view(3, -1, *weight.shape[1:]) for weight in (tensor, given[name]))
            assert ours.shape[1] != theirs.shape[1]
            torch.testing.assert_close(ours[:, :5], theirs[:, :5], rtol=0, atol=1e-6)


def test_weights_that_cannot_be_trained_on_are_told(data: Path, tmp_path: Path, model: DetectionModel) -> None:
    path = save(tmp_path / "fused.safetensors", fuse(model))
    with pytest.raises(ArtifactError, match=r"fused\.safetensors: is re-parameterised"):
        fit(make_job(data, tmp_path / "run", weights=path, **STILL), WORKER)


def test_a_run_is_known_by_the_content_of_the_weights(data: Path, tmp_path: Path) -> None:
    here, there = (make_job(data, tmp_path, weights=f"{place}/w.safetensors") for place in ("here", "there"))
    other = here.model_copy(update={"weights_hash": "other"})
    assert here.fingerprint == there.fingerprint
    assert here.fingerprint != other.fingerprint
