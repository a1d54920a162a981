"""Exported files contain what they should, and are written only after they were found equal."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

from pipeline.cli.main import main
from tests.unit.exported import NAMES, SIZE, annotate, write_weights
from yolov7 import Detector, evaluate
from yolov7.data.images import read_image
from yolov7.data.index import ImageIndex, save_index
from yolov7.engines.metadata import DETECTED, INPUT
from yolov7.engines.opened_model import open_model
from yolov7.errors import ArtifactError, SettingError
from yolov7.export import formats, verify
from yolov7.export.export_model import ExportData, export_model
from yolov7.export.report import Tolerance
from yolov7.export.suppression import suppress_in_graph
from yolov7.export.writers import export_graph
from yolov7.inference.nms import non_max_suppression
from yolov7.settings import COCO_NMS, NmsSettings

pytestmark = pytest.mark.engines

GOLDEN = Path(__file__).parents[1] / "golden" / "data"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def split(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return annotate(weights, tmp_path_factory.mktemp("split") / "images")


CASES = sorted(path.stem for path in GOLDEN.glob("nms_*.npz"))


class Suppressions(nn.Module):
    """All golden cases in one graph, because each export needs seconds; the predictions are joined to one vector."""

    def __init__(self, cases: list[tuple[NmsSettings, tuple[int, ...]]]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, flat: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for settings, shape in self.cases:
            decoded, flat = flat[: math.prod(shape)].view(shape), flat[math.prod(shape) :]
            outputs += suppress_in_graph(decoded, settings=settings, num_boxes=shape[1])
        return outputs


def golden_cases() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    cases = [np.load(GOLDEN / f"{name}.npz") for name in CASES]
    return [(json.loads(str(data["kwargs"])), dict(data)) for data in cases]


@pytest.fixture(scope="module")
def golden_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = Suppressions(
        [
            (
                NmsSettings(
                    confidence=options["conf_thres"],
                    iou=options["iou_thres"],
                    multi_label=options.get("multi_label", False),
                    agnostic=options.get("agnostic", False),
                ),
                data["pred"].shape,
            )
            for options, data in golden_cases()
        ]
    )
    flat = torch.zeros(sum(math.prod(shape) for _, shape in graph.cases))
    names = [f"{case}_{output}" for case in CASES for output in DETECTED]
    file = tmp_path_factory.mktemp("golden") / "nms.onnx"
    export_graph(graph, flat, names=names).save(str(file))
    return file


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_suppression_of_a_graph_is_the_reference_implementations(engine: str, golden_file: Path) -> None:
    flat = np.concatenate([data["pred"].ravel() for _, data in golden_cases()])
    if engine == "onnxruntime":
        outputs = onnxruntime.InferenceSession(str(golden_file)).run(None, {INPUT: flat})
    else:
        compiled = openvino.Core().compile_model(golden_file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = list(compiled([flat]).values())
    assert len(CASES) == 8
    for case, (options, data) in enumerate(golden_cases()):
        num, boxes, scores, labels = outputs[4 * case : 4 * case + 4]
        for image in range(len(data["pred"])):
            expected, count = data[f"out{image}"], int(num[image])
            assert not scores[image, count:].any()
            kept = np.flatnonzero(np.isin(labels[image, :count], options.get("classes", range(1000))))
            assert labels[image, kept].tolist() == expected[:, 5].astype(int).tolist(), CASES[case]
            np.testing.assert_allclose(scores[image, kept], expected[:, 4], rtol=1e-5)
            np.testing.assert_allclose(boxes[image, kept], expected[:, :4], rtol=1e-5, atol=1e-3)


def test_an_export_with_suppression_keeps_ap(weights: Path, split: ImageIndex, tmp_path: Path) -> None:
    data = ExportData(split, name="the split")
    report, path = export_model(weights, format="onnx", nms=COCO_NMS, output=tmp_path / "a.onnx", data=data)
    assert report.AP is not None
    assert report.AP > 0.5
    for check in report.checks:
        assert pytest.approx(report.AP, abs=0.001 if check.precision == "float32" else 0.05) == check.AP
        assert check.detections > 10
    assert {(check.engine, check.precision) for check in report.checks} >= {
        ("onnxruntime", "float32"),
        ("openvino", "float32"),
    }
    written = json.loads((tmp_path / "export.json").read_text())
    assert (written["file"], written["AP_images"]) == ("a.onnx", len(split))
    assert written["model"]["nms"] == COCO_NMS.model_dump()
    assert 0 < written["fuse_error"] < 1e-4
    opened = open_model(path, engine="onnxruntime")
    assert opened.suppression == COCO_NMS
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    expected = non_max_suppression(open_model(weights, precision="float32").engine.decode(images), settings=COCO_NMS)
    found = non_max_suppression(opened.engine.decode(images), settings=COCO_NMS)
    for one, other in zip(expected, found, strict=True):
        assert len(one) == len(other) > 0
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-4)


def test_a_model_of_one_class_takes_bgr_images_and_stores_half_the_bytes(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "one.safetensors", names=("thing",))
    report, path = export_model(
        weights, format="openvino", layout="bgr_nhwc", precision="float16", nms=NmsSettings(confidence=0.1)
    )
    assert path == tmp_path / "one-openvino" / "model.xml"
    assert set(report.files) == {"model.xml", "model.bin"}
    assert path.with_suffix(".bin").stat().st_size < 0.6 * weights.stat().st_size
    (exact,) = [check for check in report.checks if check.precision == "float32"]
    assert exact.detections > 10
    assert exact.unmatched <= 0.01 * exact.detections
    assert exact.score_error > 1e-6  # a file of float32 would be more exact
    model = openvino.Core().read_model(path)
    assert model.input().get_element_type() == openvino.Type.u8
    assert model.input().partial_shape.to_string() == f"[?,{SIZE},{SIZE},3]"
    assert open_model(path).class_names == ("thing",)


@pytest.mark.parametrize(
    ("head", "num_classes"),
    [("yolox", 1), *(pytest.param(head, 3, marks=pytest.mark.slow) for head in ("ppyoloe", "dfl"))],
)
def test_files_of_anchor_free_heads_detect_what_torch_detects(head: str, num_classes: int, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.safetensors", names=NAMES[:num_classes], head=head)
    settings = NmsSettings(confidence=0.25, multi_label=True)
    report, path = export_model(weights, format="onnx", nms=settings, output=tmp_path / "out")
    assert {check.engine for check in report.checks} == {"onnxruntime", "openvino"}
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    expected = non_max_suppression(open_model(weights, precision="float32").engine.decode(images), settings=settings)
    for engine in ("onnxruntime", "openvino"):
        decoded = open_model(path, engine=engine, precision="float32").engine.decode(images)
        for one, other in zip(expected, non_max_suppression(decoded, settings=settings), strict=True):
            assert len(one) == len(other) > 5
            torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, rtol=1e-4, atol=1e-2)
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-4)


def test_a_torchscript_file_of_an_anchor_free_head_computes_what_torch_computes(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.safetensors", head="dfl")
    _, path = export_model(weights, format="torchscript", output=tmp_path / "out", precision="bfloat16")
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE + 32), dtype=torch.uint8)  # another size than that of the export
    expected = open_model(weights, precision="float32").engine.decode(images)
    torch.testing.assert_close(open_model(path).engine.decode(images), expected, rtol=0.05, atol=2.0)


@pytest.mark.slow
def test_a_file_of_a_head_without_suppression_has_no_suppression(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.safetensors", head="one_to_one")
    settings = NmsSettings(confidence=0.3, iou=0.2, max_detections=20)
    _, path = export_model(weights, format="onnx", nms=settings, output=tmp_path / "out")
    assert b"NonMaxSuppression" not in path.read_bytes()
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    decoded = open_model(weights, precision="float32").engine.decode(images)
    expected = non_max_suppression(decoded, settings=settings, suppresses=False)
    suppressed = non_max_suppression(decoded, settings=settings)
    engine = open_model(path, engine="onnxruntime").engine
    assert not engine.needs_suppression
    for one, fewer, other in zip(
        expected,
        suppressed,
        non_max_suppression(engine.decode(images), settings=settings, suppresses=False),
        strict=True,
    ):
        assert len(fewer) < len(one) == len(other)
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_an_export_of_dynamic_size_takes_other_sizes(weights: Path, tmp_path: Path) -> None:
    _, path = export_model(weights, format="onnx", nms=NmsSettings(), dynamic=True, output=tmp_path)
    images = torch.randint(0, 256, (2, 3, 96, 160), dtype=torch.uint8)
    expected = non_max_suppression(
        open_model(weights, precision="float32").engine.decode(images), settings=NmsSettings()
    )
    for engine in ("onnxruntime", "openvino"):
        opened = open_model(path, engine=engine, precision="float32")
        assert not opened.fixed_size
        found = non_max_suppression(opened.engine.decode(images), settings=NmsSettings(iou=1.0))
        assert [len(one) for one in found] == [len(one) for one in expected]
        with pytest.raises(SettingError, match="multiples of 16"):
            opened.engine.decode(images[..., :40])


def leave_nothing(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("existed", [False, True])
def test_a_file_that_differs_too_much_is_not_written(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    target = tmp_path / "out"
    if existed:
        target.mkdir()
    monkeypatch.setitem(verify.TOLERANCES, "float32", Tolerance(output=0.0, unmatched=0.0, AP=0.0))
    with pytest.raises(ArtifactError, match=r"its largest output error is .* above 0"):
        export_model(weights, format="torchscript", output=target)
    assert leave_nothing(target)
    assert target.exists() == existed


def test_a_change_of_ap_is_refused(
    weights: Path, split: ImageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolov7.export import export_model as module

    other = write_weights(tmp_path / "other.safetensors", seed=1)
    monkeypatch.setattr(module, "_deploy", lambda model, images: (module.fuse(module.load_weights(other).model), None))
    monkeypatch.setitem(verify.TOLERANCES, "float32", Tolerance(output=1e9, unmatched=1.0, AP=0.001))
    with pytest.raises(ArtifactError, match=r"AP is 0.* and was .*, a change above"):
        export_model(weights, format="torchscript", output=tmp_path / "out", data=ExportData(split))
    assert leave_nothing(tmp_path / "out")


def test_a_file_that_cannot_be_compared_is_not_written(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"confidence=0.999, the weights find no object in the 8 images; name data"):
        export_model(weights, format="onnx", nms=NmsSettings(confidence=0.999), output=tmp_path / "out")
    with pytest.raises(SettingError, match="precision='int8' needs annotated images with the classes of the weights"):
        export_model(weights, format="onnx", precision="int8", output=tmp_path / "out")
    assert leave_nothing(tmp_path / "out")


def test_what_the_suppression_inside_a_file_leaves_out_is_said(
    weights: Path, split: ImageIndex, tmp_path: Path
) -> None:
    data, nms = ExportData(split), NmsSettings(confidence=0.3)
    _, path = export_model(weights, format="onnx", nms=nms, output=tmp_path / "out", data=data)
    detector = Detector.load(path)
    image = read_image(split.paths[0])
    assert detector(image, confidence=0.3).scores.min() > 0.3
    assert len(detector(image)) == len(detector(image, confidence=0.3))  # the default is no wish
    with pytest.raises(SettingError, match=r"confidence=0.2: .* leaves out detections below 0.3; use at least that"):
        detector(image, confidence=0.2)
    (tmp_path / "coco").mkdir()
    shutil.copyfile(split.paths[0], tmp_path / "coco" / "0.png")
    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": SIZE, "height": SIZE}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}],
        "categories": [{"id": 1, "name": NAMES[0]}],
    }
    (tmp_path / "coco" / "all.json").write_text(json.dumps(content))
    notes = evaluate(path, tmp_path / "coco" / "all.json").notes
    assert any("the file contains its suppression (confidence 0.3, at most 300 detections)" in one for one in notes)


def test_a_killed_export_leaves_no_model(weights: Path, tmp_path: Path) -> None:
    def kill(step: str) -> None:
        if step == "time":
            os.kill(os.getpid(), signal.SIGKILL)

    options = {"format": "torchscript", "output": tmp_path / "out", "progress": kill}
    process = multiprocessing.get_context("fork").Process(target=export_model, args=(weights,), kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(ArtifactError, match="contains none"):
        open_model(tmp_path / "out")
    export_model(weights, format="torchscript", output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "model.torchscript"]


def test_wrong_requests_are_named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"format": "onxn"}, "format='onxn' is unknown; .*did you mean 'onnx'"),
        ({"format": "onnx", "precision": "bfloat16"}, "precision='bfloat16' is not available for onnx; .*float32 file"),
        (
            {"format": "torchscript", "precision": "int8"},
            r"precision='int8' is not available .*\['float32', 'float16', 'bfloat16'\]",
        ),
        ({"format": "onnx", "layout": "bgr_nhwc"}, "layout='bgr_nhwc' is not available for onnx"),
        ({"format": "torchscript", "nms": NmsSettings()}, "cannot contain the suppression"),
        ({"format": "onnx", "output": tmp_path / "model.xml"}, "must end in .onnx or be a folder"),
    ):
        with pytest.raises(SettingError, match=message):
            export_model(weights, **options)
    (tmp_path / "export.json").write_text(json.dumps({"file": "model.xml", "files": {}}))
    with pytest.raises(SettingError, match=r"contains the export model.xml; choose another folder"):
        export_model(weights, format="onnx", output=tmp_path)
    monkeypatch.setattr(formats, "installed", lambda package: None)
    with pytest.raises(SettingError, match=r"needs the package onnxscript; .*'yolov7-pipeline\[onnx\]'"):
        export_model(weights, format="onnx")


def test_the_command_verifies_on_the_data_and_prints_one_line(
    weights: Path,
    split: ImageIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_index(tmp_path / "val.npz", split)
    prepared = tmp_path / "project" / "artifacts" / "prepare"
    prepared.mkdir(parents=True)
    save_index(prepared / "train.npz", split)  # a project without a validation split
    monkeypatch.chdir(tmp_path / "project")
    arguments = [str(weights), "--format", "torchscript", "-o", str(tmp_path / "out")]
    places = {
        "the train split of artifacts/prepare": [],
        str(tmp_path / "val.npz"): ["--data", str(tmp_path / "val.npz")],
    }
    for place, data in places.items():
        monkeypatch.setattr(sys, "argv", ["yolov7", "export", *arguments, *data])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1
        assert "AP " in printed
        assert f"on 6 images ({place})" in printed
    monkeypatch.setattr(sys, "argv", ["yolov7", "export", *arguments, "--iou", "0.5"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "yolov7: iou concerns the suppression inside the file; add --nms\n"
