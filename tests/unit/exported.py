"""A small model with lively outputs, a split that it annotated itself, and files exported from it."""

from __future__ import annotations

from pathlib import Path

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
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import load_weights, save_weights

SIZE = 64
NAMES = ("red", "green & blue", "größer")


def write_weights(path: Path, *, names: tuple[str, ...] = NAMES, seed: int = 0) -> Path:
    """Write an unfused nano model with random weights and statistics."""
    torch.manual_seed(seed)
    model = DetectionModel(load_spec("nano"), num_classes=len(names))
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
