"""Anchors and the data: how many boxes they can be assigned to, and anchors fitted to boxes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from yolov7.data.index import ImageIndex
from yolov7.settings import AnchorMode
from yolov7.spec.graph import ModelSpec

WANTED_RECALL = 0.98  # below it anchors are fitted, if that is left to the program
SMALLEST_SIDE = 2.0  # pixels: smaller boxes are dropped by augmentation
_ENOUGH_BOXES = 20_000  # to fit to; more change nothing but the time
_ROUNDS, _STARTS = 60, 4

Sides = NDArray[np.float64]


@dataclass(frozen=True)
class AnchorFit:
    """How anchors suit boxes: the share of boxes that any anchor fits, and how many anchors fit a box on average.

    An anchor fits a box if no side of the two differs by the threshold or more; a box that none fits is never learned.
    """

    recall: float
    anchors_per_box: float

    def __str__(self) -> str:
        return f"recall {self.recall:.4f}, {self.anchors_per_box:.1f} anchors a box"


@dataclass(frozen=True)
class AnchorChoice:
    """The spec's own anchors, and fitted ones (levels, anchors, 2) in pixels; which of the two are used."""

    own: AnchorFit
    fitted: AnchorFit
    fitted_px: Sides
    uses_fitted: bool

    def __str__(self) -> str:
        used = "the fitted ones are used" if self.uses_fitted else "the spec's are used"
        return f"anchors of the spec: {self.own}; fitted to the boxes: {self.fitted}; {used}"


def box_sizes(index: ImageIndex, *, image_size: int) -> Sides:
    """Width and height (n, 2) of a split's boxes in pixels of training images, whose long side is `image_size`.

    Without crowd regions and what is too small to be learned.
    """
    scale = image_size / np.maximum(index.widths, index.heights).astype(np.float64)
    per_box = np.repeat(scale, np.diff(index.box_offsets))
    sizes = (index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]).astype(np.float64) * per_box[:, None]
    kept: Sides = sizes[~index.crowd & (sizes >= SMALLEST_SIDE).all(axis=1)]
    return kept


def measure_anchors(sizes: Sides, anchors_px: Sides, *, threshold: float) -> AnchorFit:
    """How anchors (..., 2) suit boxes (n, 2)."""
    if not len(sizes):
        return AnchorFit(recall=1.0, anchors_per_box=0.0)
    ratio = sizes[:, None] / anchors_px.reshape(1, -1, 2)  # n k 2
    fits = np.maximum(ratio, 1 / ratio).max(axis=2) < threshold  # as the assigner asks
    return AnchorFit(recall=float(fits.any(axis=1).mean()), anchors_per_box=float(fits.sum(axis=1).mean()))


def fit_anchors(sizes: Sides, *, num_levels: int, per_level: int, threshold: float, seed: int = 0) -> Sides:
    """Anchors (levels, per level, 2) from the boxes (n, 2) by k-means, the smallest on the finest level.

    Distances are those of the sides' logarithms, since what decides whether an anchor fits is the ratio of sides. Of
    several starts the one is taken with the highest recall, then with the nearest anchors.
    """
    count = num_levels * per_level
    generator = default_rng(seed)
    if len(sizes) > _ENOUGH_BOXES:
        sizes = generator.choice(sizes, _ENOUGH_BOXES, replace=False)
    points = np.log(sizes)
    found = [_k_means(points, count, generator) for _ in range(_STARTS)]
    best = min(found, key=lambda centres: _misfit(points, centres, threshold))
    anchors = np.exp(best).round(1)
    by_area: Sides = anchors[np.argsort(anchors.prod(axis=1), kind="stable")]
    return by_area.reshape(num_levels, per_level, 2)


def choose_anchors(
    spec: ModelSpec, index: ImageIndex, *, image_size: int, threshold: float, mode: AnchorMode
) -> AnchorChoice:
    """Compares the spec's anchors with fitted ones; `auto` takes these where the spec's miss too many boxes.

    Fitted anchors that miss more boxes than the spec's are not taken, unless `mode` is `fit`.
    """
    sizes = box_sizes(index, image_size=image_size)
    own_px = np.array(spec.head.anchors, np.float64).reshape(len(spec.head.anchors), -1, 2)
    own = measure_anchors(sizes, own_px, threshold=threshold)
    if len(np.unique(sizes, axis=0)) < own_px[..., 0].size:  # too few boxes to say anything
        return AnchorChoice(own, own, own_px, uses_fitted=False)
    num_levels, per_level = own_px.shape[:2]
    fitted_px = fit_anchors(sizes, num_levels=num_levels, per_level=per_level, threshold=threshold)
    fitted = measure_anchors(sizes, fitted_px, threshold=threshold)
    better = own.recall < WANTED_RECALL and fitted.recall > own.recall
    return AnchorChoice(own, fitted, fitted_px, uses_fitted=mode == "fit" or (mode == "auto" and better))


def with_anchors(spec: ModelSpec, anchors_px: Sides) -> ModelSpec:
    """The spec with other anchors (levels, anchors, 2)."""
    levels = tuple(tuple(float(side) for side in level.ravel()) for level in anchors_px)
    head = spec.head.model_copy(update={"anchors": levels})
    return ModelSpec.model_validate({**dict(spec), "rows": spec.rows | {spec.head_name: head}})


def differ_in_anchors_only(first: ModelSpec, second: ModelSpec) -> bool:
    """Whether two specs are the same but for their anchors, which training may have fitted."""
    head = second.head.model_copy(update={"anchors": first.head.anchors})
    return first == second.model_copy(update={"rows": second.rows | {second.head_name: head}})


def _k_means(points: Sides, count: int, generator: Generator) -> Sides:
    """Centres (count, 2) of points (n, 2), begun at points that lie far apart (k-means++)."""
    centres: Sides = points[generator.integers(len(points))][None]
    while len(centres) < count:
        distance = _squares(points, centres).min(axis=1)
        total = distance.sum()
        chosen = generator.choice(len(points), p=distance / total) if total else generator.integers(len(points))
        centres = np.concatenate([centres, points[chosen][None]])
    for _ in range(_ROUNDS):
        nearest = _squares(points, centres).argmin(axis=1)
        sizes = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, points[:, axis], minlength=count) for axis in range(2)], axis=1)
        moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
        if np.allclose(moved, centres, atol=1e-6):
            break
        centres = moved
    return centres


def _misfit(points: Sides, centres: Sides, threshold: float) -> tuple[float, float]:
    nearest = _distances(points, centres).min(axis=1)
    return float((nearest >= np.log(threshold)).mean()), float(nearest.mean())


def _distances(points: Sides, centres: Sides) -> Sides:
    """The largest difference of a side's logarithm, (n, k)."""
    difference: Sides = np.abs(points[:, None] - centres[None]).max(axis=2)
    return difference


def _squares(points: Sides, centres: Sides) -> Sides:
    """Squared distances (n, k)."""
    squares: Sides = np.square(points[:, None] - centres[None]).sum(axis=2)
    return squares
