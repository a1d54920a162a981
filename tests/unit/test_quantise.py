"""INT8 files are made for one engine, keep AP, and keep sensitive layers in floating point if they must."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import onnx
import onnxruntime
import openvino
import pytest
import torch

from pipeline.commands.export import export
from tests.unit.exported import annotate, write_weights
from yolov7.data.index import ImageIndex, save_index
from yolov7.engines.metadata import DECODED, INPUT
from yolov7.engines.opened_model import open_model
from yolov7.errors import ArtifactError, SettingError
from yolov7.export import export_model as module
from yolov7.export.export_model import ExportData, export_model
from yolov7.export.graph import ExportedGraph
from yolov7.export.quantise import _from_the_head_on, float_layer_sets, quantise_openvino, rank_layers
from yolov7.export.writers import export_graph
from yolov7.nn.fuse import fuse
from yolov7.weights.weight_files import load_weights

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "nano.safetensors")


@pytest.fixture(scope="module")
def split(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return annotate(weights, tmp_path_factory.mktemp("split") / "images")


@pytest.mark.parametrize(("format", "engine"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_int8_file_keeps_ap_in_its_engine(
    weights: Path, split: ImageIndex, tmp_path: Path, format: str, engine: str
) -> None:
    data = ExportData(split, calibration=split.paths, name="the split")
    report, path = export_model(weights, format=format, precision="int8", output=tmp_path, data=data, tolerance_ap=0.1)
    (check,) = report.checks
    assert (check.engine, check.precision) == (engine, "int8")
    assert report.AP is not None
    assert pytest.approx(report.AP, abs=0.1) == check.AP
    opened = open_model(path)
    assert (opened.engine_name, opened.precision) == (engine, "int8")
    images = torch.randint(0, 256, (2, 3, opened.image_size, opened.image_size), dtype=torch.uint8)
    expected = open_model(weights, precision="float32").engine.decode(images)
    error = (opened.engine.decode(images) - expected).abs().mean()
    assert 0 < error < 0.05 * expected.abs().mean()
    assert json.loads((tmp_path / "export.json").read_text())["float_layers"] is not None
    if format == "onnx":
        quantised = [node for node in onnx.load(str(path)).graph.node if node.op_type == "QuantizeLinear"]
        assert len(quantised) > 10
        with pytest.raises(SettingError, match="openvino"):
            open_model(path, engine="openvino")


def test_ap_is_measured_on_annotated_calibration_data(
    weights: Path, split: ImageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # without a project
    save_index(tmp_path / "val.npz", split)
    run = partial(export, str(weights), output=tmp_path, format="openvino", precision="int8", layout="rgb_nchw")
    run(calibrate=tmp_path / "val.npz", data=None, tolerance=0.5, nms=False, nms_options={}, dynamic=False)
    assert json.loads((tmp_path / "export.json").read_text())["AP_images"] == len(split)


def float_weights(model: openvino.Model) -> set[str]:
    """The weights of the convolutions that compute in floating point."""
    found = [one.input_value(1).get_node() for one in model.get_ops() if one.get_type_name() == "Convolution"]
    return {one.get_friendly_name() for one in found if one.get_type_name() == "Constant"}


@pytest.mark.parametrize("head", ["ppyoloe", "dfl"])
def test_an_anchor_free_head_and_its_decoding_stay_in_floating_point(head: str, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.safetensors", head=head)
    model, file = fuse(load_weights(weights).model).eval(), tmp_path / "float.onnx"
    graph = ExportedGraph(model, dtype=torch.float32, nms=None, num_boxes=None)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    export_graph(graph, images[:1], names=DECODED).save(str(file))
    (found,) = onnxruntime.InferenceSession(str(file)).run(None, {INPUT: images[1:].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), graph(images[1:]), rtol=1e-4, atol=1e-3)
    convolutions = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    wanted = {name for name in convolutions if name.startswith("head.")} | {convolutions[1]}
    quantised = quantise_openvino(file, images=images, float_layers=convolutions[1:2])
    operations = {operation.get_friendly_name(): operation for operation in quantised.get_ops()}
    kept = _from_the_head_on(onnx.load(str(file)))
    assert sum(operation.get_type_name() == "FakeQuantize" for operation in operations.values()) > 5
    assert kept
    assert len(wanted) < len(convolutions)
    assert float_weights(quantised) == {f"model.{name}.weight" for name in wanted}
    for name in kept:
        if name in operations:
            inputs = operations[name].input_values()
            assert not [one for one in inputs if one.get_node().get_type_name() == "FakeQuantize"], name


def test_layers_stay_in_floating_point_until_the_file_passes(
    weights: Path, split: ImageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[Path] = []

    def refuse_twice(file: Path, *arguments: object, **options: object) -> object:
        verified.append(file)
        if len(verified) < 3:
            raise ArtifactError("AP fell")
        return original(file, *arguments, **options)  # type: ignore[arg-type]

    original = module.verify
    monkeypatch.setattr(module, "verify", refuse_twice)
    data = ExportData(split, name="the split")
    report, path = export_model(weights, format="onnx", precision="int8", output=tmp_path, data=data, tolerance_ap=0.5)
    assert report.float_layers
    layers = [name for name, _ in fuse(load_weights(weights).model).named_modules()]
    assert set(report.float_layers) <= set(layers)
    weights_of = {node.input[1] for node in onnx.load(str(path)).graph.node if node.op_type == "Conv"}
    assert {f"model.{name}.weight" for name in report.float_layers} <= weights_of  # they have no quantised weights


def test_the_layers_that_disturb_the_output_most_are_first(weights: Path) -> None:
    model = fuse(load_weights(weights).model).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    order = rank_layers(model, images)
    name = order[-1]
    layer = model.get_submodule(name)
    assert isinstance(layer, torch.nn.Conv2d)
    before = layer.weight.detach().clone()
    with torch.no_grad():  # one large weight per channel makes the step of all others coarse
        layer.weight[:, 0, 0, 0] += 50
    assert rank_layers(model, images).index(name) < len(order) // 2
    assert torch.equal(layer.weight[:, 1:], before[:, 1:])  # the model is as it was


def test_the_sets_of_layers_grow() -> None:
    asked: list[int] = []

    def ranked() -> list[str]:
        asked.append(1)
        return [str(k) for k in range(20)]

    sets = float_layer_sets(ranked)
    assert next(sets) == ()
    assert not asked
    assert [len(one) for one in sets] == [1, 3, 8]


def test_what_cannot_be_quantised_is_an_error(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="precision='int8' is not available for torchscript"):
        export_model(weights, format="torchscript", precision="int8", output=tmp_path)
