"""Compare non-maximum suppression with vectors of the reference implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from yolov7.inference.nms import non_max_suppression
from yolov7.settings import NmsSettings

DATA = Path(__file__).parent / "data"
CASES = sorted(path.stem for path in DATA.glob("nms_*.npz"))


def test_all_cases_are_here() -> None:
    assert len(CASES) == 8


@pytest.mark.parametrize("name", CASES)
def test_detections(name: str) -> None:
    data = np.load(DATA / f"{name}.npz")
    options = json.loads(str(data["kwargs"]))
    settings = NmsSettings(
        confidence=options["conf_thres"],
        iou=options["iou_thres"],
        multi_label=options.get("multi_label", False),
        agnostic=options.get("agnostic", False),
    )
    found = non_max_suppression(torch.from_numpy(data["pred"]), settings=settings, classes=options.get("classes"))
    assert len(found) == len(data["pred"])
    for image, detections in enumerate(found):
        expected = data[f"out{image}"]
        assert detections.labels.tolist() == expected[:, 5].astype(int).tolist()
        np.testing.assert_allclose(detections.scores.numpy(), expected[:, 4], rtol=1e-6)
        np.testing.assert_allclose(detections.boxes_xyxy.numpy(), expected[:, :4], rtol=1e-6, atol=1e-4)
