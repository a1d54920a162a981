"""Detections in COCO's results format, whatever program wrote them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolov7.data.index import ImageIndex
from yolov7.data.read.json_lists import iterate_lists
from yolov7.errors import DataError, shown
from yolov7.evaluation.coco import FoundBoxes
from yolov7.structures import Detections
from yolov7.system.text_files import decode_text, read_bytes


def read_results(path: Path, index: ImageIndex) -> tuple[FoundBoxes, tuple[str, ...]]:
    """Read a results file, and find its images and classes in a split by their ids.

    Args:
        path: A JSON file with a list of `image_id`, `category_id`, `bbox` (x, y, width, height in pixels) and `score`.
        index: The split.

    Returns:
        The detections, and what was left out, in sentences.

    Raises:
        DataError: If the file is not such a list, or if no detection belongs to an image of the split.
        OSError: If the file cannot be read.
    """
    images = {id_: i for i, id_ in enumerate(index.image_ids)}
    labels = {id_: i for i, id_ in enumerate(index.category_ids)}
    rows: list[tuple[int, list[float], float, int]] = []
    left_out: Counter[str] = Counter()
    for number, entry in enumerate(_entries(path)):
        box, score = _checked(entry, path, number=number)
        image, label = images.get(entry["image_id"]), labels.get(entry["category_id"])
        if image is None:
            left_out[f"image is not in the split, such as image_id {shown(entry['image_id'])}"] += 1
        elif label is None:
            left_out[f"class is not in the data, such as category_id {shown(entry['category_id'])}"] += 1
        else:
            rows.append((image, box, score, label))
    if left_out and not rows:
        raise DataError(
            f"{path}: none of its {left_out.total()} detections belongs to an image and class of the data; check that "
            "both are of the same data set and split"
        )
    notes = _summed(left_out)
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return FoundBoxes(
        image=np.array(columns[0], np.int64),
        boxes_xywh=np.array(columns[1], np.float64).reshape(-1, 4),
        scores=np.array(columns[2], np.float64),
        labels=np.array(columns[3], np.int64),
    ), notes


def detections_of(found: FoundBoxes, *, images: int) -> tuple[Detections, ...]:
    """Return the detections of each image, by descending score.

    Args:
        found: The detections of a split in columns.
        images: Number of images of the split.

    Returns:
        One value for each image.
    """
    order = np.lexsort((-found.scores, found.image))
    corners = np.concatenate([found.boxes_xywh[:, :2], found.boxes_xywh[:, :2] + found.boxes_xywh[:, 2:]], axis=1)
    boxes, scores = torch.from_numpy(corners[order]).float(), torch.from_numpy(found.scores[order]).float()
    labels = torch.from_numpy(found.labels[order])
    counts = np.bincount(found.image, minlength=images).tolist()
    return tuple(map(Detections, torch.split(boxes, counts), torch.split(scores, counts), torch.split(labels, counts)))


def _entries(path: Path) -> Iterator[Any]:
    text = decode_text(read_bytes(path), path)
    try:
        for _, entries in iterate_lists('{"detections":' + text + "}", ("detections",)):
            yield from entries
            return
    except (JSONDecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error.msg
        raise DataError(f"{path} is not valid JSON ({reason})") from None
    raise DataError(f"{path} is no results file: it must contain a list of detections")


def _checked(entry: Any, path: Path, *, number: int) -> tuple[list[float], float]:
    """Return the box and the score of an entry."""
    where = f"{path}: detection {number}"
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {shown(entry)}; it must have image_id, category_id, bbox and score")
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; it must have image_id, category_id, bbox and score")
    for key in ("image_id", "category_id"):
        if not isinstance(entry[key], int | str):
            raise DataError(f"{where}: {key}={shown(entry[key])} must be a whole number or a text")
    box, score = entry["bbox"], entry["score"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
        raise DataError(f"{where}: bbox={shown(box)} must be four numbers: x, y, width and height in pixels")
    if not _is_finite(score):
        raise DataError(f"{where}: score={shown(score)} must be a number")
    return box, score


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _summed(left_out: Counter[str]) -> tuple[str, ...]:
    """Join the reasons by kind, each with its first example."""
    kinds: dict[str, tuple[int, str]] = {}
    for reason, count in left_out.items():
        kind = reason.partition(", such as")[0]
        number, first = kinds.get(kind, (0, reason))
        kinds[kind] = (number + count, first)
    return tuple(
        f"{number:,} detections were left out, because their {first}"
        if number > 1
        else f"1 detection was left out, because its {first}"
        for number, first in kinds.values()
    )
