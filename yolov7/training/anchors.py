"""How well anchors fit the boxes of a data set, and anchors that are fitted to the boxes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from yolov7.data.box_sizes import fitted_sides, is_learned
from yolov7.data.index import ImageIndex
from yolov7.settings import AnchorMode
from yolov7.spec.anchor_free import anchor_based_head
from yolov7.spec.block_schema import DetectRow
from yolov7.spec.graph import ModelSpec

WANTED_RECALL = 0.98  # `auto` fits anchors if the spec's have a lower recall
_ENOUGH_BOXES = 20_000  # more boxes take more time but do not change the fit
_ROUNDS, _STARTS = 60, 4  # of k-means

Sides = NDArray[np.float64]


@dataclass(frozen=True)
class AnchorFit:
    """How well anchors fit boxes.

    An anchor fits a box if the ratio of their widths and the ratio of their heights are below the threshold. A box that
    no anchor fits is never learned.

    Attributes:
        recall: The share of boxes that at least one anchor fits; None if there are no boxes.
        anchors_per_box: How many anchors fit a box on average; None if there are no boxes.
    """

    recall: float | None
    anchors_per_box: float | None

    @property
    def is_sufficient(self) -> bool:
        """Whether the recall is high enough to keep the anchors, or unknown."""
        return self.recall is None or self.recall >= WANTED_RECALL

    def __str__(self) -> str:
        """Return both values in words."""
        if self.recall is None or self.anchors_per_box is None:
            return "recall unknown, as there are no boxes"
        return f"recall {self.recall:.4f}, {self.anchors_per_box:.1f} anchors per box"


@dataclass(frozen=True)
class AnchorChoice:
    """The comparison of given anchors with fitted ones.

    Attributes:
        own: How well the given anchors fit.
        fitted: How well the fitted anchors fit.
        fitted_px: The fitted anchors (levels, anchors, 2) in pixels.
        uses_fitted: Whether the fitted anchors are used.
        owner: What has the anchors that are compared with fitted ones: `spec` or `weights`.
    """

    own: AnchorFit
    fitted: AnchorFit
    fitted_px: Sides
    uses_fitted: bool
    owner: str = "spec"

    def __str__(self) -> str:
        """Return the comparison and the choice in words."""
        used = "the fitted anchors are used" if self.uses_fitted else f"those of the {self.owner} are used"
        return f"anchors of the {self.owner}: {self.own}; anchors fitted to the boxes: {self.fitted}; {used}"


def box_sizes(index: ImageIndex, *, image_size: int) -> Sides:
    """Measure the boxes of a split that can be learned.

    Args:
        index: The split.
        image_size: The length in pixels to which the long side of an image is scaled.

    Returns:
        Widths and heights (n, 2) in pixels of the scaled images, without crowd regions and without boxes that are too
        small.
    """
    sizes = fitted_sides(index, image_size=image_size)[~index.crowd]
    kept: Sides = sizes[is_learned(sizes)]
    return kept


def measure_anchors(sizes: Sides, anchors_px: Sides, *, threshold: float) -> AnchorFit:
    """Measure how well anchors fit boxes.

    Args:
        sizes: Widths and heights (n, 2) of the boxes in pixels.
        anchors_px: Widths and heights (..., 2) of the anchors in pixels.
        threshold: The ratio of sides from which on an anchor does not fit.

    Returns:
        The recall and the number of anchors per box.
    """
    if not len(sizes):
        return AnchorFit(recall=None, anchors_per_box=None)
    ratio = sizes[:, None] / anchors_px.reshape(1, -1, 2)  # n k 2
    fits = np.maximum(ratio, 1 / ratio).max(axis=2) < threshold  # the assigner's condition
    return AnchorFit(recall=float(fits.any(axis=1).mean()), anchors_per_box=float(fits.sum(axis=1).mean()))


def fit_anchors(sizes: Sides, *, num_levels: int, per_level: int, threshold: float, seed: int = 0) -> Sides:
    """Fit anchors to boxes by k-means.

    Distances are those between logarithms of sides, because the ratio of sides decides whether an anchor fits. Of
    several starts, the one with the highest recall is used, and among equals the one with the nearest anchors.

    Args:
        sizes: Widths and heights (n, 2) of the boxes in pixels.
        num_levels: The number of levels of the head.
        per_level: The number of anchors per level.
        threshold: The ratio of sides from which on an anchor does not fit.
        seed: The seed of the starts.

    Returns:
        Anchors (levels, per level, 2) in pixels, the smallest on the finest level.
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
    """Compare the spec's anchors with fitted ones and choose between them.

    Args:
        spec: The spec.
        index: The training split.
        image_size: The side of the training images in pixels.
        threshold: The ratio of sides from which on an anchor does not fit.
        mode: `spec` and `fit` choose the spec's and the fitted anchors. `auto` chooses the fitted ones if the recall
            of the spec's is too low and that of the fitted ones is higher.

    Returns:
        The comparison and the choice. If there are too few different boxes to fit anchors to, the spec's are chosen.

    Raises:
        SpecError: The head of the spec is anchor-free.
    """
    sizes = box_sizes(index, image_size=image_size)
    anchors = anchor_based_head(spec).anchors
    own_px = np.array(anchors, np.float64).reshape(len(anchors), -1, 2)
    own = measure_anchors(sizes, own_px, threshold=threshold)
    if len(np.unique(sizes, axis=0)) < own_px[..., 0].size:
        return AnchorChoice(own, own, own_px, uses_fitted=False)
    num_levels, per_level = own_px.shape[:2]
    fitted_px = fit_anchors(sizes, num_levels=num_levels, per_level=per_level, threshold=threshold)
    fitted = measure_anchors(sizes, fitted_px, threshold=threshold)
    is_better = not own.is_sufficient and (fitted.recall or 0.0) > (own.recall or 0.0)
    return AnchorChoice(own, fitted, fitted_px, uses_fitted=mode == "fit" or (mode == "auto" and is_better))


def with_anchors(spec: ModelSpec, anchors_px: Sides) -> ModelSpec:
    """Replace the anchors of a spec.

    Args:
        spec: The spec.
        anchors_px: Anchors (levels, anchors, 2) in pixels.

    Returns:
        A spec that differs in its anchors only.

    Raises:
        SpecError: The head of the spec is anchor-free.
    """
    levels = tuple(tuple(float(side) for side in level.ravel()) for level in anchors_px)
    head = anchor_based_head(spec).model_copy(update={"anchors": levels})
    return ModelSpec.model_validate({**dict(spec), "rows": spec.rows | {spec.head_name: head}})


def differ_in_anchors_only(first: ModelSpec, second: ModelSpec) -> bool:
    """Return whether two specs are equal except for their anchors, which training may have fitted.

    Args:
        first: A spec.
        second: Another spec.
    """
    if not (isinstance(first.head, DetectRow) and isinstance(second.head, DetectRow)):
        return first == second
    head = second.head.model_copy(update={"anchors": first.head.anchors})
    return first == second.model_copy(update={"rows": second.rows | {second.head_name: head}})


def _k_means(points: Sides, count: int, generator: Generator) -> Sides:
    """Find centres (count, 2) of points (n, 2), starting from points that are far apart (k-means++)."""
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
    """Return the larger difference (n, k) of the two sides' logarithms."""
    difference: Sides = np.abs(points[:, None] - centres[None]).max(axis=2)
    return difference


def _squares(points: Sides, centres: Sides) -> Sides:
    """Return squared distances (n, k)."""
    squares: Sides = np.square(points[:, None] - centres[None]).sum(axis=2)
    return squares
