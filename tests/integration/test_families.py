"""A small member of each family is trained, re-parameterised with proof, evaluated, and detects; one is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.experiment import load_experiment
from tests.integration.project import SMALL, Project, run_to_evaluate
from yolov7.detect.detector import Detector
from yolov7.export.export_model import export_model

pytestmark = pytest.mark.slow

NARROW = {"rule": "both", "depth": 0.2, "width": 0.125}
THIN = {"rule": "width", "width": 0.25}
VARIANTS: dict[str, dict[str, Any]] = {
    "yolov5": {"spec": "yolov5l", "scale": NARROW, "train": {"recipe": "yolov5-low"}},
    "yolov4-tiny": {"spec": "yolov4-tiny", "scale": THIN, "train": {"recipe": "yolov4-tiny"}},
    "yolox": {"spec": "yolox-l", "scale": NARROW, "train": {"recipe": "yolox"}},
    "ppyoloe": {"spec": "ppyoloe-l", "scale": NARROW, "train": {"recipe": "ppyoloe"}},
    "u6": {"spec": "yolov7-tiny", "head": "anchor_free", "scale": THIN, "train": {"recipe": "u6"}},
}


def test_every_family_passes_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path / "project", git=False)
    monkeypatch.chdir(project.folder)
    data = {"path": "yolov7/data/synthetic", "synthetic": {"train_images": 8, "val_images": 4, "image_size": 64}}
    train = {"epochs": 1, "batch_size": 2, "image_size": 64, "precision": "float32", "optim": {"warmup_epochs": 0.0}}
    project.write(SMALL | {"data": data, "variants": VARIANTS, "train": train})
    experiment = load_experiment()
    run_to_evaluate(experiment)
    image = next(Path("artifacts/prepare").rglob("*.jpg"))
    for name in VARIANTS:
        proof = project.json(f"reparam/{name}/0/reparam.json")
        assert proof["max_error_float64"] < 1e-9  # 0 for ppyoloe, whose outputs hardly depend on the image yet
        assert proof["parameters_after"] < proof["parameters_before"]
        metrics = project.json(f"evaluate/{name}/0/metrics.json")
        assert metrics["AP"] == pytest.approx(metrics["AP_before_reparam"], abs=0.02)
        weights = Path(f"artifacts/reparam/{name}/0/weights.safetensors")
        expected = Detector.load(weights, precision="float32")(image, confidence=0.0)
        assert len(expected) > 0
    _, file = export_model(weights, format="onnx", output=tmp_path / name)
    found = Detector.load(file, precision="float32")(image, confidence=0.0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
