"""Compare non-maximum suppression with vectors of the reference implementation, and of YOLOX and PP-YOLOE."""

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


def test_detections_of_yolox() -> None:
    data = np.load(DATA / "baseline_nms_yolox_s1.npz")
    settings = NmsSettings(confidence=float(data["conf"]), iou=float(data["iou"]), max_detections=len(data["pred"][0]))
    found = non_max_suppression(torch.from_numpy(data["pred"]), settings=settings)
    for image, detections in enumerate(found):
        expected = data[f"out{image}"]  # corners, objectness, probability of the class, class
        assert detections.labels.tolist() == expected[:, 6].astype(int).tolist()
        np.testing.assert_allclose(detections.scores.numpy(), expected[:, 4] * expected[:, 5], rtol=1e-6)
        np.testing.assert_allclose(detections.boxes_xyxy.numpy(), expected[:, :4], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("case", ["s1", "s2"])
def test_detections_of_ppyoloe(case: str) -> None:
    data = {key: torch.from_numpy(value) for key, value in np.load(DATA / f"baseline_nms_ppyoloe_{case}.npz").items()}
    low, high = data["boxes"][:, :2], data["boxes"][:, 2:]
    decoded = torch.cat(((low + high) / 2, high - low, torch.ones(len(low), 1), data["scores"].T), dim=1)
    settings = NmsSettings(
        confidence=float(data["score_threshold"]),
        iou=float(data["nms_threshold"]),
        multi_label=True,
        max_detections=int(data["keep_top_k"]),
    )
    (found,) = non_max_suppression(decoded[None], settings=settings)
    expected = data["out"][torch.argsort(data["out"][:, 1], descending=True, stable=True)]  # class, score, corners
    assert found.labels.tolist() == expected[:, 0].int().tolist()
    torch.testing.assert_close(found.scores, expected[:, 1])
    torch.testing.assert_close(found.boxes_xyxy, expected[:, 2:], rtol=1e-6, atol=1e-4)
