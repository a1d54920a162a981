"""Small data sets written for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolov7.data.index import ImageIndex


def write_image(path: Path, *, width: int = 60, height: int = 40, seed: int = 0) -> bytes:
    """A random image in the format of its suffix; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = cv2.imencode(path.suffix, cv2.GaussianBlur(pixels, (0, 0), 2))[1].tobytes()
    path.write_bytes(content)
    return content


def write_coco(root: Path, *, images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]) -> Path:
    """A COCO file with the categories 7: cat and 3: dog; draws the images that have no `skip`."""
    rows = []
    for number, image in enumerate(images):
        row: dict[str, Any] = {"id": number + 1, "file_name": f"{number}.jpg", "width": 60, "height": 40} | dict(image)
        if not row.pop("skip", False):
            write_image(root / "images" / row["file_name"], seed=number)
        rows.append(row)
    boxes = [{"id": number + 1, "category_id": 7, "iscrowd": 0} | dict(row) for number, row in enumerate(annotations)]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    path = root / "train.json"
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": rows, "annotations": boxes, "categories": categories}))
    return path


def write_voc(
    root: Path, boxes: Mapping[str, Sequence[tuple[str, int, int, int, int]]], *, split: str = "train"
) -> None:
    """A VOC folder with one image of 60 x 40 a key."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for seed, (stem, rows) in enumerate(boxes.items()):
        write_image(root / "JPEGImages" / f"{stem}.jpg", seed=seed)
        (root / "Annotations" / f"{stem}.xml").write_text(_voc_xml(rows))
    (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in boxes))


def make_index(folder: Path, *, count: int = 7, width: int = 60, height: int = 40) -> ImageIndex:
    """An index of random images, image i with i % 3 boxes."""
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        write_image(path, width=width, height=height, seed=i)
    counts = np.arange(count) % 3
    total = int(counts.sum())
    return ImageIndex(
        class_names=("a", "b"),
        paths=tuple(paths),
        widths=np.full(count, width, np.int32),
        heights=np.full(count, height, np.int32),
        hashes=tuple(str(i) for i in range(count)),
        box_offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes_xyxy=np.tile(np.array([[5, 5, 45, 35]], np.float32), (total, 1)),
        labels=np.arange(total) % 2,
        crowd=np.zeros(total, np.bool_),
    )


def _voc_xml(rows: Sequence[tuple[str, int, int, int, int]]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, x1, y1, x2, y2 in rows
    )
    return f"<annotation><size><width>60</width><height>40</height></size>{objects}</annotation>"


def write_yolo(
    root: Path, labels: Mapping[str, str | None], *, names: str = "[cat, dog]", folder: str = "images/train"
) -> Path:
    """A data.yaml with one image of 60 x 40 a key and its label file in the parallel tree; None: no label file."""
    for seed, (stem, text) in enumerate(labels.items()):
        write_image(root / folder / f"{stem}.jpg", seed=seed)
        label = root / folder.replace("images", "labels") / f"{stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            label.write_text(text)
    path = root / "data.yaml"
    path.write_text(f"train: {folder}\nnames: {names}\n")
    return path
