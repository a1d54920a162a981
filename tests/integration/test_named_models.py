"""Test that a detector is loaded by the name of a registered model and of a variant."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pipeline.tracking import RunKey, Tracker, tracking_uri
from pipeline.tracking.named_models import find_model
from tests.artifacts import NAMES, write_weights
from yolov7 import Detector
from yolov7.errors import ArtifactError

ROOT = Path(__file__).parents[2]


def install_entry_points(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package that has only the entry points of pyproject.toml."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in declared.items()]
    package = folder / "names-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: names\nVersion: 1\n", encoding="utf-8")
    (package / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


def test_a_registered_model_is_found_by_alias_and_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_weights("nano")
    weights = Path("artifacts/reparam/nano/0/weights.safetensors")
    with Tracker("test", model="yolov7").run(RunKey("nano", 0, "x")) as run:
        run.log_detector(weights)
    mlflow.MlflowClient(tracking_uri()).set_registered_model_alias("yolov7", "champion", "1")
    for name in ("models:/yolov7@champion", "models:/yolov7/1"):
        found = find_model(name)
        assert found is not None
        assert found.read_bytes() == weights.read_bytes()
    assert "MLFLOW_TRACKING_URI" not in os.environ
    install_entry_points(tmp_path / "site", monkeypatch)
    detector = Detector.load("models:/yolov7@champion")
    assert detector.class_names == NAMES
    assert detector(np.zeros((30, 40, 3), np.uint8)).image_size == (40, 30)
    for name in ("models:/yolov7@best", "models:/yolov7/2", "models:/other@champion"):
        with pytest.raises(ArtifactError, match=f"'{name}' cannot be read from sqlite:///mlflow.db") as caught:
            find_model(name)
        assert str(caught.value).isprintable()
