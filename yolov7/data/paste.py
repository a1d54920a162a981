"""Objects pasted into a sample: copies of its own, mirrored, and objects of other images.

Annotations here are boxes without outlines, so that what is pasted is a box with what is around its object.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolov7.data.augment import Boxes, Labels, Tile, resize
from yolov7.data.images import Image

MAX_COVERED = 0.3  # share of an object that may be pasted over
MIN_SIDE = 10  # pixels of what is pasted
_ROOM = (0.75,) * 2 + (0.5,) * 4 + (0.25,) * 4 + (0.125,) * 4 + (0.0625,) * 6  # sides of the places, share of the image
_MIN_ROOM = 20  # pixels
_SKIPPED = 0.2  # share of the places


@dataclass(frozen=True)
class Patch:
    """An object cut out of an image, with its class."""

    image: Image
    label: int


def cut_patches(tiles: Iterable[Tile]) -> list[Patch]:
    """The objects of some images, those that are large enough."""
    return [
        Patch(tile.image[y1:y2, x1:x2], int(label))
        for tile in tiles
        for (x1, y1, x2, y2), label in zip(tile.boxes_xyxy.round().astype(int).tolist(), tile.labels, strict=True)
        if min(x2 - x1, y2 - y1) >= MIN_SIDE
    ]


def paste_in(
    image: Image, boxes_xyxy: Boxes, labels: Labels, *, patches: Sequence[Patch], generator: Generator
) -> tuple[Image, Boxes, Labels]:
    """Fits patches into random places of many sizes, where they cover little of any object, earlier patches included.

    Boxes (k, 4) in pixels. Nothing of the arguments is changed.
    """
    if not patches:
        return image, boxes_xyxy, labels
    image, height, width = image.copy(), *image.shape[:2]
    boxes, classes = list(boxes_xyxy), list(labels)
    for share in _ROOM:
        room = generator.uniform(0.5, 1.0, size=2) * share * (width, height)
        corner = generator.uniform(size=2) * (width - room[0], height - room[1])
        patch = patches[int(generator.integers(len(patches)))]
        if generator.random() < _SKIPPED or room.min() < _MIN_ROOM:
            continue
        scale = min(room[0] / patch.image.shape[1], room[1] / patch.image.shape[0])
        sides = [int(patch.image.shape[1] * scale), int(patch.image.shape[0] * scale)]
        left, top = (int(value) for value in corner)
        box = np.array([left, top, left + sides[0], top + sides[1]], np.float32)
        if min(sides) < MIN_SIDE or not _leaves_enough(box, boxes):
            continue
        image[top : top + sides[1], left : left + sides[0]] = resize(patch.image, width=sides[0], height=sides[1])
        boxes.append(box)
        classes.append(patch.label)
    return image, np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64)


def copy_paste(
    image: Image, boxes_xyxy: Boxes, labels: Labels, *, probability: float, generator: Generator
) -> tuple[Image, Boxes, Labels]:
    """Copies some objects, mirrored, to the mirrored place, where they cover little of any object.

    `probability`: of each object to be chosen. Boxes (k, 4) in pixels. Nothing of the arguments is changed.
    """
    chosen = np.flatnonzero(generator.random(len(labels)) < probability)
    if not len(chosen):
        return image, boxes_xyxy, labels
    mirrored, image, width = image[:, ::-1], image.copy(), image.shape[1]
    boxes, classes = list(boxes_xyxy), list(labels)
    for i in chosen:
        x1, y1, x2, y2 = boxes_xyxy[i]
        box = np.array([width - x2, y1, width - x1, y2], np.float32)
        left, top, right, bottom = (int(value) for value in box.round())
        if min(right - left, bottom - top) < MIN_SIDE or not _leaves_enough(box, boxes):
            continue
        image[top:bottom, left:right] = mirrored[top:bottom, left:right]
        boxes.append(box)
        classes.append(labels[i])
    return image, np.array(boxes, np.float32), np.array(classes, np.int64)


def _leaves_enough(box: NDArray[np.float32], objects: Sequence[NDArray[np.float32]]) -> bool:
    """Whether a box covers less than MAX_COVERED of every object."""
    if not objects:
        return True
    others = np.stack(objects)
    sides = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
    covered = sides.clip(min=0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return bool((covered < MAX_COVERED * np.maximum(areas, 1e-9)).all())
