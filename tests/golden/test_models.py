"""Compare whole networks with the reference. Modules have its order, so weights are copied in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.golden.vectors import fill, load_facts, load_vectors, reference_images, reference_weights
from yolov7.nn.blocks import RepConv
from yolov7.nn.cost import model_cost
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.auxiliary import without_auxiliary
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec

P5 = ("yolov7-tiny", "yolov7", "yolov7x")
P6 = ("yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e")
BASELINES = (
    "yolor-csp", "yolor-csp-x", "yolor-p6", "yolor-w6", "yolor-e6", "yolor-d6", "yolov4-csp", "yolov3", "yolov3-spp",
)  # fmt: skip
YOLOV7 = (
    *(f"training/{name}" for name in (*P5, *P6)),
    *(f"deploy/{name}" for name in (*P5, "yolov7-tiny-silu", *P6)),
)
GRAPHS = (*YOLOV7, *(f"baseline/{name}" for name in BASELINES))
LIGHT = ("training/yolov7-tiny", "training/yolov7", "deploy/yolov7-tiny", "deploy/yolov7-tiny-silu", "deploy/yolov7")


@pytest.mark.parametrize("graph", LIGHT)  # test_import covers all of them
def test_forward(graph: str) -> None:
    golden = load_vectors(f"model_{graph.replace('/', '_')}")
    model = DetectionModel(_spec(graph), num_classes=80).eval()
    fill(model, reference_weights(graph, gain=golden["gain"]))
    assert_forward(model, golden)


def assert_forward(model: DetectionModel, golden: dict[str, Any]) -> None:
    """Check that maps and boxes, before and after fusing, are those of a golden file."""
    images = reference_images(golden["img_size"])
    tolerance = max(1e-3, 3 * golden["fused_max_abs_diff"])
    with torch.no_grad():
        maps = model(images, auxiliary=True)
        decoded, decoded_fused = model.decode(maps), (fused := fuse(model)).decode(fused(images))
    raws = (*maps.lead, *maps.auxiliary)
    assert len(raws) == len(golden["raw_stats"])
    for i, raw in enumerate(raws):
        _assert_near(raw[0, :, :2, :2, :8], golden[f"raw{i}_corner"], tolerance)
        _assert_near(_statistics(raw), golden["raw_stats"][i], tolerance)
    assert decoded.shape[1] == golden["n_rows"]
    _assert_near(decoded[0, golden["row_idx"]], golden["decoded_rows"], tolerance)
    _assert_near(decoded_fused[0, golden["row_idx"]], golden["decoded_rows_fused"], tolerance)
    _assert_near(_statistics(decoded), golden["decoded_stats"], tolerance)


@pytest.mark.parametrize("graph", GRAPHS)
def test_facts(graph: str) -> None:
    facts, spec = load_facts(graph), _spec(graph)
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=80).eval()
        fused = fuse(model)
    cost = model_cost(model, fused, image_size=facts["size"])
    assert cost.parameters == facts["params_built"]
    assert cost.parameters_deployed == facts["params_fused"]
    stems, stems_with_bias = _auxiliary_gflops(model, facts["size"])
    assert round(cost.gflops + stems, 4) == facts["gflops"]
    # the value of the reference is a sum of two rounded parts
    assert cost.gflops_with_bias + stems_with_bias == pytest.approx(facts["gflops_with_bias"], abs=1e-4)
    assert _count(model, nn.Conv2d) == facts["n_conv2d_built"]
    assert _count(fused, nn.Conv2d) == facts["n_conv2d_fused"] - 2 * len(spec.head.taps)
    assert list(model.strides) == facts["strides"]
    assert model.anchors_px.flatten(1).tolist() == facts["anchors_px"]
    assert _count(fused, nn.BatchNorm2d) == _count(fused, RepConv) == 0
    assert not [key for key in fused.state_dict() if key.startswith(("head.ia", "head.im", "head.auxiliary"))]


def _spec(graph: str) -> ModelSpec:
    kind, name = graph.split("/")
    if kind != "deploy":
        return load_spec(name)
    return without_auxiliary(resolve_spec({"base": name, "swap": {"head": {"implicit": False}}}, name=name))


def _auxiliary_gflops(model: DetectionModel, size: int) -> tuple[float, float]:
    """Return GFLOPs of the 3x3 convolutions of the auxiliary head, without and with biases."""
    macs = outputs = 0
    for level, stem in enumerate(model.head.auxiliary_stems):
        number = stem.conv.out_channels * (size // model.strides[level]) ** 2
        macs += 9 * stem.conv.in_channels * number
        outputs += number
    return 2 * macs / 1e9, 2 * (macs + outputs) / 1e9


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def _statistics(x: Tensor) -> Tensor:
    x = x.double()
    return torch.stack([x.mean(), x.std(), x.abs().sum(), x.min(), x.max()])


def _assert_near(ours: Tensor, golden: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.to(golden.dtype), golden, rtol=tolerance, atol=tolerance)
