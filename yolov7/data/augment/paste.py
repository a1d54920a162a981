"""Objects pasted into a sample: mirrored copies of its own objects, and objects of other images.

Of an object with an outline only the pixels within the outline are pasted. Of any other object the whole box is pasted,
with what surrounds the object in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolov7.data.augment.letterbox import resize
from yolov7.data.augment.tile import Tile
from yolov7.data.images import Image
from yolov7.data.outlines import Outline, area, bounds, fill, move

MAX_COVERED = 0.3  # share of an object that may be covered
MIN_SIDE = 10  # pixels of a pasted object
MIN_AREA = 60  # pixels within the outline of a pasted object
_PLACE_SIDES = (0.75,) * 2 + (0.5,) * 4 + (0.25,) * 4 + (0.125,) * 4 + (0.0625,) * 6  # shares of the image
_MIN_PLACE = 20  # pixels
_SKIPPED = 0.2  # share of the places that stay empty


@dataclass(frozen=True)
class Patch:
    """An object that was cut out of an image.

    Attributes:
        image: The pixels of its box (h, w, 3), uint8 RGB.
        label: Its class index.
        outline: Its outline in the patch's pixels, or () if it has none.
    """

    image: Image
    label: int
    outline: Outline = ()


def cut_patches(tiles: Iterable[Tile]) -> list[Patch]:
    """Cut the objects out of images.

    Args:
        tiles: The images.

    Returns:
        One patch for each object whose sides are at least `MIN_SIDE` pixels.
    """
    return [
        Patch(tile.image[y1:y2, x1:x2], int(label), _moved(outline, shift=(-x1, -y1)))
        for tile in tiles
        for (x1, y1, x2, y2), label, outline in zip(
            tile.boxes_xyxy.round().astype(int).tolist(), tile.labels, tile.outline_per_object(), strict=True
        )
        if min(x2 - x1, y2 - y1) >= MIN_SIDE
    ]


def paste_in(tile: Tile, *, patches: Sequence[Patch], generator: Generator) -> Tile:
    """Paste random patches into random places of several sizes.

    A patch is resized to its place. It is left out if it would cover `MAX_COVERED` or more of any object, including
    objects that were pasted before.

    Args:
        tile: The image to paste into; it is not changed.
        patches: The patches to choose from; each may be chosen several times.
        generator: Source of randomness.

    Returns:
        The image with the pasted objects; the argument itself if there are no patches.
    """
    if not patches:
        return tile
    image, height, width = tile.image.copy(), *tile.image.shape[:2]
    boxes, labels, outlines = list(tile.boxes_xyxy), list(tile.labels), list(tile.outline_per_object())
    for share in _PLACE_SIDES:
        place_size = generator.uniform(0.5, 1.0, size=2) * share * (width, height)
        corner = generator.uniform(size=2) * (width - place_size[0], height - place_size[1])
        patch = patches[int(generator.integers(len(patches)))]
        if generator.random() < _SKIPPED or place_size.min() < _MIN_PLACE:
            continue
        whole = patch.image.shape[1], patch.image.shape[0]
        scale = min(place_size[0] / whole[0], place_size[1] / whole[1])
        sides = int(whole[0] * scale), int(whole[1] * scale)
        left, top = (int(value) for value in corner)
        place = np.array([left, top, left + sides[0], top + sides[1]], np.float32)
        outline = _moved(patch.outline, scale=(sides[0] / whole[0], sides[1] / whole[1]), shift=(left, top))
        box = np.clip(bounds(outline), place[[0, 1, 0, 1]], place[[2, 3, 2, 3]]) if outline else place
        if not _is_large(box, outline) or _covers_too_much(box, boxes):
            continue
        _paste(image, resize(patch.image, width=sides[0], height=sides[1]), outline, left=left, top=top)
        boxes.append(box)
        labels.append(np.int64(patch.label))
        outlines.append(outline)
    return _with_objects(tile, image, boxes, labels, outlines)


def copy_paste(tile: Tile, *, probability: float, generator: Generator) -> Tile:
    """Copy some objects of an image, mirrored, to the mirrored position in the same image.

    A copy is left out if it would cover `MAX_COVERED` or more of any object.

    Args:
        tile: The image; it is not changed.
        probability: Probability of each object to be chosen.
        generator: Source of randomness.

    Returns:
        The image with the copies; the argument itself if no object was chosen.
    """
    chosen = np.flatnonzero(generator.random(len(tile.labels)) < probability)
    if not len(chosen):
        return tile
    mirrored, image, width = tile.image[:, ::-1], tile.image.copy(), tile.image.shape[1]
    boxes, labels, outlines = list(tile.boxes_xyxy), list(tile.labels), list(tile.outline_per_object())
    for i in chosen:
        x1, y1, x2, y2 = tile.boxes_xyxy[i]
        box = np.array([width - x2, y1, width - x1, y2], np.float32)
        left, top, right, bottom = (int(value) for value in box.round())
        outline = _moved(outlines[i], scale=(-1.0, 1.0), shift=(width, 0))
        if not _is_large(box.round(), outline) or _covers_too_much(box, boxes):
            continue
        _paste(image, mirrored[top:bottom, left:right], outline, left=left, top=top)
        boxes.append(box)
        labels.append(tile.labels[i])
        outlines.append(outline)
    return _with_objects(tile, image, boxes, labels, outlines)


def _paste(image: Image, content: Image, outline: Outline, *, left: int, top: int) -> None:
    """Write those pixels of `content` that are within the outline, or all of them, to a part of the image."""
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
    """Return the tile with another image and other objects."""
    return replace(
        tile,
        image=image,
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        outlines=tuple(outlines),
    )


def _covers_too_much(box: NDArray[np.float32], objects: Sequence[NDArray[np.float32]]) -> bool:
    """Tell whether a box covers MAX_COVERED or more of any object."""
    if not objects:
        return False
    others = np.stack(objects)
    sides = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
    covered = sides.clip(min=0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return bool((covered >= MAX_COVERED * np.maximum(areas, 1e-9)).any())
