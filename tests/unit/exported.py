"""A small model with lively outputs, a split that it annotated itself, and files exported from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from tests.property.test_fuse import randomise
from yolov7.data.build_index import AnnotatedImage, build_index
from yolov7.data.index import ImageIndex
from yolov7.data.synthetic.scene import draw_scene
from yolov7.inference.engine import ModelEngine
from yolov7.inference.nms import non_max_suppression
from yolov7.nn.model import DetectionModel
from yolov7.settings import NmsSettings
from yolov7.spec.spec_files import ModelSpec, resolve_spec
from yolov7.weights.weight_files import load_weights, save_weights

SIZE = 64
NAMES = ("red", "green & blue", "größer")
# The exporter to ONNX needs a time that grows with the number of operations.
ROWS = {
    "s1": {"block": "conv", "out": 8, "s": 2},
    "s2": {"block": "conv", "out": 16, "s": 2},
    "p3": {"block": "rep_conv", "out": 16, "s": 2},
    "r3": {"block": "rep_conv", "out": 16},
    "p4": {"block": "conv", "out": 24, "s": 2},
    "u3": {"block": "up", "from": ["p4", "r3"], "out": 16},
}
ROWS_BY_HEAD: dict[str, dict[str, Any]] = {
    "ppyoloe": {
        "s1": {"block": "conv", "out": 8, "k": 6, "s": 2, "activation": "mish"},
        "r3": {"block": "csp_rep_res", "out": 16, "depth": 1},
        "u3": {"block": "double", "from": ["p4", "r3"]},
    }
}
_SOURCES = ["u3", "p4"]
HEADS: dict[str, dict[str, Any]] = {
    "detect": {"block": "detect", "from": _SOURCES, "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]]},
    "yolox": {"block": "detect_yolox", "from": _SOURCES, "hidden": 16},
    "ppyoloe": {"block": "detect_ppyoloe", "from": _SOURCES},
    "dfl": {"block": "detect_dfl", "from": _SOURCES},
    "one_to_one": {"block": "detect_one_to_one", "from": _SOURCES},
}


def small_spec(head: str = "detect") -> ModelSpec:
    """Return a small spec of two levels."""
    return resolve_spec({"rows": ROWS | ROWS_BY_HEAD.get(head, {}) | {"head": HEADS[head]}}, name="small")


def write_weights(path: Path, *, names: tuple[str, ...] = NAMES, seed: int = 0, head: str = "detect") -> Path:
    """Write an unfused small model with random weights and statistics."""
    torch.manual_seed(seed)
    model = DetectionModel(small_spec(head), num_classes=len(names))
    randomise(model.eval(), seed=seed)
    save_weights(path, model, class_names=names, image_size=SIZE, training={})
    return path


def annotate(weights: Path, folder: Path, *, count: int = 6) -> ImageIndex:
    """Write images whose objects are what the model itself detects with the highest scores."""
    folder.mkdir()
    model = load_weights(weights).model
    annotated = []
    for i in range(count):
        image = draw_scene(SIZE, generator=np.random.default_rng(i)).image
        path = folder / f"{i}.png"
        assert cv2.imwrite(str(path), image[..., ::-1])
        batch = torch.from_numpy(image).permute(2, 0, 1)[None]
        decoded = ModelEngine(model, torch.float32).decode(batch)
        found = non_max_suppression(decoded, settings=NmsSettings(max_detections=5))[0]
        boxes = found.boxes_xyxy.clamp(0, SIZE).double().numpy()
        wide = (boxes[:, 2:] - boxes[:, :2] > 2).all(axis=1)
        annotated.append(AnnotatedImage(path, boxes[wide], found.labels.numpy()[wide], np.zeros(wide.sum(), np.bool_)))
    return build_index(annotated, class_names=NAMES)[0]
