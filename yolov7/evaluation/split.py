"""Detection on all images of a split, and the COCO figures of the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, zip_longest

from yolov7.data.index import ImageIndex
from yolov7.data.loader import ValLoader
from yolov7.evaluation.coco import CocoCurves, coco_curves
from yolov7.evaluation.figures import CocoFigures, coco_figures
from yolov7.inference.batch import detect_batch
from yolov7.inference.engine import Engine
from yolov7.settings import COCO_ENGINE, CocoEngine, LetterboxMode, NmsSettings
from yolov7.structures import Detections

Found = list[list[Detections]]  # for each batch, for each image


@dataclass(frozen=True)
class SplitResult:
    """The result of a model on a split.

    Attributes:
        detections: The detections of each image, on the CPU, in the pixels of the original image.
        curves: The values whose means are the figures.
        figures: COCO's figures.
    """

    detections: tuple[Detections, ...]
    curves: CocoCurves
    figures: CocoFigures


def evaluate_split(
    engine: Engine,
    index: ImageIndex,
    *,
    image_size: int,
    batch_size: int,
    letterbox: LetterboxMode = "centre",
    nms: NmsSettings,
    coco_engine: CocoEngine = COCO_ENGINE,
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
    gather: Callable[[Found], list[Found]] = lambda mine: [mine],
    class_mapping: Callable[[Detections], Detections] = lambda found: found,
    progress: Callable[[int], None] | None = None,
) -> SplitResult:
    """Detect objects in all images of a split, and compute COCO's figures.

    Several processes may share the work batch by batch. All of them return the result of a single process.

    Args:
        engine: What runs the model.
        index: The split.
        image_size: Side of the square that images are letterboxed to, pixels.
        batch_size: Images in a batch.
        letterbox: How images are brought to the square.
        nms: Settings of the suppression.
        coco_engine: The library that computes the figures.
        rank: The number of this process.
        world_size: The number of processes.
        loader_workers: Processes that read and letterbox images; 0: this process does.
        gather: Collects what every process found, in the order of their ranks.
        class_mapping: Replaces the labels of the model by those of the split.
        progress: Called after each batch with the number of images that this process has done.

    Returns:
        The detections and figures.
    """
    batches = ValLoader(
        index,
        image_size=image_size,
        batch_size=batch_size,
        letterbox=letterbox,
        num_workers=loader_workers,
        rank=rank,
        world_size=world_size,
    )
    mine: Found = []
    done = 0
    for batch in batches:
        found = detect_batch(engine, batch.images, batch.geometry, nms=nms)
        mine.append([class_mapping(one) for one in found])
        done += len(found)
        if progress is not None:
            progress(done)
    detections = list(chain.from_iterable(chain.from_iterable(zip_longest(*gather(mine), fillvalue=()))))
    curves = coco_curves(index, detections, engine=coco_engine)
    return SplitResult(tuple(detections), curves, coco_figures(curves, index.class_names))
