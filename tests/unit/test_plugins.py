"""Own code by dotted name: what is checked, when it may be imported, and what it changes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.experiment import parse_experiment
from pipeline.stages.resolve import training_inputs
from tests.own_code import Fast
from yolov7.criterion.choice import make_loss
from yolov7.criterion.own_code import similarity_of
from yolov7.data.augment.own_code import OwnAugmentations
from yolov7.data.augment.tile import Tile
from yolov7.detect.detector import Detector
from yolov7.errors import ArtifactError, SettingError, SpecError, TrainingError, one_line
from yolov7.nn.cost import spec_cost
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import resolve_spec, spec_from_json, spec_to_json, spec_to_yaml
from yolov7.structures import Targets
from yolov7.system.plugins import VARIABLE, allow_plugins, naming
from yolov7.system.settings_base import describe_fault
from yolov7.training.job import TrainJob, check_own_code, hash_own_code
from yolov7.weights.weight_files import load_weights, save_weights

ROWS: dict[str, Any] = {
    "stem": {"block": "conv", "out": 8, "s": 2},
    "deep": {"block": "conv", "out": 8, "s": 2},
    "joined": {"block": "tests.own_code.Join", "from": ["stem", "deep"], "out": 6},
    "slow": {"block": "tests.own_code.Slow", "out": 12, "scale": 0.5},
    "head": {"block": "detect", "anchors": [[4, 4, 8, 8]]},
}
TARGETS = Targets(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([[0.5, 0.5, 0.3, 0.3]] * 2))


def own_spec(**rows: Any) -> ModelSpec:
    return resolve_spec({"activation": "silu", "image_size": 64, "rows": ROWS | rows}, name="own")


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tests")


def fault(**settings: Any) -> str:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  # pydantic's
        TrainSettings.model_validate(settings)
    return describe_fault(raised.value, TrainSettings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"box_loss": "cio"}}, "loss.box_loss: 'cio' must be one of ciou, giou, diou, siou, eiou, or the "),
        (
            {"loss": {"box_loss": "absent.losses.wiou"}},
            "loss.box_loss: absent.losses.wiou: there is no package 'abse",
        ),
        ({"loss": {"box_loss": "tests.own_cod.similarity"}}, "there is no module 'tests.own_cod'; install it"),
        ({"loss": {"box_loss": "tests.own_code.similarty"}}, "has no 'similarty'; did you mean 'similarity'?"),
        ({"loss": {"box_loss": "tests.own_code.mirror"}}, "must take (predicted, wanted), but its signature is (image"),
        ({"loss": {"box_loss": "tests.own_code.FirstCells"}}, "cannot be called without arguments (TypeError: "),
        ({"loss": {"box_loss": "sys.path"}}, "sys.path is no function and no class; name a box loss, such as mypkg."),
        ({"loss": {"box_loss": "broken_module.loss"}}, "importing broken_module fails with ZeroDivisionError: "),
        ({"loss": {"assigner": "tests.own_code.similarity"}}, "loss.assigner: tests.own_code.similarity must take (he"),
        ({"augment": {"plugins": ["rain"]}}, "augment.plugins.0: 'rain' must be the dotted name of an augmentation, s"),
        ({"callbacks": ["json.JSONDecoder"]}, "callbacks.0: json.JSONDecoder is not derived from yolov7.training.call"),
    ],
)
def test_wrong_names_are_faults_of_one_line(
    settings: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    found = fault(**settings)
    assert message in found
    assert found == one_line(found)


def test_an_edit_of_the_source_changes_the_fingerprint_and_the_inputs_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "edited_package.py"
    source.write_text("def loss(predicted, wanted):\n    return predicted[:, 0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    content = {"variants": {"nano": {"spec": "nano"}}, "train": {"loss": {"box_loss": "edited_package.loss"}}}

    def look() -> tuple[Any, str]:
        variant = parse_experiment(content).variant("nano")
        job = TrainJob(
            spec_json=spec_to_json(variant.spec),
            settings=variant.train,
            seed=0,
            data_folder=tmp_path,
            data_hash="",
            run_folder=tmp_path,
            own_code=dict(variant.own_code),
        )
        check_own_code(job)
        return training_inputs(variant, seed=0), job.fingerprint

    (inputs, fingerprint), before = look(), TrainSettings()
    assert before.own_code == {}
    assert "own_code" not in training_inputs(parse_experiment({**content, "train": {}}).variant("nano"), seed=0)
    assert look() == (inputs, fingerprint)
    source.write_text("def loss(predicted, wanted):\n    return predicted[:, 1]\n")
    changed, other = look()
    assert other != fingerprint
    assert changed["own_code"] != inputs["own_code"]
    assert {**changed, "own_code": 0} == {**inputs, "own_code": 0}


def test_the_working_folder_is_searched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_folder").mkdir()
    (tmp_path / "own_folder" / "losses.py").write_text("def loss(predicted, wanted):\n    return predicted[:, 0]\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert "there is no package 'own_folders'" in fault(loss={"box_loss": "own_folders.losses.loss"})
    assert sys.path == before
    assert TrainSettings.model_validate({"loss": {"box_loss": "own_folder.losses.loss"}}).own_code
    assert sys.path == [*before, str(tmp_path)]


def test_a_worker_refuses_another_version_of_the_source(tmp_path: Path) -> None:
    settings = TrainSettings.model_validate({"loss": {"box_loss": "tests.own_code.similarity"}})
    job = TrainJob(
        spec_json=spec_to_json(resolve_spec({"base": "nano"}, name="nano")),
        settings=settings,
        seed=0,
        data_folder=tmp_path,
        data_hash="",
        run_folder=tmp_path,
        own_code={"tests.own_code.similarity": "0" * 16},
    )
    with pytest.raises(SettingError, match=r"the source file of tests\.own_code\.similarity is not the one with which"):
        check_own_code(job)


def test_a_spec_with_own_blocks_is_read_and_written_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    spec = own_spec(slow={"block": "no_such_package.Block", "out": 12, "scale": 0.5})
    assert spec.plugin_rows["slow"].options == {"scale": 0.5}
    assert spec_from_json(spec_to_json(spec)) == spec
    assert resolve_spec(yaml.safe_load(spec_to_yaml(spec)), name="own") == spec
    assert "no_such_package" not in sys.modules


def test_a_swap_replaces_a_block_and_changes_the_options_of_one(allowed: None) -> None:
    changes = {"base": "nano", "swap": {"p3": {"block": "tests.own_code.Slow", "scale": 2}}}
    row = resolve_spec(changes, name="swapped").plugin_rows["p3"]
    before = resolve_spec({"base": "nano"}, name="nano").rows["p3"]
    assert (row.of, row.out, row.options) == ("tests.own_code.Slow", before.out, {"scale": 2})  # type: ignore[union-attr]
    wide = resolve_spec({**changes, "scale": {"rule": "width", "width": 2.0}}, name="wide")
    assert wide.plugin_rows["p3"].out == 2 * before.out  # type: ignore[union-attr]
    assert DetectionModel(wide, num_classes=2).rows["p3"].left.out_channels == wide.plugin_rows["p3"].out


def test_own_blocks_are_built_counted_and_fused(allowed: None) -> None:
    torch.manual_seed(0)
    spec = own_spec()
    model = DetectionModel(spec, num_classes=2).eval()
    assert model.rows["joined"].norm.eps == spec.norm_eps
    cost, plain = spec_cost(spec, num_classes=2), 2 * 32 * 32 * (3 * 9 * 8 + 16 * 6) + 2 * 16 * 16 * 8 * 9 * 8
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    head = 32 * 32 * 12 * model.head.convs[0].out_channels * 2  # type: ignore[union-attr, operator]
    assert cost.gflops * 1e9 == pytest.approx(plain + 2 * 32 * 32 * 6 * 12 + head)
    assert cost.gflops_built * 1e9 == pytest.approx(plain + 2 * 2 * 32 * 32 * 6 * 12 + head)
    deployed = fuse(model)
    assert isinstance(deployed.rows["slow"], Fast)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(deployed(images).lead[0], model(images).lead[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"block": "tests.own_code.WrongShape", "out": 8},
            "makes (1, 1, 64, 64) of (1, 6, 64, 64), but its row states",
        ),
        (
            {"block": "tests.own_code.no_module", "out": 8},
            "no_module is not derived from torch.nn.modules.module.Mod",
        ),
        ({"block": "tests.own_code.Failing", "out": 8}, "tests.own_code.Failing failed: RuntimeError: no room (/"),
        ({"block": "tests.own_code.Slow", "from": ["stem", "joined"]}, "but 3 were given; correct it"),
        ({"block": "tests.own_code.Slow", "scal": 1}, "must take (channels, out, stride, scal=...), but its signature"),
    ],
)
def test_blocks_that_do_not_fit_their_row_are_errors_of_one_line(allowed: None, row: Any, message: str) -> None:
    with pytest.raises((SpecError, SettingError)) as raised:
        DetectionModel(own_spec(slow=row), num_classes=2)
    assert message in str(raised.value)
    assert str(raised.value) == one_line(raised.value)


def test_params_name_the_row_of_a_block_that_cannot_be_used() -> None:
    content = {"variants": {"a": {"spec": "nano", "swap": {"p3": {"block": "nopkg.Block"}}}}}
    with pytest.raises(SettingError, match=r"variants\.a: p3: nopkg\.Block is a block from the package 'nopkg', whose"):
        parse_experiment(content)
    with pytest.raises(SettingError, match=r"variants\.a: p3: nopkg\.Block: there is no package 'nopkg'; install it"):
        parse_experiment({**content, "plugins": ["nopkg"]})
    with pytest.raises(SettingError, match=r"plugins: 'a-b' must be the name of a package"):
        parse_experiment({**content, "plugins": ["a-b"]})


@pytest.mark.parametrize("permission", ["", "test", "tests.own", "tests.own_code.Slo", "other,tests.own_code.Join"])
def test_a_weight_file_of_a_stranger_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, permission: str
) -> None:
    """Only a name of which a permission is a prefix, part by part, may be imported."""
    monkeypatch.setenv(VARIABLE, "tests")
    path = tmp_path / "weights.safetensors"
    model = DetectionModel(own_spec(), num_classes=2)
    save_weights(path, model, class_names=("a", "b"), image_size=64, training={})
    evil = tmp_path / "evil.safetensors"
    mark = tmp_path / "executed"
    (tmp_path / "evil_package.py").write_text(f"open({str(mark)!r}, 'w')")
    content = path.read_bytes().replace(b"tests.own_code.Slow", b"evil_package.System")
    evil.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, permission)
    for file in (path, evil):
        with pytest.raises(
            ArtifactError, match=r"whose code is imported only if it is allowed; if you trust it, state"
        ):
            load_weights(file)
    assert not mark.exists()


def test_a_weight_file_loads_with_permission_and_names_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "tests")
    path = tmp_path / "weights.safetensors"
    save_weights(path, DetectionModel(own_spec(), num_classes=2), class_names=("a", "b"), image_size=64, training={})
    monkeypatch.delenv(VARIABLE)
    detector = Detector.load(path, device="cpu", plugins=["tests.own_code"])
    assert len(detector(np.zeros((64, 64, 3), np.uint8)).scores) >= 0
    assert os.environ[VARIABLE] == "tests.own_code"
    missing = tmp_path / "missing.safetensors"
    missing.write_bytes(path.read_bytes().replace(b"tests.own_code.Slow", b"gone_package.Blocks"))
    with pytest.raises(
        ArtifactError, match=r"missing\.safetensors: gone_package\.Blocks: there is no package 'gone_pac"
    ):
        Detector.load(missing, plugins=["gone_package"])


def test_reading_settings_without_own_code_imports_no_torch() -> None:
    code = (
        "import sys; from yolov7.settings import TrainSettings; from yolov7.spec.spec_files import resolve_spec; "
        "TrainSettings(); resolve_spec({'base': 'nano', 'swap': {'p3': {'block': 'a.B'}}}, name='n'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("base", ["nano", "yolov7-tiny", "yolox-s", "ppyoloe-s"])
def test_every_head_learns_from_an_own_assigner(base: str) -> None:
    model = DetectionModel(small(base), num_classes=2)
    loss = make_loss(model, TrainSettings.model_validate({"loss": {"assigner": "tests.own_code.FirstCells"}}))
    maps = model(torch.rand(2, 3, 64, 64))
    assert loss.assign(maps, TARGETS).lead.column.tolist() == [0, 1]
    loss(maps, TARGETS).total.backward()  # type: ignore[no-untyped-call]
    with pytest.raises(TrainingError, match=r"the assigner tests\.own_code\.outside returned an? "):
        make_loss(model, TrainSettings.model_validate({"loss": {"assigner": "tests.own_code.outside"}})).assign(
            maps, TARGETS
        )


@pytest.mark.parametrize("base", ["nano", "ppyoloe-s"])
def test_an_own_box_loss_replaces_that_of_the_head(base: str) -> None:
    model = DetectionModel(small(base), num_classes=2)
    maps = model(torch.rand(2, 3, 64, 64))
    own, usual, wrong = (
        make_loss(model, TrainSettings.model_validate({"loss": {"assigner": "tests.own_code.FirstCells", **change}}))
        for change in (
            {"box_loss": "tests.own_code.similarity"},
            {},
            {"box_loss": "tests.own_code.wrong_similarity"},
        )
    )
    assert float(own(maps, TARGETS).box) != float(usual(maps, TARGETS).box)
    with pytest.raises(
        TrainingError, match=r"the box loss tests\.own_code\.wrong_similarity failed: ValueError: it re"
    ):
        wrong(maps, TARGETS)


def test_the_head_of_yolox_has_no_other_box_loss() -> None:
    settings = TrainSettings.model_validate({"loss": {"box_loss": "tests.own_code.similarity"}})
    with pytest.raises(SettingError, match="cannot be used with the head of YOLOX"):
        make_loss(DetectionModel(small("yolox-s"), num_classes=2), settings)


def test_own_augmentations_change_the_sample_and_its_boxes() -> None:
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    tile = Tile(image, np.array([[0, 1, 2, 3]], np.float32), np.array([1]))
    generator = np.random.default_rng(0)
    changed = augmentations("mirror")(tile, generator=generator)
    assert np.array_equal(changed.image, image[:, ::-1])
    assert changed.boxes_xyxy.tolist() == [[2, 1, 4, 3]]
    assert changed.labels.tolist() == [1]
    twice = augmentations("mirror", "mirror")(tile, generator=generator)
    assert twice.boxes_xyxy.tolist() == tile.boxes_xyxy.tolist()
    assert augmentations()(tile, generator=generator) is tile
    empty = augmentations("emptied")(tile, generator=generator)
    assert (empty.boxes_xyxy.shape, empty.labels.tolist(), empty.labels.dtype) == ((0, 4), [], np.int64)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("no_image", "the image must be an array"),
        ("relabel", "the labels are from 100 to 101, not within 0..1"),
        ("negative", "the labels are from -1 to -1, not within 0..1"),
        ("floating", "the labels are float64, not integers"),
        ("infinite", "a box has a side that is not a finite number"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_an_augmentation_returns_is_checked(name: str, fault: str) -> None:
    tile = Tile(np.zeros((4, 4, 3), np.uint8), np.array([[1, 1, 2, 3]] * 2, np.float32), np.array([0, 1]))
    with pytest.raises(TrainingError, match=f"the augmentation tests.own_code.{name} failed: ValueError: {fault}") as e:
        augmentations(name)(tile, generator=np.random.default_rng(0))
    assert str(e.value) == one_line(e.value)
    assert ".py, line" not in str(e.value)  # the check is a line of this library


def test_an_error_names_the_last_line_of_the_package_and_no_line_of_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "placed_package"
    package.mkdir()
    imports = "import torch.nn.functional as F\n\n"
    (package / "helpers.py").write_text(f"{imports}def compare(a, b):\n    return F.cross_entropy(a, b[:1])\n")
    loss = "def loss(predicted, wanted):\n    return compare(predicted, wanted)\n"
    (package / "losses.py").write_text(f"from placed_package.helpers import compare\n\n{loss}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TrainingError) as raised:
        similarity_of("placed_package.losses.loss")(torch.zeros(2, 4), torch.zeros(2, 4))
    assert str(raised.value).endswith(f" ({package / 'helpers.py'}, line 4); correct it")
    assert "functional.py" not in str(raised.value)
    expected = r"a{50}\.\.\. \(.*test_plugins\.py, line \d+\); correct it$"
    with pytest.raises(TrainingError, match=expected), naming("the callback", "tests.unit.Long"):
        raise ValueError("a" * 1000)


def test_names_in_params_need_no_permission_but_blocks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    settings = TrainSettings.model_validate({"augment": {"plugins": ["tests.own_code.mirror"]}})
    nano = resolve_spec({"base": "nano"}, name="nano")
    assert list(hash_own_code(nano, settings)) == ["tests.own_code.mirror"]
    with pytest.raises(SettingError, match=r"joined: tests\.own_code\.Join is a block from the package 'tests'"):
        hash_own_code(own_spec(), settings)
    allow_plugins(["tests.own_code.Join", "tests.own_code.Slow"])
    digests = hash_own_code(own_spec(), settings)
    assert len(set(digests.values())) == 1
    assert json.dumps(sorted(digests)) == json.dumps([f"tests.own_code.{name}" for name in ("Join", "Slow", "mirror")])


def augmentations(*names: str) -> OwnAugmentations:
    return OwnAugmentations([f"tests.own_code.{name}" for name in names], num_classes=2)


def small(base: str) -> ModelSpec:
    changes = {} if base == "nano" else {"scale": {"rule": "width", "width": 0.25}}
    return resolve_spec({"base": base, "image_size": 64, **changes}, name=base)
