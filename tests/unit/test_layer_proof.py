"""The proof of re-parameterisation for each layer alone."""

from __future__ import annotations

import pytest
import torch

from pipeline.stages.reparam import compare_layers
from tests.property.test_fuse import randomise
from yolov7.nn.blocks import RepConv
from yolov7.nn.cost import count_parameters
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.block_schema import CspRepRow
from yolov7.spec.spec_files import resolve_spec

SPEC = {"base": "nano", "image_size": 64, "scale": {"rule": "width", "width": 0.5}, "auxiliary": True}


@pytest.fixture(scope="module")
def model() -> DetectionModel:
    torch.manual_seed(0)
    return DetectionModel(resolve_spec(SPEC, name="small"), num_classes=3).eval()


def test_the_layers_together_are_the_model(model: DetectionModel) -> None:
    deployed = fuse(model)
    layers = compare_layers(model, deployed, torch.rand(1, 3, 64, 64))
    assert sum(layer.parameters_before for layer in layers) == count_parameters(model)
    assert sum(layer.parameters_after for layer in layers) == count_parameters(deployed)
    assert [layer.name for layer in layers if layer.error is None] == ["auxiliary head"]
    assert max(layer.error or 0.0 for layer in layers) < 1e-5
    assert not any(layer.parameters_after > layer.parameters_before for layer in layers)


def test_a_head_without_anchors_is_a_layer_like_any_other() -> None:
    torch.manual_seed(0)
    changes = {"auxiliary": None, "head": "anchor_free"}
    model = DetectionModel(resolve_spec(SPEC | changes, name="small"), num_classes=3).eval()
    deployed = fuse(model)
    layers = compare_layers(model, deployed, torch.rand(1, 3, 64, 64))
    assert sum(layer.parameters_before for layer in layers) == count_parameters(model)
    assert sum(layer.parameters_after for layer in layers) == count_parameters(deployed)
    assert layers[-1].name == "head"
    assert 0 < layers[-1].error < 1e-5


def test_the_branches_of_ppyoloe_are_merged() -> None:
    torch.manual_seed(0)
    spec = resolve_spec({"base": "ppyoloe-s", "scale": {"rule": "width", "width": 0.25}}, name="small")
    model = DetectionModel(spec, num_classes=3).eval()
    randomise(model, seed=0)
    deployed = fuse(model)
    assert not any(isinstance(module, RepConv) for module in deployed.modules())
    layers = compare_layers(model.double(), fuse(model.double()), torch.rand(1, 3, 64, 64, dtype=torch.float64))
    merged = [layer for layer in layers if layer.name in spec.rows and isinstance(spec.rows[layer.name], CspRepRow)]
    assert len(merged) == 9
    assert all(layer.parameters_after < layer.parameters_before for layer in merged)
    assert max(layer.error or 0.0 for layer in layers) < 1e-9


def test_a_wrong_layer_is_the_only_one_with_an_error(model: DetectionModel) -> None:
    deployed = fuse(model)
    name = list(deployed.rows)[1]
    with torch.no_grad():
        next(iter(deployed.rows[name].parameters())).mul_(1.1)
    layers = compare_layers(model, deployed, torch.rand(1, 3, 64, 64))
    assert [layer.name for layer in layers if layer.error is not None and layer.error > 1e-5] == [name]
