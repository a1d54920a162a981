"""Writer of COCO annotation files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolov7.data.write.sized import Losses, SizedSplit

IMAGE_FOLDER = "images"


def write_coco(folder: Path, splits: Mapping[str, SizedSplit], losses: Losses) -> None:
    """Write `annotations/SPLIT.json` for each split.

    Ids of images and categories that are integers are kept; otherwise they are counted from 1. Annotations are
    numbered from 1. Coordinates are written with all digits.

    Args:
        folder: The folder of the data set, in which the images are in `images`.
        splits: The splits by name.
        losses: What cannot be expressed is added.
    """
    (folder / "annotations").mkdir(parents=True)
    for name, split in splits.items():
        content = _content(split, losses)
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (folder / "annotations" / f"{name}.json").write_text(text, encoding="utf-8", errors="backslashreplace")


def _content(split: SizedSplit, losses: Losses) -> dict[str, Any]:
    given = split.annotations.image_ids
    if all(isinstance(one, int) for one in given):
        image_ids = [int(one) for one in given]
    else:
        losses["image ids that are text (images are numbered anew)"] += len(given)
        image_ids = list(range(1, len(given) + 1))
    kept = split.category_ids if all(isinstance(one, int) for one in split.category_ids) else ()
    category_ids = kept or tuple(range(1, len(split.class_names) + 1))
    if split.category_ids and not kept:
        losses["category ids that are text (classes are numbered anew)"] += len(split.category_ids)
    sizes = split.sizes.tolist()
    return {
        "images": [
            {"id": image_ids[image], "file_name": split.names[image], "width": width, "height": height}
            for image, (width, height) in enumerate(sizes)
        ],
        "annotations": _annotations(split, image_ids, category_ids, losses),
        "categories": [
            {"id": given, "name": name} for given, name in zip(category_ids, split.class_names, strict=True)
        ],
    }


def _annotations(
    split: SizedSplit, image_ids: list[int], category_ids: tuple[Any, ...], losses: Losses
) -> list[dict[str, Any]]:
    source = split.annotations
    around = np.prod(source.boxes_xywh[:, 2:], axis=1)
    if source.outlines is not None:
        outlined = source.outlines.areas()
        around = np.where(outlined > 0, outlined, around)
    areas = np.where(np.isnan(source.areas), around, source.areas).tolist()
    boxes = source.boxes_xywh.tolist()
    finite: list[bool] = np.asarray(np.isfinite(source.boxes_xywh).all(axis=1)).tolist()
    rows: list[dict[str, Any]] = []
    for image, objects in split.rows():
        for row in objects:
            if not finite[row]:
                losses["boxes that are not numbers"] += 1
                continue
            is_crowd = bool(source.crowd[row])
            parts = split.parts_of(row)
            if is_crowd and not parts:
                losses["masks of crowd regions (their boxes are kept)"] += 1
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image_ids[image],
                    "category_id": category_ids[int(source.labels[row])],
                    "bbox": boxes[row],
                    "area": areas[row],
                    "iscrowd": int(is_crowd),
                    "segmentation": [[float(str(value)) for value in part.ravel()] for part in parts],
                }
            )
    return rows
