"""Objects pasted into a sample: copies of its own, mirrored, and objects of other images.

Of an object with an outline only what is within it is pasted; of the others their box, with what is around the object.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolov7.data.augment.geometry import Tile, resize
from yolov7.data.images import Image
from yolov7.data.outlines import Outline, area, bounds, fill, move

MAX_COVERED = 0.3  # share of an object that may be pasted over
MIN_SIDE = 10  # pixels of what is pasted
MIN_AREA = 60  # pixels within an outline
_ROOM = (0.75,) * 2 + (0.5,) * 4 + (0.25,) * 4 + (0.125,) * 4 + (0.0625,) * 6  # sides of the places, share of the image
_MIN_ROOM = 20  # pixels
_SKIPPED = 0.2  # share of the places


@dataclass(frozen=True)
class Patch:
    """An object cut out of an image, with its class, and its outline in the patch's pixels."""

    image: Image
    label: int
    outline: Outline = ()


def cut_patches(tiles: Iterable[Tile]) -> list[Patch]:
    """The objects of some images, those that are large enough."""
    return [
        Patch(tile.image[y1:y2, x1:x2], int(label), _moved(outline, shift=(-x1, -y1)))
        for tile in tiles
        for (x1, y1, x2, y2), label, outline in zip(
            tile.boxes_xyxy.round().astype(int).tolist(), tile.labels, tile.outline_of_each(), strict=True
        )
        if min(x2 - x1, y2 - y1) >= MIN_SIDE
    ]


def paste_in(tile: Tile, *, patches: Sequence[Patch], generator: Generator) -> Tile:
    """Fits patches into random places of many sizes, where they cover little of any object, earlier patches included.

    Nothing of the arguments is changed.
    """
    if not patches:
        return tile
    image, height, width = tile.image.copy(), *tile.image.shape[:2]
    boxes, labels, outlines = list(tile.boxes_xyxy), list(tile.labels), list(tile.outline_of_each())
    for share in _ROOM:
        room = generator.uniform(0.5, 1.0, size=2) * share * (width, height)
        corner = generator.uniform(size=2) * (width - room[0], height - room[1])
        patch = patches[int(generator.integers(len(patches)))]
        if generator.random() < _SKIPPED or room.min() < _MIN_ROOM:
            continue
        whole = patch.image.shape[1], patch.image.shape[0]
        scale = min(room[0] / whole[0], room[1] / whole[1])
        sides = int(whole[0] * scale), int(whole[1] * scale)
        left, top = (int(value) for value in corner)
        place = np.array([left, top, left + sides[0], top + sides[1]], np.float32)
        outline = _moved(patch.outline, scale=(sides[0] / whole[0], sides[1] / whole[1]), shift=(left, top))
        box = np.clip(bounds(outline), place[[0, 1, 0, 1]], place[[2, 3, 2, 3]]) if outline else place
        if not _is_large(box, outline) or not _leaves_enough(box, boxes):
            continue
        _put(image, resize(patch.image, width=sides[0], height=sides[1]), outline, left=left, top=top)
        boxes.append(box)
        labels.append(np.int64(patch.label))
        outlines.append(outline)
    return _with_objects(tile, image, boxes, labels, outlines)


def copy_paste(tile: Tile, *, probability: float, generator: Generator) -> Tile:
    """Copies some objects, mirrored, to the mirrored place, where they cover little of any object.

    `probability`: of each object to be chosen. Nothing of the arguments is changed.
    """
    chosen = np.flatnonzero(generator.random(len(tile.labels)) < probability)
    if not len(chosen):
        return tile
    mirrored, image, width = tile.image[:, ::-1], tile.image.copy(), tile.image.shape[1]
    boxes, labels, outlines = list(tile.boxes_xyxy), list(tile.labels), list(tile.outline_of_each())
    for i in chosen:
        x1, y1, x2, y2 = tile.boxes_xyxy[i]
        box = np.array([width - x2, y1, width - x1, y2], np.float32)
        left, top, right, bottom = (int(value) for value in box.round())
        outline = _moved(outlines[i], scale=(-1.0, 1.0), shift=(width, 0))
        if not _is_large(box.round(), outline) or not _leaves_enough(box, boxes):
            continue
        _put(image, mirrored[top:bottom, left:right], outline, left=left, top=top)
        boxes.append(box)
        labels.append(tile.labels[i])
        outlines.append(outline)
    return _with_objects(tile, image, boxes, labels, outlines)


def _put(image: Image, content: Image, outline: Outline, *, left: int, top: int) -> None:
    """Writes what is within the outline, or all, over a part of the image."""
    height, width = content.shape[:2]
    part = image[top : top + height, left : left + width]
    if outline:
        within = fill(_moved(outline, shift=(-left, -top)), width=width, height=height)
        np.copyto(part, content, where=within[..., None])
    else:
        part[:] = content


def _is_large(box: NDArray[np.float32], outline: Outline) -> bool:
    return bool((box[2:] - box[:2]).min() >= MIN_SIDE) and (not outline or area(outline) >= MIN_AREA)


def _moved(outline: Outline, *, shift: tuple[float, float], scale: tuple[float, float] = (1.0, 1.0)) -> Outline:
    return move([outline], scale=scale, shift=shift)[0]


def _with_objects(
    tile: Tile,
    image: Image,
    boxes: Sequence[NDArray[np.float32]],
    labels: Sequence[np.int64],
    outlines: Sequence[Outline],
) -> Tile:
    return replace(
        tile,
        image=image,
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        outlines=tuple(outlines),
    )


def _leaves_enough(box: NDArray[np.float32], objects: Sequence[NDArray[np.float32]]) -> bool:
    """Whether a box covers less than MAX_COVERED of every object."""
    if not objects:
        return True
    others = np.stack(objects)
    sides = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
    covered = sides.clip(min=0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return bool((covered < MAX_COVERED * np.maximum(areas, 1e-9)).all())
