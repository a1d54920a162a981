"""Compare the fit of anchors with that of YOLOv5's search: recall, anchors per box and fitness."""

from __future__ import annotations

import numpy as np
import pytest

from tests.golden.vectors import DATA
from yolov7.data.box_sizes import MIN_SIDE
from yolov7.training.anchors import Sides, fit_anchors, measure_anchors

THRESHOLD = 4.0


def fitness(sizes: Sides, anchors: Sides) -> float:
    """Return the mean over boxes of the smaller ratio of sides of the best anchor, if it fits."""
    ratio = sizes[:, None] / anchors.reshape(1, -1, 2)
    best = np.minimum(ratio, 1 / ratio).min(axis=2).max(axis=1)
    return float((best * (best > 1 / THRESHOLD)).mean())


@pytest.mark.parametrize("name", ["coco-like", "tiny"])
def test_anchors_fit_as_in_yolov5(name: str) -> None:
    with np.load(DATA / "baselines" / f"autoanchor_{name}.npz", allow_pickle=False) as file:
        case = {key: file[key] for key in file.files}
    own = measure_anchors(case["wh"], case["anchors_before"], threshold=THRESHOLD)
    figures = (own.recall, own.anchors_per_box, fitness(case["wh"], case["anchors_before"]))
    expected = [float(case[f"{key}_before"]) for key in ("bpr", "aat", "fitness")]
    assert figures == pytest.approx(expected, abs=1e-6)
    learned = case["wh"][(case["wh"] >= MIN_SIDE).any(axis=1)]
    fitted = fit_anchors(learned, num_levels=3, per_level=3, threshold=THRESHOLD).reshape(-1, 2)
    assert fitness(case["wh"], fitted) >= 0.97 * float(case["fitness_after"])
    assert (measure_anchors(case["wh"], fitted, threshold=THRESHOLD).recall or 0) >= expected[0]
