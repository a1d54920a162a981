"""Every engine computes what torch computes, and files are opened from what they say about themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from pipeline.console import markdown_table
from tests.unit.exported import NAMES, SIZE, write_weights
from yolov7.engines import engine_table
from yolov7.engines.engine_table import KINDS, choose_engine, engines
from yolov7.engines.metadata import ExportMetadata, read_onnx_texts, read_texts
from yolov7.engines.opened_model import open_model
from yolov7.engines.tensor_rt import join_engine, read_tensorrt_texts
from yolov7.errors import ArtifactError, SettingError
from yolov7.export.export_model import export_model
from yolov7.export.formats import FORMATS
from yolov7.export.verify import TOLERANCES
from yolov7.weights.weight_files import load_weights

pytestmark = pytest.mark.engines

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def onnx_file(weights: Path) -> Path:
    return export_model(weights, format="onnx")[1]


@pytest.fixture(scope="module")
def openvino_file(weights: Path, onnx_file: Path) -> Path:
    import openvino

    target = weights.with_name("openvino") / "model.xml"
    target.parent.mkdir()
    openvino.save_model(openvino.Core().read_model(onnx_file), target, compress_to_fp16=False)
    return target


@pytest.fixture(scope="module")
def torchscript_file(weights: Path) -> Path:
    return export_model(weights, format="torchscript")[1]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def expected(weights: Path, images: Tensor) -> Tensor:
    model = load_weights(weights).model
    with torch.inference_mode():
        return model.decode(model(images.float() / 255))


def worst(got: Tensor, wanted: Tensor) -> float:
    return float(((got - wanted).abs() / wanted.abs().amax(dim=(0, 1))).max())


@pytest.mark.parametrize(
    ("file", "engine"),
    [
        ("weights", "torch"),
        ("onnx_file", "onnxruntime"),
        ("onnx_file", "openvino"),
        ("openvino_file", "openvino"),
        ("torchscript_file", "torchscript"),
    ],
)
def test_engines_agree_with_torch(
    file: str, engine: str, weights: Path, images: Tensor, request: pytest.FixtureRequest
) -> None:
    opened = open_model(request.getfixturevalue(file), engine=engine, precision="float32", device="cpu")
    assert (opened.engine_name, opened.precision) == (engine, "float32")
    assert (opened.class_names, opened.image_size) == (NAMES, SIZE)
    assert opened.source["spec"] == "small"
    assert len(opened.source["weights_sha256"]) == 64
    for batch in (images, images[:1]):
        assert worst(opened.engine.decode(batch), expected(weights, batch)) < 1e-4


def test_torchscript_takes_images_of_other_sizes(weights: Path, torchscript_file: Path) -> None:
    images = torch.randint(0, 256, (1, 3, 96, 160), dtype=torch.uint8)
    opened = open_model(torchscript_file)
    assert not opened.fixed_size
    assert worst(opened.engine.decode(images), expected(weights, images)) < 1e-4
    archive = torchscript_file.rename(torchscript_file.with_suffix(".pt"))
    assert open_model(archive).engine_name == "torchscript"
    archive.rename(torchscript_file)


def test_openvino_computes_in_bfloat16_only_if_asked_or_fastest(onnx_file: Path, weights: Path, images: Tensor) -> None:
    fastest = open_model(onnx_file)
    assert fastest.engine_name == "openvino"
    error = worst(fastest.engine.decode(images), expected(weights, images))
    assert (error > 1e-4) == (fastest.precision == "bfloat16")
    assert error < 0.5


def test_openvino_gives_the_same_values_when_it_has_fixed_a_repeated_shape(openvino_file: Path, images: Tensor) -> None:
    engine = open_model(openvino_file, engine="openvino", precision="float32", device="cpu").engine
    first = engine.decode(images)
    kept = first.clone()
    for _ in range(6):
        assert torch.equal(engine.decode(images), first)
    assert list(engine._fixed) == [tuple(images.shape)]
    assert torch.equal(engine.decode(images[:1]), first[:1])  # another shape
    engine.decode(255 - images)
    assert torch.equal(first, kept)  # later calls do not change earlier results


def test_a_folder_is_opened_by_its_only_model(onnx_file: Path, tmp_path: Path) -> None:
    assert open_model(onnx_file.parent, engine="onnxruntime").image_size == SIZE
    with pytest.raises(ArtifactError, match="must contain one exported model, and it contains none"):
        open_model(tmp_path)


def test_a_changed_file_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    shutil.copytree(onnx_file.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / onnx_file.name
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed after it was verified"):
        open_model(copy)
    (tmp_path / "copy" / "export.json").write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        open_model(copy)


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_a_truncated_file_is_refused(onnx_file: Path, tmp_path: Path, size: int) -> None:
    short = tmp_path / "short.onnx"
    short.write_bytes(onnx_file.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"short\.onnx"):
        open_model(short)


def test_metadata_are_those_that_onnx_reads(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    assert {entry.key: entry.value for entry in model.metadata_props} == read_onnx_texts(onnx_file)
    metadata = read_texts(onnx_file, read_onnx_texts(onnx_file))
    assert (metadata.class_names, metadata.strides, metadata.letterbox_value) == (NAMES, (8, 16), 114)
    del model.metadata_props[:]
    foreign = tmp_path / "foreign.onnx"
    onnx.save(model, foreign)
    with pytest.raises(ArtifactError, match="was not exported by this program"):
        open_model(foreign)
    texts = metadata.to_texts() | {"image_size": "-5"}
    with pytest.raises(ArtifactError, match=r"its metadata cannot be used .*image_size"):
        read_texts(foreign, texts)


def test_a_file_runs_only_with_the_engines_it_is_made_for(onnx_file: Path, tmp_path: Path) -> None:
    metadata = read_texts(onnx_file, read_onnx_texts(onnx_file))
    quantised = metadata.model_copy(update={"precision": "int8", "engines": ("onnxruntime",)})
    model = onnx.load(onnx_file)
    onnx.helper.set_model_props(model, quantised.to_texts())
    copy = tmp_path / "int8.onnx"
    onnx.save(model, copy)
    assert open_model(copy).engine_name == "onnxruntime"
    with pytest.raises(SettingError, match="engine='openvino' does not run this"):
        open_model(copy, engine="openvino")


def test_the_engine_and_precision_in_which_a_file_was_verified_are_preferred(onnx_file: Path, tmp_path: Path) -> None:
    shutil.copytree(onnx_file.parent, tmp_path / "copy")
    proof, copy = tmp_path / "copy" / "export.json", tmp_path / "copy" / onnx_file.name
    content = json.loads(proof.read_text())
    assert {check["engine"] for check in content["checks"]} == {"openvino", "onnxruntime"}
    assert (open_model(copy).engine_name, open_model(copy).notes) == ("openvino", ())
    for wanted, kept, notes in (("onnxruntime", "onnxruntime", 0), ("openvino", "openvino", 0), ("openvino", "", 1)):
        checks = [one for one in content["checks"] if one["engine"] == kept and one["precision"] == "float32"]
        proof.write_text(json.dumps(content | {"checks": checks}))
        opened = open_model(copy)
        assert opened.engine_name == wanted
        assert (opened.precision == "float32") or notes
        if kept == "onnxruntime":
            assert "was not verified with openvino in" in open_model(copy, engine="openvino").notes[0]
        assert len(opened.notes) >= notes


def test_wrong_settings_are_named(onnx_file: Path, weights: Path, images: Tensor) -> None:
    for options, message in (
        ({"engine": "onnxruntim"}, r"engine='onnxruntim' is unknown; .*did you mean 'onnxruntime'"),
        ({"engine": "torch"}, "engine='torch' does not run this ONNX"),
        ({"engine": "onnxruntime", "precision": "float16"}, "was exported in float32"),
        ({"engine": "openvino", "precision": "float16"}, "OpenVINO computes this file on this CPU in"),
    ):
        with pytest.raises(SettingError, match=message):
            open_model(onnx_file, **options)
    with pytest.raises(SettingError, match="engine='onnxruntime' does not run this weight file"):
        open_model(weights, engine="onnxruntime")
    with pytest.raises(SettingError, match="takes only 64 x 64"):
        open_model(onnx_file, engine="onnxruntime").engine.decode(images[..., :32])


def test_a_missing_package_is_named(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_table.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"openvino is not installed; .*'yolov7-pipeline\[openvino\]'"):
        open_model(onnx_file)
    with pytest.raises(SettingError, match=r"pip install 'yolov7-pipeline\[onnx\]'"):
        choose_engine("onnxruntime", "onnx")


def test_engine_files_hold_their_metadata(onnx_file: Path, tmp_path: Path) -> None:
    metadata: ExportMetadata = read_texts(onnx_file, read_onnx_texts(onnx_file))
    file = tmp_path / "model.engine"
    file.write_bytes(join_engine(metadata.to_texts(), b"plan"))
    assert read_texts(file, read_tensorrt_texts(file)) == metadata
    file.write_bytes(b"plan")
    with pytest.raises(ArtifactError, match="is not an engine file"):
        read_tensorrt_texts(file)


def test_the_documentation_lists_all_engines_and_formats() -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows = [
        (f"`{one.name}`", ", ".join(KINDS[kind] for kind in one.runs), *map(", ".join, (one.devices, one.precisions)))
        for one in engines()
    ]
    needs = [one.needs for one in engines()]
    table = [(*row, need) for row, need in zip(rows, needs, strict=True)]
    assert markdown_table(("engine", "runs", "devices", "precisions", "needs"), table) in text
    formats = [
        (
            f"`{name}`",
            f"`{info.suffix}`",
            ", ".join(info.precisions),
            "yes" if info.has_nms else "no",
            ", ".join(f"`{layout}`" for layout in info.layouts),
            ", ".join(f"`{engine}`" for engine in info.engines),
        )
        for name, info in FORMATS.items()
    ]
    assert markdown_table(("format", "file", "precisions", "`--nms`", "layouts", "engines"), formats) in text
    tolerances = [
        (name, f"{one.output:g}", f"{one.unmatched:g}", f"{one.AP:g}")
        for name, one in TOLERANCES.items()
        if name != "int8"
    ]
    head = ("precision", "output error", "share of unmatched detections", "change of AP")
    assert markdown_table(head, tolerances) in text


@pytest.mark.slow
def test_a_compiled_model_agrees_with_torch(weights: Path, images: Tensor) -> None:
    opened = open_model(weights, engine="torch-compile", precision="float32", device="cpu")
    assert worst(opened.engine.decode(images), expected(weights, images)) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_agree_with_torch(weights: Path, images: Tensor) -> None:
    opened = open_model(weights, engine="cuda-graphs", precision="float32")
    for batch in (images, images[:1], images):
        assert worst(opened.engine.decode(batch).cpu(), expected(weights, batch)) < 1e-3
