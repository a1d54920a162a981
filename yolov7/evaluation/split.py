"""A model over a whole split: its detections in each image's own pixels, and their COCO figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, zip_longest

from yolov7.data.index import ImageIndex
from yolov7.data.loader import ValLoader
from yolov7.evaluation.coco import CocoCurves, coco_curves
from yolov7.evaluation.figures import CocoFigures, coco_figures
from yolov7.inference.batch import detect_batch
from yolov7.nn.model import DetectionModel
from yolov7.settings import COCO_ENGINE, CocoEngine, NmsSettings
from yolov7.structures import Detections
from yolov7.system.precision import resolve_precision

Found = list[list[Detections]]  # of each image of each batch


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
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
    gather: Callable[[Found], list[Found]] = lambda mine: [mine],
) -> SplitResult:
    """Detects on all images of a split, letterboxed to `image_size` pixels, and measures COCO figures with a library.

    The detections are on the CPU, in the pixels of the original images. Processes may share the work, batch by batch;
    `gather` then hands on what every rank found, and all have the result of one process. `loader_workers` processes
    read and letterbox the images; 0: this process.
    """
    was_training = model.training
    model.eval()
    dtype = resolve_precision(precision, next(model.parameters()).device)
    batches = ValLoader(
        index,
        image_size=image_size,
        batch_size=batch_size,
        num_workers=loader_workers,
        rank=rank,
        world_size=world_size,
    )
    mine = [detect_batch(model, batch.images, batch.geometry, nms=nms, dtype=dtype) for batch in batches]
    model.train(was_training)
    found = list(chain.from_iterable(chain.from_iterable(zip_longest(*gather(mine), fillvalue=()))))
    curves = coco_curves(index, found, engine=engine)
    return SplitResult(tuple(found), curves, coco_figures(curves, index.class_names))
