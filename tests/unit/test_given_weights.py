"""Variants with given weights: `weights: FILE` with `train: null` takes the place of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts.given_weights import load_given
from pipeline.artifacts.stage_weights import stage_weights
from pipeline.data_settings import DataSettings, SyntheticSettings
from pipeline.experiment import Experiment, parse_experiment
from pipeline.params import ReparamSettings
from pipeline.stages.prepare import prepare
from pipeline.stages.reparam import reparam
from pipeline.stages.resolve import stage_inputs
from pipeline.stages.train import use_given_weights
from yolov7.data.synthetic.shapes import CLASS_NAMES
from yolov7.errors import ArtifactError, SettingError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import resolve_spec
from yolov7.weights.adaptation import is_of_spec, select_classes
from yolov7.weights.foreign.reference import export_checkpoint
from yolov7.weights.weight_files import load_weights, save_weights

SPEC = {"spec": "nano", "scale": {"rule": "width", "width": 0.5}}
REVERSED = CLASS_NAMES[::-1]


def build(num_classes: int = len(CLASS_NAMES), *, auxiliary: bool = False) -> DetectionModel:
    """Return a narrow model with random weights and random class outputs."""
    torch.manual_seed(0)
    data = {"base": "nano", "scale": SPEC["scale"], "auxiliary": auxiliary}
    model = DetectionModel(resolve_spec(data, name="nano"), num_classes=num_classes).eval()
    for tensor in (*model.head.convs.parameters(), *model.head.ia.parameters(), *model.head.im.parameters()):
        torch.nn.init.normal_(tensor)
    return model


def experiment(**variant: Any) -> Experiment:
    content = {"variants": {"own": {"weights": "own.safetensors", "train": None, **variant}}, "train": {"epochs": 3}}
    return parse_experiment(content, source="here")


def write(path: str = "own.safetensors", *, image_size: int = 96, names: tuple[str, ...] = REVERSED) -> DetectionModel:
    model = build()
    save_weights(path, model, class_names=names, image_size=image_size, training={"epochs": 300})
    return model


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(DataSettings(synthetic=SyntheticSettings(train_images=2, val_images=2, image_size=64)))
    return folder


@pytest.fixture
def project(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with prepared data."""
    monkeypatch.chdir(prepared)
    return prepared


@pytest.mark.parametrize(
    ("variant", "fault"),
    [
        ({"spec": "nano", "train": None}, r"variants\.a: train=null means that weights are given"),
        ({"spec": "nano", "weights": "a.safetensors"}, "weights is for models that are not trained"),
        ({"spec": "nano", "image_size": 64}, "image_size is for given weights"),
        ({}, "spec is missing; choose one of `yolov7 models`"),
        ({"weights": "lost.pt", "train": None}, r"variants\.a\.weights='lost\.pt' is missing or does not say which"),
        ({"spec": "nano", "weights": "a.pt", "train": None, "image_size": 100}, r"image_size=100 of variant 'a' must"),
    ],
)
def test_a_contradiction_is_named(variant: dict[str, Any], fault: str) -> None:
    with pytest.raises(SettingError, match=rf"^here: .*{fault}"):
        parse_experiment({"variants": {"a": variant}}, source="here")


def test_spec_and_image_size_are_those_of_the_file_unless_they_are_stated(project: Path) -> None:
    model = write(image_size=96)
    found = experiment().variants["own"]
    assert (found.spec, found.train.image_size, found.given) == (model.spec, 96, project / "own.safetensors")
    assert experiment(**SPEC, image_size=64).variants["own"].train.image_size == 64
    with pytest.raises(SettingError, match="swap, scale, head and auxiliary change a spec, but none is stated"):
        experiment(scale={"depth": 2.0})


def test_a_changed_file_is_noticed_and_settings_of_training_are_not(project: Path) -> None:
    def inputs(**train: Any) -> Any:
        content = {"variants": {"own": {**SPEC, "weights": "own.safetensors", "train": None}}, "train": train}
        found = stage_inputs(parse_experiment(content, source="here"))
        return next(value for path, value in found.items() if "train" in path.parts)

    write()
    first = inputs(epochs=3)
    assert inputs(epochs=5, optim={"lr0": 0.5}) == first
    save_weights("own.safetensors", build(3), class_names=("a", "b", "c"), image_size=96, training={})
    assert inputs(epochs=3)["weights"] != first["weights"]


def test_the_stage_writes_the_weights_with_the_classes_of_the_data_and_the_next_stage_takes_them(project: Path) -> None:
    given = write()
    variant = experiment().variants["own"]
    summary = use_given_weights(variant, seed=0)
    assert (summary.given, summary.epochs, summary.AP) == ("own.safetensors", 0, None)
    folder = Path("artifacts/train/own/0")
    assert json.loads((folder / "train.json").read_text())["given"] == "own.safetensors"
    assert (folder / "curve.csv").read_text().startswith("epoch,")
    assert (folder / "curve.png").stat().st_size > 1000
    weights = load_weights(folder / "weights.safetensors")
    assert (weights.class_names, weights.image_size) == (CLASS_NAMES, 96)
    assert weights.training["epochs"] == 300
    image = torch.rand(1, 3, 96, 96)
    expected, found = (model.eval()(image).lead for model in (given, weights.model))
    for before, after in zip(expected, found, strict=True):
        torch.testing.assert_close(after[..., :5], before[..., :5])  # a channel's place may change how it is summed
        torch.testing.assert_close(after[..., 5:], before[..., 5:].flip(-1))
    report = reparam(ReparamSettings(images=1), variant, seed=0)
    assert report.parameters_after < report.parameters_before
    stage_weights("reparam", variant, seed=0, class_names=CLASS_NAMES)
    save_weights("own.safetensors", given, class_names=REVERSED, image_size=64, training={})
    with pytest.raises(ArtifactError, match=r"was not made from .*own\.safetensors; run `yolov7 train own` again"):
        stage_weights("train", experiment().variants["own"], seed=0, class_names=CLASS_NAMES)


def test_a_checkpoint_of_the_reference_and_deployed_weights_are_read_too(project: Path) -> None:
    model = build()
    export_checkpoint(Path("own.pt"), model, class_names=CLASS_NAMES)
    variant = experiment(**SPEC, weights="own.pt").variants["own"]
    assert torch.equal(load_given(variant, class_names=CLASS_NAMES).model.head.convs[0].bias, model.head.convs[0].bias)
    save_weights("deployed.safetensors", fuse(model), class_names=CLASS_NAMES, image_size=64, training={})
    variant = experiment(**SPEC, weights="deployed.safetensors", image_size=64).variants["own"]
    use_given_weights(variant, seed=0)
    assert reparam(ReparamSettings(images=1), variant, seed=0).max_error_float32 == 0


def test_weights_that_do_not_fit_are_refused(project: Path) -> None:
    write()
    with pytest.raises(ArtifactError, match=r"lost\.pt of variant 'own' does not exist"):
        load_given(experiment(spec="nano", weights="lost.pt").variants["own"], class_names=CLASS_NAMES)
    Path("cells").mkdir()
    with pytest.raises(ArtifactError, match=r"weights=.*cells of variant 'own' is a folder; name a weight file"):
        load_given(experiment(spec="nano", weights="cells").variants["own"], class_names=CLASS_NAMES)
    with pytest.raises(ArtifactError, match="cells: is a folder, not a weight file; train again, or name another"):
        load_weights("cells")
    with pytest.raises(ArtifactError, match=r"is of spec 'nano', which is not 'yolov7-tiny' as params\.yaml states it"):
        load_given(experiment(spec="yolov7-tiny").variants["own"], class_names=CLASS_NAMES)
    with pytest.raises(ArtifactError, match=r"lack 1 of the 2 classes of the data: 'blob'; their"):
        load_given(experiment().variants["own"], class_names=("disc", "blob"))
    with pytest.raises(ArtifactError, match=r"lack 2 of the 3 classes of the data, e\.g\. 'blob'; their"):
        load_given(experiment().variants["own"], class_names=("disc", "blob", "blot"))


def test_a_search_cannot_start_from_given_weights(project: Path) -> None:
    write()
    with pytest.raises(SettingError, match="base 'own' has given weights and no training"):
        experiment().base("own")


@pytest.mark.parametrize("is_fused", [False, True])
def test_data_may_have_fewer_classes_than_the_weights(is_fused: bool) -> None:
    model = build(auxiliary=not is_fused)
    model = fuse(model) if is_fused else model
    fewer = select_classes(model, CLASS_NAMES, ("Star", "disc"))  # as `evaluate` matches names
    image = torch.rand(1, 3, 64, 64)
    chosen = [5 + CLASS_NAMES.index(name) for name in ("star", "disc")]
    for before, after in zip(model.eval()(image).lead, fewer.eval()(image).lead, strict=True):
        assert torch.equal(after, before[..., [0, 1, 2, 3, 4, *chosen]])
    assert fewer.num_classes == 2


def test_weights_of_one_spec_may_differ_in_what_training_adds() -> None:
    deployed, trained = fuse(build(auxiliary=True)).spec, build(auxiliary=True).spec
    assert deployed != trained
    assert is_of_spec(deployed, trained)
    assert not is_of_spec(deployed, resolve_spec({"base": "nano"}, name="nano"))
