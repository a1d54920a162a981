"""A model over a whole split: its detections in each image's own pixels, and their COCO figures."""

from __future__ import annotations

from dataclasses import dataclass

from yolov7.coco import CocoCurves, coco_curves
from yolov7.data.labels import ImageIndex
from yolov7.data.loader import ValLoader
from yolov7.inference import detect_batch
from yolov7.metrics import CocoFigures, coco_figures
from yolov7.model import DetectionModel
from yolov7.precision import resolve_precision
from yolov7.settings import COCO_ENGINE, CocoEngine, NmsSettings
from yolov7.structures import Detections


@dataclass(frozen=True)
class SplitResult:
    """The detections of every image of a split, in its order, their curves, and the figures that these come to."""

    detections: tuple[Detections, ...]
    curves: CocoCurves
    figures: CocoFigures


def evaluate_split(
    model: DetectionModel,
    index: ImageIndex,
    *,
    image_size: int,
    batch_size: int,
    nms: NmsSettings,
    precision: str = "auto",
    engine: CocoEngine = COCO_ENGINE,
) -> SplitResult:
    """Detects on all images of a split, letterboxed to `image_size` pixels, and measures COCO figures with a library.

    The detections are on the CPU, in the pixels of the original images.
    """
    was_training = model.training
    model.eval()
    dtype = resolve_precision(precision, next(model.parameters()).device)
    found: list[Detections] = []
    for batch in ValLoader(index, image_size=image_size, batch_size=batch_size):
        found += detect_batch(model, batch.images, batch.geometry, nms=nms, dtype=dtype)
    model.train(was_training)
    curves = coco_curves(index, found, engine=engine)
    return SplitResult(tuple(found), curves, coco_figures(curves, index.class_names))
