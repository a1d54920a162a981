"""A miniature of COCO 2017: drawn images in COCO's folders, file names and annotation format.

It has COCO's 80 categories with their official ids, polygons, crowd regions with run-length encoded masks, areas of
masks, and images whose annotations are withheld (test-dev). What reads COCO reads the miniature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from yolov7.data.coco_names import COCO_NAMES
from yolov7.data.synthetic.scene import JPEG_QUALITY, Scene, draw_scene

# The ids of the 80 categories are 1 to 90 without those that COCO withdrew.
_WITHDRAWN = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in _WITHDRAWN)
_SUPERCATEGORIES = (  # each with the number of categories that it has, in the order of their ids
    ("person", 1), ("vehicle", 8), ("outdoor", 5), ("animal", 10), ("accessory", 5), ("sports", 10), ("kitchen", 7),
    ("food", 10), ("furniture", 6), ("electronic", 6), ("appliance", 5), ("indoor", 7),
)  # fmt: skip
SPLIT_SIZES: Mapping[str, int] = {"train2017": 40, "val2017": 12, "test-dev2017": 8}
_FOLDERS = {"train2017": "train2017", "val2017": "val2017", "test-dev2017": "test2017"}
_WIDTH, _HEIGHT = 160, 120  # pixels; COCO's images have 640 x 480
_FIRST_ID, _ID_STEP = 9, 16  # the first image of train2017 has the id 9, and ids have gaps
_CROWD = 0.25  # share of images with a crowd region


def write_coco_miniature(folder: Path, *, seed: int = 0) -> None:
    """Write 60 images and their annotation files.

    Args:
        folder: The folder; it is made if it is missing.
        seed: Seed of all random numbers. The same seed gives the same bytes.

    Raises:
        OSError: If the folder cannot be written.
    """
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in SPLIT_SIZES.items():
        images, annotations = [], []
        (folder / _FOLDERS[split]).mkdir(exist_ok=True)
        for _ in range(count):
            image_id = _FIRST_ID + _ID_STEP * number
            generator = default_rng((seed, image_id))
            scene = _draw(generator)
            name = f"{image_id:012d}.jpg"
            content = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            (folder / _FOLDERS[split] / name).write_bytes(content.tobytes())
            images.append(_image_row(image_id, name, folder=_FOLDERS[split]))
            annotations += _annotation_rows(scene, image_id, number, generator)
            number += 1
        kind = "image_info" if split == "test-dev2017" else "instances"
        content_rows: dict[str, Any] = {"info": _INFO, "licenses": _LICENSES, "images": images}
        if kind == "instances":
            content_rows["annotations"] = annotations
        content_rows["categories"] = _category_rows()
        text = json.dumps(content_rows, separators=(",", ":"))
        (folder / "annotations" / f"{kind}_{split}.json").write_text(text + "\n", encoding="utf-8")


_INFO = {"description": "yolov7-pipeline miniature of COCO 2017, drawn", "version": "1.0", "year": 2017}
_LICENSES = [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}]


def _draw(generator: Generator) -> Scene:
    """Draw a square scene and keep a part with COCO's aspect ratio; objects that are mostly outside are left out."""
    scene = draw_scene(_WIDTH, generator=generator)
    top = int(generator.integers(0, _WIDTH - _HEIGHT + 1))
    boxes = scene.boxes_xyxy - np.array([0, top, 0, top], np.float32)
    clipped = np.clip(boxes, 0, [_WIDTH, _HEIGHT, _WIDTH, _HEIGHT]).astype(np.float32)
    share = _areas(clipped) / np.maximum(_areas(boxes), 1)
    kept = (share > 0.5) & ~scene.crowd
    return replace(
        scene,
        image=np.ascontiguousarray(scene.image[top : top + _HEIGHT]),
        boxes_xyxy=clipped[kept],
        labels=scene.labels[kept],
        crowd=scene.crowd[kept],
        visible=scene.visible[kept],
    )


def _areas(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    areas: NDArray[np.float32] = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    return areas


def _image_row(image_id: int, name: str, *, folder: str) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/{folder}/{name}",
        "height": _HEIGHT,
        "width": _WIDTH,
        "date_captured": "2013-11-14 17:02:52",
        "id": image_id,
    }


def _annotation_rows(scene: Scene, image_id: int, number: int, generator: Generator) -> list[dict[str, Any]]:
    """Return the objects of an image. Its shapes get categories in turn, so that every category occurs."""
    rows = []
    for place, box in enumerate(scene.boxes_xyxy.tolist()):
        category = CATEGORY_IDS[(3 * number + place) % len(CATEGORY_IDS)]
        polygon = _polygon(box)
        rows.append(
            {
                "segmentation": [polygon],
                "area": _polygon_area(polygon),
                "iscrowd": 0,
                "image_id": image_id,
                "bbox": _bounds(polygon),
                "category_id": category,
                "id": 1_000 * image_id + place,
            }
        )
    if generator.random() < _CROWD or number == 0:
        rows.append(_crowd_row(image_id, generator))
    return rows


def _polygon(box_xyxy: list[float]) -> list[float]:
    """Return an octagon in a box, as x, y, x, y, ... with two decimals as in COCO."""
    x1, y1, x2, y2 = box_xyxy
    u, v = (x2 - x1) / 4, (y2 - y1) / 4
    corners = [(x1 + u, y1), (x2 - u, y1), (x2, y1 + v), (x2, y2 - v), (x2 - u, y2), (x1 + u, y2), (x1, y2 - v)]
    return [round(value, 2) for corner in [*corners, (x1, y1 + v)] for value in corner]


def _polygon_area(polygon: list[float]) -> float:
    x, y = np.array(polygon).reshape(-1, 2).T
    return round(float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2), 4)


def _bounds(polygon: list[float]) -> list[float]:
    points = np.array(polygon).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [round(float(value), 2) for value in (*low, *(high - low))]


def _crowd_row(image_id: int, generator: Generator) -> dict[str, Any]:
    """Return a crowd region whose mask is an ellipse, run-length encoded column by column as COCO does."""
    width, height = (int(generator.integers(20, 50)) for _ in range(2))
    left, top = int(generator.integers(0, _WIDTH - width)), int(generator.integers(0, _HEIGHT - height))
    mask = np.zeros((_HEIGHT, _WIDTH), np.uint8)
    cv2.ellipse(mask, (left + width // 2, top + height // 2), (width // 2, height // 2), 0, 0, 360, 1, -1)
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=np.uint8(0)))  # the first run is of zeros
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    return {
        "segmentation": {"counts": counts, "size": [_HEIGHT, _WIDTH]},
        "area": int(mask.sum()),
        "iscrowd": 1,
        "image_id": image_id,
        "bbox": [int(value) for value in box],
        "category_id": 1,
        "id": 900_100_000_000 + image_id,
    }


def _category_rows() -> list[dict[str, Any]]:
    parents = [name for name, count in _SUPERCATEGORIES for _ in range(count)]
    return [
        {"supercategory": parent, "id": number, "name": name}
        for parent, number, name in zip(parents, CATEGORY_IDS, COCO_NAMES, strict=True)
    ]
