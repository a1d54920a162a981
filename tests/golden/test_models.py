"""Whole networks against the reference: our modules come in its order, so weights map one to one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.golden.vectors import LIGHT, fill, load_facts, load_vectors, reference_images, reference_weights
from yolov7.blocks import RepConv
from yolov7.cost import spec_cost
from yolov7.model import DetectionModel
from yolov7.reparam import fuse
from yolov7.spec import ModelSpec, resolve_spec

GRAPHS = ("training/yolov7", "training/yolov7-tiny", "training/yolov7x", "deploy/yolov7", "deploy/yolov7-tiny")


@pytest.mark.parametrize("graph", GRAPHS)
def test_forward(graph: str) -> None:
    golden = load_vectors(f"model_{graph.replace('/', '_')}")
    model = DetectionModel(_spec(graph), num_classes=80).eval()
    fill(model, reference_weights(graph, gain=golden["gain"]))
    images = reference_images(golden["img_size"])
    tolerance = max(1e-3, 3 * golden["fused_max_abs_diff"])
    with torch.no_grad():
        maps = model(images)
        decoded, decoded_fused = model.decode(maps), (fused := fuse(model)).decode(fused(images))
    for i, raw in enumerate(maps.lead):
        _assert_near(raw[0, :, :2, :2, :8], golden[f"raw{i}_corner"], tolerance)
        _assert_near(_statistics(raw), golden["raw_stats"][i], tolerance)
    assert decoded.shape[1] == golden["n_rows"]
    _assert_near(decoded[0, golden["row_idx"]], golden["decoded_rows"], tolerance)
    _assert_near(decoded_fused[0, golden["row_idx"]], golden["decoded_rows_fused"], tolerance)
    _assert_near(_statistics(decoded), golden["decoded_stats"], tolerance)


@pytest.mark.parametrize("graph", GRAPHS)
def test_facts(graph: str) -> None:
    facts = load_facts(graph)
    cost = spec_cost(_spec(graph), image_size=facts["size"])
    assert cost.parameters == facts["params_built"]
    assert cost.parameters_deployed == facts["params_fused"]
    assert round(cost.gflops, 4) == facts["gflops"]
    assert cost.gflops_with_bias == pytest.approx(facts["gflops_with_bias"], abs=1e-4)  # a sum of rounded parts there


@pytest.mark.parametrize("graph", GRAPHS)
def test_structure(graph: str) -> None:
    facts = load_facts(graph)
    with torch.device("meta"):
        model = DetectionModel(_spec(graph), num_classes=80)
        fused = fuse(model)
    assert _count(model, nn.Conv2d) == facts["n_conv2d_built"]
    assert _count(fused, nn.Conv2d) == facts["n_conv2d_fused"]
    assert list(model.strides) == facts["strides"]
    assert model.anchors_px.flatten(1).tolist() == facts["anchors_px"]
    assert _count(fused, nn.BatchNorm2d) == _count(fused, RepConv) == 0
    assert not [key for key in fused.state_dict() if ".ia." in key or ".im." in key]


def _spec(graph: str) -> ModelSpec:
    kind, name = graph.split("/")
    if name == "yolov7x":  # the light base, scaled: nothing of X is written down
        return resolve_spec(LIGHT | {"scale": {"rule": "compound", "depth": 1.5}}, name=name)
    swap = {"head": {"implicit": False}} if kind == "deploy" else {}
    return resolve_spec({"base": name, "swap": swap}, name=name)


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def _statistics(x: Tensor) -> Tensor:
    x = x.double()
    return torch.stack([x.mean(), x.std(), x.abs().sum(), x.min(), x.max()])


def _assert_near(ours: Tensor, golden: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.to(golden.dtype), golden, rtol=tolerance, atol=tolerance)
