"""Golden rows of models in the formats of other implementations: darknet, MultimediaTechLab/YOLO and LibreYOLO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.foreign_files import (
    DATA,
    LIBREYOLO_15,
    LIBREYOLO_2026_01,
    MULTIMEDIATECHLAB,
    darknet_order,
    darknet_values,
    keys_of,
    peer_values,
    write_darknet,
)
from tests.golden.vectors import reference_images
from yolov7.data.coco_names import COCO_NAMES
from yolov7.nn.heads import decode_maps
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.foreign import darknet
from yolov7.weights.foreign.reference import import_checkpoint

NAMES = {  # one tensor of every kind of module, with MultimediaTechLab's names
    "rows.s1.conv.conv.weight": "0.conv.weight",
    "rows.p2.a.bn.running_var": "4.bn.running_var",
    "rows.n5.reduce.conv.weight": "51.pre_conv.0.conv.weight",
    "rows.n5.bypass.conv.weight": "51.short_conv.conv.weight",
    "rows.n5.dense.conv.weight": "51.pre_conv.1.conv.weight",
    "rows.n5.squeeze.conv.weight": "51.pre_conv.2.conv.weight",
    "rows.n5.pooled.conv.weight": "51.post_conv.0.conv.weight",
    "rows.n5.refine.conv.weight": "51.post_conv.1.conv.weight",
    "rows.n5.merge.bn.bias": "51.merge_conv.bn.bias",
    "rows.r4.dense.0.weight": "103.conv1.conv.weight",
    "rows.r4.pointwise.1.running_mean": "103.conv2.bn.running_mean",
    "head.convs.1.weight": "105.heads.1.head_conv.weight",
    "head.ia.2": "105.heads.2.implicit_a.implicit",
    "head.im.0": "105.heads.0.implicit_m.implicit",
}
IN_EACH_RELEASE: dict[
    str, Callable[[dict[str, Tensor]], dict[str, Any]]
] = {  # how each implementation wraps its state dict
    "lightning": lambda state: {
        "state_dict": {f"model.model.{name}": value for name, value in state.items()},
        "pytorch-lightning_version": "2.1",
    },
    LIBREYOLO_15: lambda state: {
        "model": state,
        "schema_version": 1,
        "model_family": "yolo7",
        "size": "b",
        "nc": 80,
        "names": {i: f"class {i}" for i in range(80)},
        "imgsz": 640,
        "ema": {"updates": 3},
    },
    LIBREYOLO_2026_01: lambda state: state,
}


def rows_of(model: DetectionModel, images: Tensor) -> Any:
    with torch.no_grad():
        rows = decode_maps(model(images).lead, anchors_px=model.anchors_px.to(images), strides=model.strides)
    return rows[0].numpy()


@pytest.fixture(scope="module")
def values() -> list[Tensor]:
    with np.load(DATA / "multimediatechlab.npz") as golden:
        return peer_values(gain=float(golden["gain"]))


def test_rows_of_a_file_of_multimediatechlab(tmp_path: Path, values: list[Tensor]) -> None:
    state = dict(zip([name for name, _, _ in keys_of(MULTIMEDIATECHLAB)], values, strict=True))
    torch.save(state, tmp_path / "v7.pt")
    weights, (remark,) = import_checkpoint(tmp_path / "v7.pt")
    assert weights.model.spec == load_spec("yolov7")
    assert weights.class_names == COCO_NAMES
    assert "graph differs from YOLOv7's in two places" in remark
    with np.load(DATA / "multimediatechlab.npz") as golden:
        rows = rows_of(weights.model.double(), reference_images(int(golden["img_size"])).double())
        np.testing.assert_allclose(rows[golden["row_idx"]], golden["rows_repaired"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("release", list(IN_EACH_RELEASE))
def test_every_release_gives_the_same_tensors(tmp_path: Path, values: list[Tensor], release: str) -> None:
    names = [name for name, _, _ in keys_of(MULTIMEDIATECHLAB if release == "lightning" else release)]
    torch.save(IN_EACH_RELEASE[release](dict(zip(names, values, strict=True))), tmp_path / "x.pt")
    weights = import_checkpoint(tmp_path / "x.pt").weights
    own = weights.model.state_dict()
    assert len(own) == len(values)
    for name, theirs in NAMES.items():
        assert torch.equal(own[name], value_of(theirs, values)), name
    assert weights.class_names[0] == ("class 0" if release == LIBREYOLO_15 else "person")


def value_of(name: str, values: list[Tensor]) -> Tensor:
    """Return a tensor by MultimediaTechLab's name."""
    return values[[own for own, _, _ in keys_of(MULTIMEDIATECHLAB)].index(name)]


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7", "yolov7x"])
def test_order_of_convolutions_in_darknet_files(name: str) -> None:
    with torch.device("meta"):
        model = DetectionModel(darknet.plain_spec(load_spec(name)), num_classes=80)
    expected = darknet_order(name)
    order = darknet.darknet_order(model)
    assert order == [conv["module"] for conv in expected["convs"]]
    assert [list(model.get_parameter(f"{conv}.weight").shape) for conv in order] == [
        conv["shape"] for conv in expected["convs"]
    ]


@pytest.mark.parametrize(
    "name", ["yolov7-tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolov7", "yolov7x"))]
)
def test_rows_of_a_darknet_file(tmp_path: Path, name: str) -> None:
    path = write_darknet(tmp_path / "x.weights", darknet_values(name))
    assert path.stat().st_size == darknet_order(name)["bytes"]
    weights, remarks = import_checkpoint(path)
    assert weights.model.spec.name == name
    assert remarks[-1] == "it has no implicit knowledge"
    with np.load(DATA / f"darknet_{name}.npz") as golden:
        rows = rows_of(weights.model, reference_images(int(golden["img_size"])))[golden["row_idx"]]
        expected = golden["rows"]
    np.testing.assert_allclose(rows[:, :5], expected[:, :5], rtol=2e-5)
    shown = expected[:, 5:] > 0  # OpenCV, which made these rows, cuts small products to 0
    np.testing.assert_allclose((rows[:, 5:] * rows[:, 4:5])[shown], expected[:, 5:][shown], rtol=1e-4)


def test_a_state_dict_in_a_safetensors_file(tmp_path: Path, values: list[Tensor]) -> None:
    names = [name for name, _, _ in keys_of(MULTIMEDIATECHLAB)]
    safetensors.torch.save_file(dict(zip(names, values, strict=True)), tmp_path / "x.safetensors")
    weights = import_checkpoint(tmp_path / "x.safetensors").weights
    for name, theirs in NAMES.items():
        assert torch.equal(weights.model.state_dict()[name], value_of(theirs, values)), name
