"""Compare models of other projects with their original code: every convolution, and forward passes."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.foreign_files import write_darknet
from tests.golden.vectors import DATA, baseline_state, load_vectors
from yolov7.criterion.choice import make_loss
from yolov7.errors import SettingError
from yolov7.nn.cost import model_cost
from yolov7.nn.fuse import fuse
from yolov7.nn.heads import decode_maps
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.block_schema import CspRow, PpyoloeHeadRow
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec
from yolov7.weights.foreign.darknet import darknet_order
from yolov7.weights.foreign.reference import import_checkpoint

with gzip.open(DATA / "baseline_convolutions.json.gz", "rt") as _file:
    FACTS: dict[str, Any] = json.load(_file)
QUICK = ("yolov5n__nc3_96x96", "yolox-w025__nc3_64x96", "ppyoloe-w025__nc3_64x96", "yolov4-tiny__nc3_96x96")
IMPORTED = (
    *QUICK[:3],
    "yolov5n6__nc3_128x192",
    "yolox-s__nc3_96x96",
    "ppyoloe-s__nc3_96x96",
    "yolov7-u6__nc3_96x96",
)
OF_DARKNET = ("yolov4__nc80_64x96", "yolov4-tiny__nc3_96x96")
NARROW = {"rule": "both", "depth": 0.33, "width": 0.25}  # of the models that only these tests have


def files(names: tuple[str, ...]) -> list[object]:
    """Return parameters of a test; those of larger models are marked as slow."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", FACTS)
def test_every_convolution_and_the_cost(name: str) -> None:
    facts = FACTS[name]
    with torch.device("meta"):
        model = DetectionModel(load_spec(name), num_classes=80).eval()
        fused = fuse(model)
    found: Counter[tuple[int, ...]] = Counter()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda conv, _, y: found.update([_form(conv, y)]))
    cost = model_cost(model, fused, image_size=facts["size"])
    assert found == Counter(map(tuple, facts["convolutions"]))
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == facts["num_deployed"]
    assert (cost.parameters, cost.parameters_deployed) == (facts["parameters"], facts["parameters_deployed"])
    assert (round(cost.gflops_built, 4), round(cost.gflops, 4)) == (facts["gflops_built"], facts["gflops"])


@pytest.mark.parametrize("file", files(IMPORTED))
def test_forward_of_an_imported_state_dict(tmp_path: Path, file: str) -> None:
    golden, name = load_vectors(f"model_{file}"), file.split("__")[0]
    torch.save(baseline_state(golden, f"{name}/nc{golden['nc']}"), tmp_path / "x.pt")
    narrow = resolve_spec({"base": f"{name.split('-')[0]}-l", "scale": NARROW}, name=name) if "w025" in name else None
    model = import_checkpoint(tmp_path / "x.pt", spec=narrow, class_names=tuple("abc")).weights.model
    assert model.spec == (narrow or load_spec(name))
    assert model.spec.norm_eps == pytest.approx(golden["bn_eps"])
    _assert_forward(model, golden)


@pytest.mark.parametrize("file", files(OF_DARKNET))
def test_forward_of_yolov4(file: str) -> None:
    golden, name = load_vectors(f"model_{file}"), file.split("__")[0]
    model = _model_of_darknet(load_spec(name), f"{name}/nc{golden['nc']}", golden)
    assert model.spec.norm_eps == pytest.approx(golden["bn_eps"])
    _assert_forward(model, golden)


def test_forward_of_a_darknet_file_of_yolov4_tiny(tmp_path: Path) -> None:
    golden = load_vectors("model_yolov4-tiny-darknet__nc80_64x96")
    state = baseline_state(golden, "yolov4-tiny/nc80")
    values: list[bytes] = []
    for kernel in (key for key in state if key.endswith("Conv2d.weight")):
        module = kernel.removesuffix("Conv2d.weight")
        norm = [f"{module}BatchNorm2d.{name}" for name in ("bias", "weight", "running_mean", "running_var")]
        vectors = norm if norm[0] in state else [f"{module}Conv2d.bias"]
        values += [state[key].numpy().astype("<f4").tobytes() for key in (*vectors, kernel)]
    path = write_darknet(tmp_path / "x.weights", b"".join(values))
    weights, remarks = import_checkpoint(path)
    model = weights.model
    assert (model.spec.name, model.spec.norm_eps, weights.letterbox) == ("yolov4-tiny", golden["bn_eps"], "stretch")
    assert remarks == ("its boxes are decoded as darknet decodes them, so it cannot be trained further",)
    with torch.no_grad():
        maps = model(_images(golden))
        predicted = model.decode(maps)
    predicted[..., 5:] *= predicted[..., 4:5]
    fine, coarse = predicted.split([raw.shape[1:4].numel() for raw in maps.lead], dim=1)
    _assert_close(torch.cat([coarse, fine], dim=1), golden["decoded"], 1e-4)
    with pytest.raises(SettingError, match="cannot be trained"):
        make_loss(model, TrainSettings())


def test_the_order_of_a_darknet_file_of_yolov4() -> None:
    with torch.device("meta"):
        model = DetectionModel(load_spec("yolov4"), num_classes=80)
    kernels = [key for key, tensor in model.state_dict().items() if tensor.dim() == 4]
    kernels.sort(key=lambda key: _place_in_darknet(model, key))
    assert darknet_order(model) == [key.removesuffix(".weight") for key in kernels]


@pytest.mark.parametrize("file", ["decode_darknet_p3_1.2", "decode_darknet_p5_1.05"])
def test_decoding_of_darknet(file: str) -> None:
    golden = load_vectors(f"baselines/{file}")
    raw = golden["raw"].unflatten(1, (3, -1)).permute(0, 1, 3, 4, 2)
    anchors = golden["anchors_px"].float()[None]
    found = decode_maps([raw], anchors_px=anchors, strides=[golden["stride"]], scale_xy=[golden["scale_x_y"]])
    found[..., 5:] *= found[..., 4:5]
    _assert_close(found, golden["decoded"], 1e-5)


def _assert_forward(model: DetectionModel, golden: dict[str, Any]) -> None:
    """Compare raw maps and predictions, before and after fusing, with those of the original code."""
    images, is_ppyoloe = _images(golden), isinstance(model.spec.head, PpyoloeHeadRow)
    with torch.no_grad():
        maps = model(images)
        predicted, fused = model.decode(maps), (deployed := fuse(model)).decode(deployed(images))
    expected = _raw_maps(golden)
    assert len(maps.lead) == len(expected)
    for ours, theirs in zip(maps.lead, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-4)
    tolerance = max(1e-4, 10 * golden.get("f32_f64_max_rel", 0.0))
    sizes, order = [raw.shape[1:4].numel() for raw in maps.lead], _order_of_levels(model, golden)
    for ours, boxes in ((predicted, "boxes"), (fused, "boxes_deploy")):
        ours = torch.cat([ours.split(sizes, dim=1)[i] for i in order], dim=1)
        if is_ppyoloe:
            corners = torch.cat([ours[..., :2] - ours[..., 2:4] / 2, ours[..., :2] + ours[..., 2:4] / 2], dim=-1)
            _assert_close(corners, golden[boxes], tolerance)
            _assert_close(ours[..., 5:], golden["scores"], tolerance)
        else:
            theirs = golden["decoded"]
            without_objectness = theirs.shape[-1] == ours.shape[-1] - 1
            _assert_close(ours[..., [0, 1, 2, 3, *range(4 + without_objectness, ours.shape[-1])]], theirs, tolerance)


def _raw_maps(golden: dict[str, Any]) -> list[Tensor]:
    """Return the raw maps of the original in our form (B, A, H, W, outputs), finest level first."""
    levels = [i for i in range(4) if f"raw{i}" in golden or f"raw_cls{i}" in golden]
    maps = []
    for i in levels:
        if f"raw{i}" in golden:
            raw = golden[f"raw{i}"]
        else:
            raw = torch.cat([golden[f"raw_reg{i}"], golden[f"raw_cls{i}"]], dim=1)
        maps.append(raw if raw.dim() == 5 else raw.permute(0, 2, 3, 1)[:, None])
    return sorted(maps, key=lambda raw: -raw.shape[2])


def _order_of_levels(model: DetectionModel, golden: dict[str, Any]) -> list[int]:
    return [model.strides.index(int(stride)) for stride in golden["strides"]]


def _model_of_darknet(spec: ModelSpec, keys: str, golden: dict[str, Any]) -> DetectionModel:
    """Return a model with the weights of a graph whose modules are numbered in the order of darknet."""
    state = {key: value for key, value in baseline_state(golden, keys).items() if "batches" not in key}
    model = DetectionModel(spec, num_classes=golden["nc"]).eval()
    own = [key for key in model.state_dict() if "batches" not in key]
    own.sort(key=lambda key: _place_in_darknet(model, key))
    model.load_state_dict(dict(zip(own, state.values(), strict=True)), strict=False)
    return model


def _place_in_darknet(model: DetectionModel, key: str) -> tuple[int, ...]:
    """Return where darknet has a tensor: the bypass of a block first, outputs behind the convolution before them."""
    part, name, rest = key.split(".", 2)
    rows = list(model.spec.rows)
    if part == "head":
        return rows.index(model.spec.head.sources[int(rest.split(".")[0])]), 1, 0
    if not isinstance(model.spec.rows[name], CspRow):
        return rows.index(name), 0, 0
    return rows.index(name), 0, ("b", "a", "chain", "behind", "merge").index(rest.split(".")[0])


def _form(conv: nn.Conv2d, y: Tensor) -> tuple[int, ...]:
    return (*conv.weight.shape[:3], conv.stride[0], y.shape[2], int(conv.bias is not None))


def _images(golden: dict[str, Any]) -> Tensor:
    drawn = np.random.default_rng(golden["img_seed"]).random(golden["img_shape"].tolist())
    return torch.from_numpy(drawn.astype(np.float32))


def _assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
