"""Writer of YOLO data: data.yaml, a list of images for each split, and a label file for each image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolov7.data.read.yolo import SPLIT_KEYS
from yolov7.data.write.sized import Losses, SizedSplit, WrittenFiles

IMAGE_FOLDER = "images"
_FIT = 0.01  # pixels between a box and its polygon; COCO's boxes are rounded to this


def write_yolo(folder: Path, splits: Mapping[str, SizedSplit], losses: Losses) -> None:
    """Write `data.yaml`, `labels/*.txt` and a list `SPLIT.txt` for each split.

    Values are shares of the sides of the image with twelve decimals. An object with an outline of one part is written
    as a polygon if the box around it is its box; otherwise its box is written.

    Args:
        folder: The folder of the data set, in which the images are in `images`.
        splits: The splits by name.
        losses: What cannot be expressed is added.
    """
    import yaml

    keys = _keys(list(splits))
    files = WrittenFiles()
    for name, split in splits.items():
        for image, objects in split.rows():
            lines = [line for row in objects if (line := _line(split, image, row, losses)) is not None]
            files.add(folder / "labels" / f"{Path(split.names[image]).stem}.txt", "".join(lines))
        listed = "".join(f"./{IMAGE_FOLDER}/{image}\n" for image in split.names)
        (folder / f"{keys.get(name, name)}.txt").write_text(listed, encoding="utf-8")
    if files.differing:
        losses["images of several splits with different objects (the first split counts)"] += len(files.differing)
    if unnamed := [name for name in splits if name not in keys]:
        losses[f"splits that data.yaml cannot name (their lists are written: {', '.join(unnamed)})"] += len(unnamed)
    class_names = next(iter(splits.values())).class_names
    content = {key: f"{key}.txt" for key in keys.values()} | {"names": dict(enumerate(class_names))}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=10_000)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def _keys(names: list[str]) -> dict[str, str]:
    """Return the keys of data.yaml by the splits that they name; the training split has the key `train`."""
    keys = {name: name for name in names if name in SPLIT_KEYS}
    if "train" not in keys:
        others = [name for name in names if name not in SPLIT_KEYS]
        keys |= dict.fromkeys(others[:1], "train")
    return keys


def _line(split: SizedSplit, image: int, row: int, losses: Losses) -> str | None:
    """Return the line of an object; None if YOLO's format cannot express it."""
    source, size = split.annotations, split.sizes[image].astype(np.float64)
    box = source.boxes_xywh[row]
    stated = np.concatenate([box[:2], box[:2] + box[2:]])
    if source.crowd[row]:
        losses["crowd regions"] += 1
        return None
    if not np.isfinite(stated).all():
        losses["boxes that are not numbers"] += 1
        return None
    corners = np.clip(stated, 0, np.tile(size, 2))
    if (corners[2:] <= corners[:2]).any():
        losses["boxes without area or outside their image"] += 1
        return None
    label, area = int(source.labels[row]), float(source.areas[row])
    polygon = _polygon(split, row, stated, size, losses)
    if polygon is not None:
        return f"{label} {_numbers(polygon / size)}\n"
    if not np.isnan(area) and not np.isclose(area, box[2] * box[3], rtol=1e-6):
        losses["areas that differ from those of the boxes"] += 1
    if np.abs(corners - stated).max() > _FIT:
        losses["boxes reaching outside their image (clipped)"] += 1
    centre, sides = (corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]
    return f"{label} {_numbers(np.stack([centre, sides]) / size)}\n"


def _polygon(
    split: SizedSplit, row: int, corners: NDArray[np.float64], size: NDArray[np.float64], losses: Losses
) -> NDArray[np.float64] | None:
    """Return the outline (k, 2) of an object in pixels; None if there is none that a line can express."""
    parts = split.parts_of(row)
    if not parts:
        return None
    points = parts[0].astype(np.float64)
    around = np.concatenate([points.min(axis=0), points.max(axis=0)])
    if len(parts) > 1:
        losses["outlines of several parts (the boxes are kept)"] += 1
    elif np.abs(around - corners).max() > _FIT:
        losses["outlines that do not end at their boxes (the boxes are kept)"] += 1
    elif (around < 0).any() or (around[2:] > size).any():
        losses["outlines reaching outside their image (the boxes are kept)"] += 1
    else:
        return points
    return None


def _numbers(values: NDArray[np.float64]) -> str:
    return " ".join(f"{value:.12f}".rstrip("0").rstrip(".") for value in values.ravel().tolist())
