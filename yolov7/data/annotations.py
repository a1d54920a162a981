"""Annotations as the files of a data set state them, in columns, before any image is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import Id, to_xywh
from yolov7.data.outlines import Outline, OutlineTable, tabulate
from yolov7.errors import DataError, shown, suggest


@dataclass(frozen=True)
class AnnotatedImage:
    """The annotations of one image with k objects, before any check.

    Attributes:
        path: The image file.
        boxes_xyxy: (k, 4) float64 absolute pixels, corners.
        labels: (k,) int64.
        crowd: (k,) bool.
        declared_wh: Width and height as stated, pixels; NaN for a value that is not stated.
        outlines: k outlines, or () if none is given.
        image_id: The id of the image in the source; if it is left out, its place in the list from 1.
    """

    path: Path
    boxes_xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    declared_wh: tuple[float, float] = (np.nan, np.nan)
    outlines: tuple[Outline, ...] = ()
    image_id: Id | None = None


@dataclass(frozen=True)
class Annotations:
    """The annotations of n images with m objects, before any check.

    Attributes:
        paths: (n) image files.
        image_ids: (n) ids of the images in the source.
        declared_wh: (n, 2) float64 widths and heights as stated, pixels; NaN for a value that is not stated.
        image: (m,) int64 the image of each object, rising.
        boxes_xywh: (m, 4) float64 x, y, width, height in absolute pixels.
        labels: (m,) int64.
        crowd: (m,) bool.
        areas: (m,) float64 square pixels; NaN for an area that is not stated.
        outlines: The outlines of the m objects; None if there are none.
        in_shares: (m,) bool, whether the box and the outline of each object are shares of the sides of its image
            instead of pixels; None if all are pixels.
    """

    paths: tuple[Path, ...]
    image_ids: tuple[Id, ...]
    declared_wh: NDArray[np.float64]
    image: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    outlines: OutlineTable | None = None
    in_shares: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class AnnotatedSplit:
    """A split as its annotation files state it.

    Attributes:
        annotations: The images and objects.
        class_names: The names of the classes, by label.
        category_ids: The id of each class in the source.
        flaws: The flaws that were found in the annotation files.
    """

    annotations: Annotations
    class_names: tuple[str, ...]
    category_ids: tuple[Id, ...]
    flaws: tuple[Flaw, ...]


def gather_images(images: Sequence[AnnotatedImage]) -> Annotations:
    """Return the annotations of images that are given one by one in columns.

    Args:
        images: The images.
    """
    counts = [len(image.labels) for image in images]
    outlines = [outline for image in images for outline in image.outlines or ((),) * len(image.labels)]
    return Annotations(
        paths=tuple(image.path for image in images),
        image_ids=tuple(k if image.image_id is None else image.image_id for k, image in enumerate(images, start=1)),
        declared_wh=np.array([image.declared_wh for image in images], np.float64).reshape(-1, 2),
        image=np.repeat(np.arange(len(images)), counts),
        boxes_xywh=to_xywh(np.concatenate([np.zeros((0, 4)), *(image.boxes_xyxy for image in images)])),
        labels=np.concatenate([np.zeros(0, np.int64), *(image.labels for image in images)]),
        crowd=np.concatenate([np.zeros(0, np.bool_), *(image.crowd for image in images)]),
        areas=np.full(sum(counts), np.nan),
        outlines=tabulate(outlines),
    )


def new_classes(
    class_names: Sequence[str], classes: Mapping[str, str | None], *, file: str
) -> dict[str, tuple[str, ...]]:
    """Return the classes that remain after some are renamed, merged or left out, each with its old classes.

    Args:
        class_names: The old classes.
        classes: The new name of each class that changes; None for a class that is left out.
        file: Where the old classes are from, for messages.

    Raises:
        DataError: If a class is unknown, or none is left.
    """
    for old in classes:
        if old not in class_names:
            hint = suggest(old, class_names) or f"; it has: {', '.join(class_names[:20])}"
            raise DataError(f"the class {shown(old)} of `classes` is not in {file}{hint}")
    remaining: dict[str, tuple[str, ...]] = {}
    for old in class_names:
        name = classes.get(old, old)
        if name is not None:
            remaining[name] = (*remaining.get(name, ()), old)
    if not remaining:
        raise DataError(f"`classes` leaves out all classes of {file}; keep at least one")
    return remaining


def rename_classes(split: AnnotatedSplit, classes: Mapping[str, str | None], *, file: str) -> AnnotatedSplit:
    """Rename, merge and leave out classes.

    Args:
        split: The annotations of a split.
        classes: As in `new_classes`.
        file: What messages and the remark about objects that were left out name.

    Returns:
        The same images with the new classes, in the order of their first old class. A class keeps the id of that class.

    Raises:
        DataError: If a class is unknown, or none is left.
    """
    if not classes:
        return split
    remaining = new_classes(split.class_names, classes, file=file)
    label_of = {old: label for label, olds in enumerate(remaining.values()) for old in olds}
    labels = np.array([label_of.get(name, -1) for name in split.class_names], np.int64)[split.annotations.labels]
    id_of = dict(zip(split.class_names, split.category_ids, strict=True))
    return AnnotatedSplit(
        annotations=select_objects(replace(split.annotations, labels=labels), np.flatnonzero(labels >= 0)),
        class_names=tuple(remaining),
        category_ids=tuple(id_of[olds[0]] for olds in remaining.values()),
        flaws=(*split.flaws, *_left_out(split, labels < 0, FlawKind.OTHER_CLASS, file)),
    )


def match_classes(split: AnnotatedSplit, class_names: tuple[str, ...], *, file: str) -> AnnotatedSplit:
    """Give the classes of a split other places.

    Args:
        split: The annotations of a split.
        class_names: The classes of the result. Objects of other classes are left out and counted.
        file: What flaws name.

    Returns:
        The same images. A class that the split does not have gets an id that no other class has.
    """
    if split.class_names == class_names:
        return split
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of.get(name, -1) for name in split.class_names], np.int64)[split.annotations.labels]
    id_of = dict(zip(split.class_names, split.category_ids, strict=True))
    free = 1 + max((given for given in id_of.values() if isinstance(given, int)), default=0)
    return AnnotatedSplit(
        annotations=select_objects(replace(split.annotations, labels=labels), np.flatnonzero(labels >= 0)),
        class_names=class_names,
        category_ids=tuple(id_of.get(name, free + label) for name, label in label_of.items()),
        flaws=(*split.flaws, *_left_out(split, labels < 0, FlawKind.UNKNOWN_CATEGORY, file)),
    )


def select_objects(annotations: Annotations, rows: NDArray[np.int64]) -> Annotations:
    """Return the same images with some of their objects.

    Args:
        annotations: The annotations.
        rows: (k,) the objects to keep, in the order of the result.
    """
    if np.array_equal(rows, np.arange(len(annotations.labels))):
        return annotations
    everything = np.ones(len(rows), np.bool_)
    return replace(
        annotations,
        image=annotations.image[rows],
        boxes_xywh=annotations.boxes_xywh[rows],
        labels=annotations.labels[rows],
        crowd=annotations.crowd[rows],
        areas=annotations.areas[rows],
        outlines=annotations.outlines and annotations.outlines.select(rows, has_outline=everything),
        in_shares=None if annotations.in_shares is None else annotations.in_shares[rows],
    )


def join_splits(splits: Mapping[str, AnnotatedSplit], *, class_names: tuple[str, ...]) -> AnnotatedSplit:
    """Join the annotations of several sources.

    Args:
        splits: The annotations of each source by its name. The id of an image becomes `NAME:ID`.
        class_names: The classes of all sources; a source may lack some of them.

    Returns:
        All images. The category ids are the places of the classes, counted from 1.
    """
    parts = [(name, split, split.annotations) for name, split in splits.items()]
    offsets = np.cumsum([0, *(len(part.paths) for _, _, part in parts)])
    label_of = {name: label for label, name in enumerate(class_names)}
    relabel = [np.array([label_of[name] for name in split.class_names], np.int64) for _, split, _ in parts]
    annotations = Annotations(
        paths=tuple(path for _, _, part in parts for path in part.paths),
        image_ids=tuple(f"{name}:{given}" for name, _, part in parts for given in part.image_ids),
        declared_wh=np.concatenate([part.declared_wh for _, _, part in parts]),
        image=np.concatenate([part.image + offset for (_, _, part), offset in zip(parts, offsets, strict=False)]),
        boxes_xywh=np.concatenate([part.boxes_xywh for _, _, part in parts]),
        labels=np.concatenate([new[part.labels] for (_, _, part), new in zip(parts, relabel, strict=True)]),
        crowd=np.concatenate([part.crowd for _, _, part in parts]),
        areas=np.concatenate([part.areas for _, _, part in parts]),
        outlines=_join_outlines([part for _, _, part in parts]),
        in_shares=np.concatenate([is_in_shares(part) for _, _, part in parts]),
    )
    ids = tuple(range(1, len(class_names) + 1))
    return AnnotatedSplit(annotations, class_names, ids, tuple(flaw for _, split, _ in parts for flaw in split.flaws))


def is_in_shares(annotations: Annotations) -> NDArray[np.bool_]:
    """Return for each object (m,) whether its box and outline are shares of the sides of its image."""
    plain = np.zeros(len(annotations.labels), np.bool_)
    return plain if annotations.in_shares is None else annotations.in_shares


def _left_out(split: AnnotatedSplit, is_out: NDArray[np.bool_], kind: FlawKind, file: str) -> list[Flaw]:
    """Return one flaw for each class with objects that are left out."""
    counts = np.bincount(split.annotations.labels[is_out], minlength=len(split.class_names)).tolist()
    named = zip(split.class_names, counts, strict=True)
    return [Flaw(kind, file, f"{count:,} of class {shown(name)}", boxes=count) for name, count in named if count]


def _join_outlines(parts: Sequence[Annotations]) -> OutlineTable | None:
    given = [part.outlines for part in parts if part.outlines is not None]
    if not given:
        return None
    counts = [
        np.zeros(len(part.labels), np.int64) if part.outlines is None else np.diff(part.outlines.object_offsets)
        for part in parts
    ]
    return OutlineTable(
        points=np.concatenate([table.points for table in given]),
        part_offsets=np.cumsum([0, *np.concatenate([np.diff(table.part_offsets) for table in given])]),
        object_offsets=np.cumsum([0, *np.concatenate(counts)]),
    )
