"""Compare every engine with the model as it was trained: eager, unfused, contiguous and in float32, for one image."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from tests.bench.comparison import Row, Stopwatch
from yolov7.data.build_index import AnnotatedImage, build_index
from yolov7.data.index import ImageIndex
from yolov7.data.synthetic.scene import draw_scene
from yolov7.engines.opened_model import OpenedModel, open_model
from yolov7.export.export_model import ExportData, export_model
from yolov7.inference.engine import ModelEngine
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

SPECS, SIZE = ("yolov7-tiny", "yolov7"), 640


def rows(watch: Stopwatch) -> Iterator[Row]:
    """Compare the engines on random weights, whose values do not affect the time."""
    for spec in SPECS:
        torch.manual_seed(0)
        model = DetectionModel(load_spec(spec), num_classes=80).eval()
        image = torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8)
        plain = partial(ModelEngine(model, torch.float32).decode, image)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            names = tuple(map(str, range(80)))
            save_weights(weights, model, class_names=names, image_size=SIZE, training={})
            for opened in _opened(weights, ExportData(_draw_split(Path(folder), names))):
                name = f"engine: {spec}, {SIZE} px, batch 1, {opened.engine_name} {opened.precision}"
                yield watch.compare(name, plain, partial(opened.engine.decode, image))


def _draw_split(folder: Path, names: tuple[str, ...]) -> ImageIndex:
    """Draw the images that an export to INT8 needs; random weights have an AP of 0 on them."""
    drawn = []
    for number in range(8):
        scene, path = draw_scene(SIZE, generator=np.random.default_rng(number)), folder / f"{number}.png"
        cv2.imwrite(str(path), scene.image)
        drawn.append(AnnotatedImage(path, scene.boxes_xyxy.astype(np.float64), scene.labels, scene.crowd))
    return build_index(drawn, class_names=names)[0]


def _opened(weights: Path, data: ExportData) -> Iterator[OpenedModel]:
    """Yield the weight file in its precisions, and the exported files."""
    auto = open_model(weights)
    if auto.precision != "float32":
        yield open_model(weights, precision="float32")
    yield auto
    for format, engine in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        for precision in ("float32", "int8"):
            folder = weights.with_name(f"{format}-{precision}")
            report, file = export_model(weights, format=format, precision=precision, output=folder, data=data)
            for computed in dict.fromkeys(check.precision for check in report.checks if check.engine == engine):
                yield open_model(file, engine=engine, precision="auto" if computed == "int8" else computed)
