"""COCO's figures of a split of the size of val2017, by the reference and by the library that is the default."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tests.bench.comparison import Row, Stopwatch
from yolov7.data.index import ImageIndex
from yolov7.evaluation.figures import coco_metrics
from yolov7.structures import Detections

IMAGES, CLASSES, OBJECTS, DETECTIONS = 5000, 80, 7, 100


def example(images: int = IMAGES) -> tuple[ImageIndex, list[Detections]]:
    """Objects of all sizes and detections around them, some of other classes."""
    random = np.random.default_rng(0)
    low = random.uniform(0, 500, (images, OBJECTS, 2))
    boxes = np.concatenate([low, low + np.exp(random.uniform(2, 5.5, low.shape))], axis=2)
    labels = random.integers(0, CLASSES, (images, OBJECTS))
    index = ImageIndex(
        class_names=tuple(f"class {k}" for k in range(CLASSES)),
        paths=tuple(Path(f"{i:012d}.jpg") for i in range(images)),
        widths=np.full(images, 640, np.int32),
        heights=np.full(images, 640, np.int32),
        hashes=("",) * images,
        box_offsets=np.arange(images + 1) * OBJECTS,
        boxes_xyxy=boxes.reshape(-1, 4).astype(np.float32),
        labels=labels.reshape(-1),
        crowd=random.random(images * OBJECTS) < 0.01,
    )
    return index, [_detections(random, boxes[i], labels[i]) for i in range(images)]


def rows(watch: Stopwatch) -> Iterator[Row]:
    """A single run of the reference, which takes a minute."""
    index, detections = example()
    figures = {}

    def measure(engine: str) -> None:
        figures[engine] = coco_metrics(index, detections, engine=engine)  # type: ignore[arg-type]

    ours = watch.at_most(3).seconds(partial(measure, "hotcoco"))
    plain = watch.once(partial(measure, "pycocotools"))
    pairs = zip(*(_numbers(figures[engine].as_dict()) for engine in ("hotcoco", "pycocotools")), strict=True)
    difference = max(abs(one - other) for one, other in pairs)
    assert difference < 1e-9
    name = f"COCO figures: {IMAGES} images, {DETECTIONS} detections each, pycocotools and hotcoco"
    yield Row(name, plain, ours, f"largest difference {difference:.0e}")


def _numbers(figures: dict[str, float | dict[str, float]]) -> list[float]:
    flat = [value for value in figures.values() if not isinstance(value, dict)]
    return flat + [value for nested in figures.values() if isinstance(nested, dict) for value in nested.values()]


def _detections(random: np.random.Generator, boxes: np.ndarray, labels: np.ndarray) -> Detections:
    which = random.integers(0, OBJECTS, DETECTIONS)
    moved = boxes[which] + random.normal(0, 6, (DETECTIONS, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    guessed = np.where(random.random(DETECTIONS) < 0.7, labels[which], random.integers(0, CLASSES, DETECTIONS))
    scores = -np.sort(-random.random(DETECTIONS))
    return Detections(torch.from_numpy(moved).float(), torch.from_numpy(scores).float(), torch.from_numpy(guessed))
