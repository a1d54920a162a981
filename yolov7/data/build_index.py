"""Building of an index from annotations: images are decoded once, boxes and outlines are checked and cleaned."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolov7.data.annotations import (
    AnnotatedImage,
    AnnotatedSplit,
    Annotations,
    gather_images,
    is_in_shares,
    select_objects,
)
from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import ImageIndex, to_xywh
from yolov7.data.inspection import ImageFacts, KnownImages, Progress, inspect_images
from yolov7.data.outlines import Outline, OutlineTable, bounds, clip_polygon, frame_planes

CLIP_TOLERANCE = 1.0  # pixels that a box or an outline may reach outside its image without being listed
SHARE_DECIMALS = 6  # of pixels of a box that is given in shares, whose last digits are rounded in files
OUTLINE_TOLERANCE = 2.0, 0.05  # pixels, or the share of its longer side, that a box may differ from its outline's


@dataclass(frozen=True)
class _Cleaned:
    """The objects that are kept: their rows in the annotations, clipped boxes, outlines and areas."""

    rows: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float64]
    outlines: OutlineTable | None
    areas: NDArray[np.float64]


def build_index(
    images: Sequence[AnnotatedImage],
    *,
    class_names: tuple[str, ...],
    flaws: Iterable[Flaw] = (),
    progress: Progress | None = None,
) -> tuple[ImageIndex, tuple[Flaw, ...]]:
    """Build the index of images that are given one by one.

    Args:
        images: The images.
        class_names: The names of the classes, by label.
        flaws: Flaws that were found before.
        progress: Called after each image that was checked.

    Returns:
        The index of all sound images and boxes, and all flaws.
    """
    split = AnnotatedSplit(gather_images(images), class_names, (), tuple(flaws))
    return index_split(split, progress=progress)


def index_split(
    split: AnnotatedSplit, *, known: KnownImages | None = None, progress: Progress | None = None
) -> tuple[ImageIndex, tuple[Flaw, ...]]:
    """Build the index of a split.

    Every image is decoded once, in threads, unless it is known.

    Args:
        split: The annotations of the split.
        known: Images that were decoded before; the images of this split are added.
        progress: Called after each image that was checked.

    Returns:
        The index of all sound images and boxes, and all flaws.
    """
    found = list(split.flaws)
    annotations = merge_images(split.annotations, found)
    counts = np.bincount(annotations.image, minlength=len(annotations.paths))
    facts = inspect_images(annotations.paths, known=known, progress=progress)
    found.extend(_image_flaws(annotations, facts, counts))
    sizes = np.array([(f.width, f.height) if isinstance(f, ImageFacts) else (0, 0) for f in facts], np.float64)
    sizes = sizes.reshape(-1, 2)
    annotations = to_pixels(annotations, sizes)
    cleaned = _clean(annotations, sizes, found)
    kept = [i for i, fact in enumerate(facts) if isinstance(fact, ImageFacts)]
    sound = [fact for fact in facts if isinstance(fact, ImageFacts)]
    rows = cleaned.rows
    boxes, stated = cleaned.boxes_xyxy.astype(np.float32), annotations.boxes_xywh[rows]
    areas = cleaned.areas
    index = ImageIndex(
        class_names=split.class_names,
        paths=tuple(annotations.paths[i].absolute() for i in kept),
        widths=np.array([fact.width for fact in sound], np.int32),
        heights=np.array([fact.height for fact in sound], np.int32),
        hashes=tuple(fact.content_hash for fact in sound),
        box_offsets=np.concatenate([[0], np.cumsum(np.bincount(annotations.image[rows], minlength=len(facts))[kept])]),
        boxes_xyxy=boxes,
        labels=annotations.labels[rows],
        crowd=annotations.crowd[rows],
        outlines=cleaned.outlines,
        areas=None if np.array_equal(areas, stated[:, 2:].prod(axis=1)) else areas,
        stated_xywh=None if np.array_equal(stated, to_xywh(boxes)) else stated,
        image_ids=tuple(annotations.image_ids[i] for i in kept),
        category_ids=split.category_ids,
        perceptual_hashes=np.array([fact.perceptual_hash for fact in sound], np.uint64),
    )
    return index, tuple(found)


def merge_images(annotations: Annotations, flaws: list[Flaw]) -> Annotations:
    """Make one image of all entries with the same file: each entry would show the others' objects as background.

    Args:
        annotations: The annotations.
        flaws: A flaw is added for each entry that is merged into another.

    Returns:
        The annotations with one entry per file, which has the id of the first entry.
    """
    first: dict[str, int] = {}
    places = [first.setdefault(os.path.normpath(path), i) for i, path in enumerate(annotations.paths)]
    kept = list(first.values())
    if len(kept) == len(places):
        return annotations
    for i, place in enumerate(places):
        if i != place:
            ids = f"image {annotations.image_ids[i]!r}, again as image {annotations.image_ids[place]!r}"
            flaws.append(Flaw(FlawKind.DUPLICATE_IMAGE, str(annotations.paths[i]), ids))
    position = {place: k for k, place in enumerate(kept)}
    image = np.array([position[place] for place in places], np.int64)[annotations.image]
    order = np.argsort(image, kind="stable")
    return replace(
        select_objects(annotations, order),
        paths=tuple(annotations.paths[i] for i in kept),
        image_ids=tuple(annotations.image_ids[i] for i in kept),
        declared_wh=annotations.declared_wh[kept],
        image=image[order],
    )


def to_pixels(annotations: Annotations, sizes: NDArray[np.float64]) -> Annotations:
    """Multiply boxes and outlines that are shares of the sides of their images by these sides.

    Args:
        annotations: The annotations of n images.
        sizes: (n, 2) width and height of each image in pixels.

    Returns:
        The same annotations; `in_shares` stays as it is. These boxes are rounded to a millionth of a pixel.
    """
    if annotations.in_shares is None:
        return annotations
    frame = np.where(annotations.in_shares[:, None], sizes[annotations.image], 1.0)
    outlines = annotations.outlines
    if outlines is not None:
        of_part = np.repeat(frame, np.diff(outlines.object_offsets), axis=0)
        of_point = np.repeat(of_part, np.diff(outlines.part_offsets), axis=0)
        outlines = replace(outlines, points=(outlines.points * of_point).astype(np.float32))
    boxes = annotations.boxes_xywh * np.tile(frame, 2)
    boxes = np.where(annotations.in_shares[:, None], boxes.round(SHARE_DECIMALS), boxes)
    return replace(annotations, boxes_xywh=boxes, outlines=outlines)


def _image_flaws(
    annotations: Annotations, facts: Sequence[ImageFacts | Flaw], counts: NDArray[np.int64]
) -> Iterable[Flaw]:
    copies: dict[str, Path] = {}
    for path, stated, fact, count in zip(
        annotations.paths, annotations.declared_wh, facts, counts.tolist(), strict=True
    ):
        if isinstance(fact, Flaw):
            boxes = f"; {count} box{'es' if count > 1 else ''} left out with it" if count else ""
            yield Flaw(fact.kind, fact.file, fact.detail + boxes, boxes=count)
            continue
        if np.any((stated != (fact.width, fact.height)) & ~np.isnan(stated)):
            size = "{}x{}".format(*("?" if np.isnan(side) else f"{side:g}" for side in stated))
            yield Flaw(FlawKind.SIZE, str(path), f"annotated as {size}, is {fact.width}x{fact.height} upright")
        if fact.largest_value is not None:
            yield Flaw(FlawKind.LOW_RANGE, str(path), f"the largest value is {fact.largest_value} of 65535")
        if (other := copies.setdefault(fact.content_hash, path)) != path:
            yield Flaw(FlawKind.COPY, str(path), f"the same bytes as {other}")
        if not count:
            yield Flaw(FlawKind.BACKGROUND, str(path), "no objects")


def _clean(annotations: Annotations, sizes: NDArray[np.float64], flaws: list[Flaw]) -> _Cleaned:
    """Clip boxes and outlines to their images, and leave out those of which nothing remains."""
    frame = np.tile(sizes[annotations.image], 2)
    x, y, width, height = annotations.boxes_xywh.T
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = np.stack([x, y, x + width, y + height], axis=1)
        clipped = np.clip(boxes, 0.0, frame)
        kinds = _box_kinds(annotations, boxes, clipped, frame)
    is_kept = np.isin(kinds, [_KINDS.index(None), _KINDS.index(FlawKind.CLIPPED)]) & (frame[:, 0] > 0)
    rows = np.flatnonzero(is_kept)
    outlines = None
    if annotations.outlines is not None:
        outlines, outline_kinds = _clean_outlines(annotations.outlines, boxes, clipped, frame, is_kept)
        is_tight = np.flatnonzero((kinds == _KINDS.index(FlawKind.CLIPPED)) & (np.diff(outlines.object_offsets) > 0))
        clipped[is_tight] = outlines.bounds()[is_tight]  # may be less than what remains of the box
        kinds = np.where(kinds == _KINDS.index(None), outline_kinds, kinds)
    for row in np.flatnonzero((kinds != _KINDS.index(None)) & (frame[:, 0] > 0)).tolist():
        kind, values = _KINDS[kinds[row]], ", ".join(f"{value:g}" for value in boxes[row])
        assert kind is not None
        path = str(annotations.paths[annotations.image[row]])
        x1, y1, x2, y2 = boxes[row].tolist()
        flaws.append(Flaw(kind, path, f"[{values}]", boxes=int(not is_kept[row]), box_xyxy=(x1, y1, x2, y2)))
    areas = annotations.boxes_xywh[:, 2:].prod(axis=1)
    if outlines is not None:
        outlined = outlines.areas()
        areas = np.where(outlined > 0, outlined, areas)
        outlines = outlines.select(rows, has_outline=np.ones(len(rows), np.bool_))
        outlines = outlines if len(outlines.points) else None
    areas = np.where(np.isnan(annotations.areas), areas, annotations.areas)
    return _Cleaned(rows, clipped[rows], outlines, areas[rows])


_KINDS: tuple[FlawKind | None, ...] = (
    None,
    FlawKind.NOT_FINITE,
    FlawKind.NO_AREA,
    FlawKind.SHARES,
    FlawKind.OUTSIDE,
    FlawKind.DUPLICATE_BOX,
    FlawKind.CLIPPED,
    FlawKind.OUTLINE_CLIPPED,
    FlawKind.OUTLINE_ELSEWHERE,
)


def _box_kinds(
    annotations: Annotations, boxes: NDArray[np.float64], clipped: NDArray[np.float64], frame: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the place in `_KINDS` of the first flaw that applies to each box."""
    sides, left = boxes[:, 2:] - boxes[:, :2], clipped[:, 2:] - clipped[:, :2]
    # A box within the first pixel of an image is no object: its coordinates are shares of the image's sides.
    is_share = (boxes >= 0).all(axis=1) & (boxes <= 1).all(axis=1) & (frame > 1).all(axis=1)
    is_share &= ~is_in_shares(annotations)
    conditions = [
        ~np.isfinite(boxes).all(axis=1),
        (sides <= 0).any(axis=1) | (annotations.boxes_xywh[:, 2:] <= 0).any(axis=1),
        is_share,
        (left <= 0).any(axis=1),
        _is_repeated(annotations, boxes),
        np.abs(boxes - clipped).max(axis=1, initial=0.0) > CLIP_TOLERANCE,
    ]
    return np.select(conditions, np.arange(1, len(conditions) + 1), 0)


def _is_repeated(annotations: Annotations, boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether an earlier row of the same image has the same box, label and crowd flag."""
    keys = (*boxes.T, annotations.labels, annotations.crowd, annotations.image)
    order = np.lexsort(keys)  # stable, so that the first of equal rows stays the first
    same = np.ones(max(0, len(order) - 1), np.bool_)
    for key in keys:
        ordered = key[order]
        same &= ordered[1:] == ordered[:-1]
    repeated = np.zeros(len(order), np.bool_)
    repeated[order[1:]] = same
    return repeated


def _clean_outlines(
    outlines: OutlineTable,
    boxes: NDArray[np.float64],
    clipped: NDArray[np.float64],
    frame: NDArray[np.float64],
    is_kept: NDArray[np.bool_],
) -> tuple[OutlineTable, NDArray[np.int64]]:
    """Clip outlines to their images; drop those that fit their box neither before nor after both are clipped."""
    around = outlines.bounds()
    has = ~np.isnan(around[:, 0]) & is_kept
    inside = np.clip(around, 0.0, frame)
    beyond = np.where(has, np.abs(around - inside).max(axis=1, initial=0.0), 0.0)
    fits = _is_near(around, boxes) | ((beyond == 0) & _is_near(around, clipped))
    changed: dict[int, Outline] = {}
    for row in np.flatnonzero(beyond > 0).tolist():
        (outline,), size = outlines.between(row, row + 1), frame[row, :2]
        if beyond[row] > CLIP_TOLERANCE:
            parts = (clip_polygon(part, frame_planes(*size)).astype(np.float32) for part in outline)
            outline = tuple(part for part in parts if len(part))
        else:
            outline = tuple(np.clip(part, 0.0, size).astype(np.float32) for part in outline)
        if outline:
            changed[row] = outline
            fits[row] |= _is_near(bounds(outline)[None], clipped[row][None])[0]
        else:
            fits[row] = False
    kinds = np.where(beyond > CLIP_TOLERANCE, _KINDS.index(FlawKind.OUTLINE_CLIPPED), 0)
    kinds[has & ~fits] = _KINDS.index(FlawKind.OUTLINE_ELSEWHERE)
    return outlines.replace(changed).select(np.arange(len(boxes)), has_outline=has & fits), kinds


def _is_near(around: NDArray[np.floating], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether the box around each outline is about the box of the object."""
    pixels, share = OUTLINE_TOLERANCE
    with np.errstate(invalid="ignore"):
        allowed = np.maximum(pixels, share * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0))
        near: NDArray[np.bool_] = np.abs(around - boxes).max(axis=1, initial=0.0) <= allowed
    return near
