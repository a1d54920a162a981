"""The command `inspect`: its pictures before and after training, with and without an auxiliary head."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.artifacts.files import stage_folder
from pipeline.commands.inspect_training import inspect
from pipeline.experiment import ResolvedVariant, parse_experiment
from tests.artifacts import NAMES, SMALL, write_prepared
from yolov7.errors import ArtifactError
from yolov7.nn.model import DetectionModel
from yolov7.spec.anchor_free import with_anchor_free_head
from yolov7.spec.auxiliary import with_auxiliary
from yolov7.spec.spec_files import resolve_spec, spec_to_yaml
from yolov7.training.anchors import with_anchors
from yolov7.weights.weight_files import save_weights

FOLDER = Path("artifacts/inspect/small/0")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared(images=5)
    shutil.move(stage_folder("prepare") / "val.npz", stage_folder("prepare") / "train.npz")


def params(*, auxiliary: bool = False, anchor_free: bool = False, **train: Any) -> ResolvedVariant:
    spec = resolve_spec(SMALL, name="small")
    spec = with_auxiliary(spec) if auxiliary else spec
    Path("small.yaml").write_text(spec_to_yaml(with_anchor_free_head(spec) if anchor_free else spec))
    content = {"variants": {"small": {"spec": "small.yaml"}}, "train": {"image_size": 64, **train}}
    return parse_experiment(content).variant("small")


def picture(name: str) -> np.ndarray:
    return cv2.imread(str(FOLDER / name))


def test_before_training_it_draws_samples_alone(capsys: pytest.CaptureFixture[str]) -> None:
    inspect(params(auxiliary=False), 0)
    assert picture("samples.jpg").std() > 10
    assert not (FOLDER / "assignment.jpg").exists()
    told = capsys.readouterr().out
    assert "recall" in told
    assert "`yolov7 train small`" in told


def inspect_untrained(chosen: ResolvedVariant) -> np.ndarray:
    """Return the picture of the cells of a model with random weights."""
    torch.manual_seed(0)
    model = DetectionModel(chosen.spec, num_classes=len(NAMES))
    path = stage_folder("train", "small", 0) / "weights.safetensors"
    save_weights(path, model, class_names=NAMES, image_size=64, training={})
    inspect(chosen, 0)
    sheet = picture("assignment.jpg")
    saturation = cv2.cvtColor(sheet, cv2.COLOR_BGR2HSV)[..., 1]
    assert (saturation[sheet.shape[0] // 2 :] > 150).mean() > 0.005  # cells, in the colours of their objects
    return sheet


def test_each_head_has_a_row_of_cells() -> None:
    heights = {auxiliary: inspect_untrained(params(auxiliary=auxiliary)).shape[0] for auxiliary in (False, True)}
    assert heights[True] > 1.4 * heights[False]


def test_a_head_without_anchors_has_cells_too(capsys: pytest.CaptureFixture[str]) -> None:
    inspect_untrained(params(anchor_free=True))
    assert "has no anchors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "mode", "expected"),
    [
        ("weights", "auto", ["those of the weights are used"]),
        ("weights", "spec", ["those of the spec are used", "were trained for other anchors than those of this run"]),
        ("weights", "fit", ["anchors of the weights: recall"]),
        ("teacher", "auto", ["anchors of the teacher: recall", "the anchors are those of the teacher"]),
        ("teacher", "spec", ["those of the spec are used"]),
    ],
)
def test_the_anchors_that_training_uses_are_described(
    key: str, mode: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = resolve_spec(SMALL, name="small")
    other = with_anchors(spec, np.array(spec.head.anchors).reshape(3, -1, 2) * 1.6)  # type: ignore[union-attr]
    path = Path("w.safetensors")
    save_weights(path, DetectionModel(other, num_classes=3), class_names=NAMES, image_size=64, training={})
    named = {"weights": str(path)} if key == "weights" else {"distil": {"teacher": str(path)}}
    inspect(params(anchors=mode, **named), 0)
    told = " ".join(capsys.readouterr().out.split())
    assert [text for text in expected if text not in told] == []


@pytest.mark.parametrize("key", ["weights", "distil.teacher"])
def test_weights_that_are_missing_are_named(key: str) -> None:
    named = {"weights": "w.safetensors"} if key == "weights" else {"distil": {"teacher": "w.safetensors"}}
    with pytest.raises(ArtifactError, match=rf"train\.{key}=.*w\.safetensors does not exist"):
        inspect(params(**named), 0)
    Path("w.safetensors").mkdir()
    with pytest.raises(ArtifactError, match=rf"train\.{key}=.*w\.safetensors is a folder; name a weight file"):
        inspect(params(**named), 0)
