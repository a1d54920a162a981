"""Results for an evaluation server: the detections of a model on images whose annotations are withheld."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from yolov7.data.index import ImageIndex, to_xywh
from yolov7.data.loader import ValLoader
from yolov7.inference.batch import detect_batch
from yolov7.inference.engine import Engine
from yolov7.settings import LetterboxMode, NmsSettings
from yolov7.structures import Detections

_BOX_DECIMALS, _SCORE_DECIMALS = 2, 5  # as COCO's annotations; more digits change no figure and double the file


def write_submission(
    path: Path,
    engine: Engine,
    index: ImageIndex,
    *,
    image_size: int,
    batch_size: int,
    letterbox: LetterboxMode = "centre",
    nms: NmsSettings,
    loader_workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Detect objects in all images, and write a zip archive with one JSON file in COCO's results format.

    The file in the archive has the name of the archive with `.json`, as COCO's server demands it. Detections are
    written batch by batch, so that 20,000 images need little memory.

    Args:
        path: The archive; it appears complete or not at all.
        engine: What runs the model.
        index: The images, with their ids and those of the categories.
        image_size: Side of the square that images are letterboxed to, pixels.
        batch_size: Images in a batch.
        letterbox: How images are brought to the square.
        nms: Settings of the suppression.
        loader_workers: Processes that read and letterbox images; 0: this process does.
        progress: Called after each batch with the number of images that are done and of all images.

    Returns:
        The number of detections.

    Raises:
        DataError: If an image cannot be read.
        OSError: If the archive cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    loader = ValLoader(
        index, image_size=image_size, batch_size=batch_size, letterbox=letterbox, num_workers=loader_workers
    )
    count = 0
    try:
        with (
            ZipFile(draft, "w", ZIP_DEFLATED) as archive,
            archive.open(f"{path.stem}.json", "w", force_zip64=True) as file,
        ):
            for batch in loader:
                found = detect_batch(engine, batch.images, batch.geometry, nms=nms)
                for place, detections in zip(batch.index, found, strict=True):
                    for row in _rows(index, place, detections):
                        file.write((b"," if count else b"[") + json.dumps(row, separators=(",", ":")).encode())
                        count += 1
                progress(batch.index[-1] + 1, len(index))
            file.write(b"]\n" if count else b"[]\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return count


def _rows(index: ImageIndex, place: int, detections: Detections) -> Iterator[dict[str, Any]]:
    """Yield the detections of one image in COCO's results format."""
    boxes = to_xywh(detections.boxes_xyxy.numpy()).round(_BOX_DECIMALS).tolist()
    for box, score, label in zip(boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True):
        yield {
            "image_id": index.image_ids[place],
            "category_id": index.category_ids[label],
            "bbox": box,
            "score": round(score, _SCORE_DECIMALS),
        }
