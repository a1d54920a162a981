"""Every assigner and auxiliary head can train narrow models, and a deployed auxiliary head costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration.runs import WORKER, prepared
from yolov7.nn.cost import spec_cost
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.auxiliary import with_auxiliary, without_auxiliary
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import resolve_spec, spec_to_json
from yolov7.training.job import TrainJob
from yolov7.training.loop import fit
from yolov7.training.record import read_epochs

SPECS = {"yolov7-tiny": 0.25, "yolov7": 0.125, "yolov7-w6": 0.125}  # and the width that is left of them
METHODS: dict[str, dict[str, Any]] = {
    "anchor": {"assigner": "anchor"},
    "ota": {"assigner": "ota"},
    "independent": {"auxiliary": "independent"},
    "lead guided": {"auxiliary": "lead_guided"},
    "coarse to fine": {"auxiliary": "coarse_to_fine"},
    "coarse to fine, unconstrained": {"auxiliary": "coarse_to_fine", "auxiliary_constraint": False},
}


def narrow(name: str) -> ModelSpec:
    return resolve_spec({"base": name, "scale": {"rule": "width", "width": SPECS[name]}}, name=name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    return prepared(root, train_images=8, val_images=2, image_size=128)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SPECS)
def test_the_loss_falls(name: str, method: str, data: Path, tmp_path: Path) -> None:
    loss = METHODS[method]
    spec = with_auxiliary(narrow(name)) if "auxiliary" in loss else without_auxiliary(narrow(name))
    settings = {
        "epochs": 20,
        "batch_size": 2,
        "image_size": 128,
        "precision": "float32",
        "validate_every": 20,
        "augment": {"mosaic": 0.0, "scale": 0.0, "translate": 0.0, "flip_horizontal": 0.0},
        "loss": {**loss, "classification": 8.0},
        "optim": {"optimizer": "adamw", "lr0": 0.004, "momentum": 0.9, "nominal_batch": 2},
    }
    job = TrainJob(
        spec_json=spec_to_json(spec),
        settings=TrainSettings.model_validate(settings),
        seed=0,
        data_folder=data,
        data_hash="",
        run_folder=tmp_path / "runs" / "a" / "0",
    )
    fit(job, WORKER)
    learned = [line["box"] + line["classification"] for line in read_epochs(job.run_folder)]
    assert np.mean(learned[-3:]) < 0.85 * np.mean(learned[:3])


@pytest.mark.parametrize("name", SPECS)
def test_deployed_an_auxiliary_head_costs_nothing(name: str) -> None:
    plain = without_auxiliary(narrow(name))
    trained = with_auxiliary(plain)
    ours, without = spec_cost(trained), spec_cost(plain)
    assert ours.parameters > without.parameters
    assert ours.parameters_deployed == without.parameters_deployed
    assert ours.gflops_with_bias == without.gflops_with_bias


@pytest.mark.parametrize("name", SPECS)
def test_deployed_its_outputs_are_those_of_the_model_without(name: str) -> None:
    torch.manual_seed(0)
    trained = DetectionModel(with_auxiliary(without_auxiliary(narrow(name))), num_classes=3).eval()
    plain = DetectionModel(without_auxiliary(narrow(name)), num_classes=3).eval()
    plain.load_state_dict({key: trained.state_dict()[key] for key in plain.state_dict()})
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        found = zip(fuse(trained)(images).lead, fuse(plain)(images).lead, strict=True)
    assert all(torch.equal(ours, expected) for ours, expected in found)
    assert sum(p.numel() for p in fuse(trained).parameters()) == sum(p.numel() for p in fuse(plain).parameters())
