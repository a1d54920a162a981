"""Checks of how splits differ: classes that are absent or far more frequent, and objects that are far larger."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from yolov7.data.health.checks import Finding
from yolov7.data.index import ImageIndex

_RATIO = 2.0  # of the shares of images that show a class
_SIZE_RATIO = 1.5  # of the typical side of an object
_SURE = 4.0  # standard errors; a random division exceeds this once in 16,000 comparisons
_FEWEST = 10  # images of a split, below which nothing can be said about it


def find_absent_classes(splits: Mapping[str, ImageIndex]) -> Iterator[Finding]:
    """Find classes that have no object in a split.

    Args:
        splits: The splits.

    Yields:
        A finding for each class and split.
    """
    for split, index in splits.items():
        counts = np.bincount(index.labels[~index.crowd], minlength=len(index.class_names))
        for label in np.flatnonzero(counts == 0).tolist():
            name = index.class_names[label]
            elsewhere = [f"{_objects_of(other, name):,} in {key}" for key, other in splits.items() if key != split]
            detail = f"{name}: no objects" + (f"; {', '.join(elsewhere)}" if elsewhere else "")
            yield Finding(split, _folder(index), detail)


def find_class_skew(splits: Mapping[str, ImageIndex]) -> Iterator[Finding]:
    """Find classes that a far larger share of the images shows in one split than in another.

    The shares differ by a factor of 2 at least, and by more than 4 standard errors. Images count and not objects,
    because the objects of one image are not independent.

    Args:
        splits: The splits.

    Yields:
        A finding for each class and pair of splits.
    """
    for (first, one), (second, other) in combinations(splits.items(), 2):
        if min(len(one), len(other)) < _FEWEST:
            continue
        shown = _shares(one), _shares(other)
        for name in shown[0].keys() & shown[1].keys():
            low, high = sorted((shown[0][name], shown[1][name]))
            pooled = (shown[0][name] * len(one) + shown[1][name] * len(other)) / (len(one) + len(other))
            error = math.sqrt(pooled * (1 - pooled) * (1 / len(one) + 1 / len(other)))
            if 0 < low * _RATIO < high and high - low > _SURE * error:
                detail = f"{name}: in {shown[0][name]:.1%} of the images of {first}, {shown[1][name]:.1%} of {second}"
                yield Finding(second, _folder(other), detail)


def find_size_skew(splits: Mapping[str, ImageIndex]) -> Iterator[Finding]:
    """Find splits whose objects are far larger than those of another split, relative to their images.

    The typical sides differ by a factor of 1.5 at least, and by more than 4 standard errors of the means of images.

    Args:
        splits: The splits.

    Yields:
        A finding for each pair of splits.
    """
    sizes = {split: _typical_sizes(index) for split, index in splits.items()}
    for (first, one), (second, other) in combinations(sizes.items(), 2):
        if min(len(one), len(other)) < _FEWEST:
            continue
        difference = float(one.mean() - other.mean())
        error = math.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
        if abs(difference) > max(math.log(_SIZE_RATIO), _SURE * error):
            sides = f"{math.exp(one.mean()):.1%} in {first}, {math.exp(other.mean()):.1%} in {second}"
            yield Finding(
                second, _folder(splits[second]), f"typical side of an object as a share of its image: {sides}"
            )


def _objects_of(index: ImageIndex, name: str) -> int:
    label = index.class_names.index(name) if name in index.class_names else -1
    return int((index.labels[~index.crowd] == label).sum())


def _shares(index: ImageIndex) -> dict[str, float]:
    """Return the share of the images that show each class."""
    image = np.repeat(np.arange(len(index)), np.diff(index.box_offsets))[~index.crowd]
    pairs = np.unique(np.stack([image, index.labels[~index.crowd]], axis=1), axis=0)
    counts = np.bincount(pairs[:, 1], minlength=len(index.class_names))
    return {name: int(count) / len(index) for name, count in zip(index.class_names, counts, strict=True)}


def _typical_sizes(index: ImageIndex) -> NDArray[np.float64]:
    """Return for each image with objects the mean logarithm of their sides relative to the image."""
    image = np.repeat(np.arange(len(index)), np.diff(index.box_offsets))[~index.crowd]
    sides = (index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2])[~index.crowd].astype(np.float64)
    whole = index.widths.astype(np.float64) * index.heights
    logs = 0.5 * np.log(np.maximum(sides.prod(axis=1), 1e-6) / whole[image])
    counts = np.bincount(image, minlength=len(index))
    means: NDArray[np.float64] = np.bincount(image, logs, minlength=len(index))[counts > 0] / counts[counts > 0]
    return means


def _folder(index: ImageIndex) -> str:
    """Return the folder of the first image, for findings about a whole split."""
    return str(index.paths[0].parent) if len(index) else ""
