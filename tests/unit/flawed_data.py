"""A clean data set in COCO, VOC and YOLO form, and one function for each flaw that plants it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

WIDTH, HEIGHT, COUNT = 320, 240, 12
NAMES = ("cat", "dog")
Row = dict[str, Any]


def write_picture(path: Path, *, seed: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write an image that looks like no image of another seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def boxes_of(seed: int) -> list[tuple[int, list[float]]]:
    """Return two boxes of an image as class and x, y, width, height."""
    draw = np.random.default_rng(1000 + seed)
    rows = []
    for label in range(2):
        width, height = draw.integers(40, 70, 2).tolist()
        rows.append((label, [20 + 140 * label + int(draw.integers(0, 50)), int(draw.integers(10, 150)), width, height]))
    return rows


@dataclass
class Coco:
    """A COCO data set that can be changed before it is saved."""

    root: Path
    content: dict[str, Row] = field(default_factory=dict)

    def image(self, i: int, split: str = "train") -> Path:
        return self.root / split / f"{split}{i}.jpg"

    def rows(self, i: int, split: str = "train") -> list[Row]:
        return [row for row in self.content[split]["annotations"] if row["image_id"] == i + 1]

    def add(self, i: int, bbox: object, split: str = "train", **values: Any) -> Row:
        rows = self.content[split]["annotations"]
        row = {"id": 1000 + len(rows), "image_id": i + 1, "category_id": 1, "bbox": bbox, "iscrowd": 0} | values
        rows.append(row)
        return row

    def save(self) -> Path:
        for split, content in self.content.items():
            (self.root / f"{split}.json").write_text(json.dumps(content))
        return self.root


def clean_coco(root: Path) -> Coco:
    """Write a clean COCO data set."""
    data = Coco(root)
    for first, split in ((0, "train"), (100, "val")):
        images, annotations = [], []
        for i in range(COUNT):
            write_picture(data.image(i, split), seed=first + i)
            images.append({"id": i + 1, "file_name": f"{split}{i}.jpg", "width": WIDTH, "height": HEIGHT})
            for label, bbox in boxes_of(first + i):
                row = {"id": 2 * i + label + 1, "image_id": i + 1, "category_id": label + 1, "bbox": bbox, "iscrowd": 0}
                annotations.append(row)
        categories = [{"id": k + 1, "name": name, "supercategory": "animal"} for k, name in enumerate(NAMES)]
        data.content[split] = {"images": images, "annotations": annotations, "categories": categories}
    data.save()
    return data


def copy_coco(clean: Coco, root: Path) -> Coco:
    """Copy a data set, so that it can be changed."""
    shutil.copytree(clean.root, root)
    return Coco(root, json.loads(json.dumps(clean.content)))


def clean_voc(root: Path) -> Path:
    """Write a clean VOC data set."""
    for first, split in ((0, "train"), (100, "val")):
        stems = [f"{split}{i}" for i in range(COUNT)]
        for i, stem in enumerate(stems):
            write_picture(root / "JPEGImages" / f"{stem}.jpg", seed=first + i)
            objects = "".join(
                voc_object(NAMES[label], x + 1, y + 1, x + w, y + h) for label, (x, y, w, h) in boxes_of(first + i)
            )
            write_xml(root, stem, objects)
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def voc_object(name: str, *corners: float) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"


def write_xml(root: Path, stem: str, objects: str, *, width: int = WIDTH) -> None:
    path = root / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    size = f"<size><width>{width}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    path.write_text(f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>")


def clean_yolo(root: Path) -> Path:
    """Write a clean YOLO data set."""
    for first, split in ((0, "train"), (100, "val")):
        (root / "labels" / split).mkdir(parents=True)
        for i in range(COUNT):
            write_picture(root / "images" / split / f"{split}{i}.jpg", seed=first + i)
            lines = [f"{label} {yolo_box(*bbox)}\n" for label, bbox in boxes_of(first + i)]
            (root / "labels" / split / f"{split}{i}.txt").write_text("".join(lines))
    text = f"path: {root}\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"
    (root / "data.yaml").write_text(text)
    return root


def yolo_box(x: float, y: float, w: float, h: float) -> str:
    shares = (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT
    return " ".join(f"{share:.6f}" for share in shares)


def _resave(data: Coco, source: Path, target: Path) -> None:
    cv2.imwrite(str(target), cv2.imread(str(source)), [cv2.IMWRITE_JPEG_QUALITY, 60])


def _deep(data: Coco, largest: int) -> None:
    values = np.random.default_rng(5).integers(0, largest, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    path = data.image(3).with_suffix(".png")
    cv2.imwrite(str(path), cv2.GaussianBlur(values, (0, 0), 9))
    data.content["train"]["images"][3]["file_name"] = path.name


def _wide(data: Coco) -> None:
    write_picture(data.image(3), seed=900, width=1280)
    data.content["train"]["images"][3]["width"] = 1280


def _set(data: Coco, **values: Any) -> None:
    data.rows(3)[0].update(values)


def _outline(data: Coco, *points: float) -> None:
    """Give the first object of image 3 a polygon."""
    data.rows(3)[0]["segmentation"] = [list(points)]


def _square(data: Coco, *, dx: float = 0.0, scale: float = 1.0) -> list[float]:
    x, y, w, h = data.rows(3)[0]["bbox"]
    x, w = x + dx, w * scale
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def _remove(data: Coco, split: str, keep: Callable[[Row], bool]) -> None:
    data.content[split]["annotations"] = [row for row in data.content[split]["annotations"] if keep(row)]


def _scale_val(data: Coco) -> None:
    for row in data.content["val"]["annotations"]:
        x, y, w, h = row["bbox"]
        row["bbox"] = [x, y, w / 3, h / 3]


def _shift(data: Coco) -> None:
    """Add a copy of an object that is moved by half a pixel."""
    x, y, w, h = data.rows(3)[0]["bbox"]
    data.add(3, [x + 0.5, y + 0.5, w, h])


def _flatten_all(data: Coco) -> None:
    for content in data.content.values():
        for row in content["annotations"]:
            row["bbox"][2:] = [100, 3]


def _clip(data: Coco) -> None:
    data.rows(3)[0]["bbox"] = [-9, 50, 60, 60]
    _outline(data, -9, 50, 51, 50, 51, 110, -9, 110)


PLANTED: dict[str, tuple[Callable[[Coco], object], set[str], str]] = {
    # check: how it is planted, other checks that find something too, the file that is named
    "image-missing": (lambda d: d.image(3).unlink(), set(), "train3.jpg"),
    "image-unreadable": (lambda d: d.image(3).write_bytes(d.image(3).read_bytes()[:900]), set(), "train3.jpg"),
    "image-twice": (
        lambda d: d.content["train"]["images"].append({"id": 99, "file_name": "./train3.jpg"}), set(), "train3.jpg",
    ),
    "id-twice": (lambda d: d.rows(3)[0].update(id=1), set(), "train.json"),
    "image-leak": (lambda d: shutil.copy(d.image(3), d.image(4, "val")), set(), "val4.jpg"),
    "image-size": (lambda d: d.content["train"]["images"][3].update(width=321), set(), "train3.jpg"),
    "image-copy": (lambda d: shutil.copy(d.image(3), d.image(4)), set(), "train4.jpg"),
    "image-dark": (lambda d: _deep(d, 3000), {"image-depth"}, "train3.png"),
    "image-without-boxes": (lambda d: _remove(d, "train", lambda row: row["image_id"] != 4), set(), "train3.jpg"),
    "unknown-image": (lambda d: d.add(500, [1, 1, 50, 50]), set(), "train.json"),
    "unknown-category": (lambda d: d.add(3, [1, 1, 50, 50], category_id=9), set(), "train.json"),
    "category-unused": (
        lambda d: d.content["train"]["categories"].append({"id": 0, "name": "animal", "supercategory": "none"}),
        set(), "train.json",
    ),
    "box-no-area": (lambda d: d.add(3, [10, 10, 0, 50]), set(), "train3.jpg"),
    "box-no-numbers": (lambda d: d.add(3, [10, "x", 50, 50]), set(), "train3.jpg"),
    "box-in-shares": (lambda d: d.add(3, [0.2, 0.3, 0.2, 0.2]), set(), "train3.jpg"),
    "box-outside": (lambda d: d.add(3, [400, 10, 50, 50]), set(), "train3.jpg"),
    "box-clipped": (_clip, set(), "train3.jpg"),
    "box-twice": (lambda d: d.add(3, d.rows(3)[0]["bbox"]), set(), "train3.jpg"),
    "crowd-value": (lambda d: _set(d, iscrowd=7), set(), "train.json"),
    "outline-no-polygon": (lambda d: _outline(d, 1, 2, 3, 4), set(), "train.json"),
    "outline-clipped": (
        lambda d: (_set(d, bbox=[0, 50, 60, 60]), _outline(d, -9, 50, 60, 50, 60, 110, -9, 110)), set(), "train3.jpg",
    ),
    "outline-elsewhere": (lambda d: _outline(d, *_square(d, dx=30)), set(), "train3.jpg"),
    "outline-mask": (
        lambda d: _set(d, segmentation={"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}), set(), "train.json",
    ),
    "area-value": (lambda d: _set(d, area=-4), set(), "train.json"),
    "box-rotated": (lambda d: _set(d, attributes={"rotation": 30}), set(), "train.json"),
    "box-overlap": (_shift, set(), "train3.jpg"),
    "box-whole-image": (lambda d: d.add(3, [0, 0, WIDTH, HEIGHT], category_id=2), set(), "train3.jpg"),
    "box-too-small": (lambda d: d.add(3, [10, 10, 0.8, 50]), set(), "train3.jpg"),
    "box-below-stride": (lambda d: d.add(3, [10, 10, 3, 3]), set(), "train3.jpg"),
    "image-near-copy": (lambda d: _resave(d, d.image(3), d.image(4)), set(), "train4.jpg"),
    "image-near-leak": (lambda d: _resave(d, d.image(3), d.image(4, "val")), set(), "val4.jpg"),
    "image-aspect": (_wide, set(), "train3.jpg"),
    "image-channels": (
        lambda d: cv2.imwrite(str(d.image(3)), cv2.imread(str(d.image(3)), cv2.IMREAD_GRAYSCALE)), set(), "train3.jpg",
    ),
    "image-depth": (lambda d: _deep(d, 65535), set(), "train3.png"),
    "class-absent": (lambda d: _remove(d, "val", lambda row: row["category_id"] == 1), set(), "val"),
    "class-skew": (
        lambda d: _remove(d, "val", lambda row: row["category_id"] == 1 or row["image_id"] == 1), set(), "val",
    ),
    "size-skew": (_scale_val, set(), "val"),
    "anchors": (_flatten_all, set(), "train"),
}  # fmt: skip
"""The flaws of COCO data, of which `train` has one each."""
