"""What a cleaned copy does with the boxes of one image."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolov7.data.build_index import CLIP_TOLERANCE
from yolov7.data.flaws import FlawKind
from yolov7.data.health.box_checks import overlapping_pairs
from yolov7.data.health.checks import BOX_OVERLAP, CHECK_OF_FLAW

_NOT_FINITE, _NO_AREA, _SHARES, _OUTSIDE, _TWICE, _CLIPPED = (
    CHECK_OF_FLAW[kind].id
    for kind in (
        FlawKind.NOT_FINITE,
        FlawKind.NO_AREA,
        FlawKind.SHARES,
        FlawKind.OUTSIDE,
        FlawKind.DUPLICATE_BOX,
        FlawKind.CLIPPED,
    )
)


@dataclass(frozen=True)
class FixedBox:
    """What becomes of a box.

    Attributes:
        check: The id of the check whose finding is corrected; None if the box stays as it is.
        box_xyxy: (4,) the new box, corners in pixels; None if it is removed.
    """

    check: str | None
    box_xyxy: NDArray[np.float64] | None


def fix_boxes(
    boxes_xyxy: NDArray[np.float64],
    labels: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    size: tuple[int, int],
    *,
    wanted: Container[str],
    in_shares: bool = False,
) -> list[FixedBox]:
    """Correct the boxes of an image: convert, clip or remove those with flaws.

    Args:
        boxes_xyxy: (k, 4) float64 corners in pixels, as stated.
        labels: (k,) classes.
        crowd: (k,) whether a box is a crowd region.
        size: Width and height of the image in pixels.
        wanted: The ids of the checks whose findings are corrected.
        in_shares: Whether the file states shares, so that small coordinates are no mistake.

    Returns:
        What becomes of each box.
    """
    seen: set[tuple[object, ...]] = set()
    fixed = [
        _fix(box, (int(label), bool(many)), size, seen, in_shares=in_shares)
        for box, label, many in zip(boxes_xyxy, labels, crowd, strict=True)
    ]
    fixed = [
        one if one.check is None or one.check in wanted else FixedBox(None, box)
        for one, box in zip(fixed, boxes_xyxy, strict=True)
    ]
    return _without_overlaps(fixed, labels, crowd) if BOX_OVERLAP.id in wanted else fixed


def _fix(
    box: NDArray[np.float64],
    kind: tuple[int, bool],
    size: tuple[int, int],
    seen: set[tuple[object, ...]],
    *,
    in_shares: bool,
) -> FixedBox:
    """Return what becomes of a box, by the first flaw that applies."""
    if not np.isfinite(box).all():
        return FixedBox(_NOT_FINITE, None)
    if (box[2:] <= box[:2]).any():
        return FixedBox(_NO_AREA, None)
    key = (*box.tolist(), *kind)
    is_repeated = key in seen
    seen.add(key)
    frame = np.tile(np.array(size, np.float64), 2)
    if not in_shares and box.min() >= 0 and box.max() <= 1 and min(size) > 1:
        return FixedBox(_TWICE, None) if is_repeated else FixedBox(_SHARES, box * frame)
    clipped = np.clip(box, 0.0, frame)
    if (clipped[2:] <= clipped[:2]).any():
        return FixedBox(_OUTSIDE, None)
    if is_repeated:
        return FixedBox(_TWICE, None)
    if np.abs(box - clipped).max() > CLIP_TOLERANCE:
        return FixedBox(_CLIPPED, clipped)
    return FixedBox(None, box)


def _without_overlaps(fixed: list[FixedBox], labels: NDArray[np.int64], crowd: NDArray[np.bool_]) -> list[FixedBox]:
    """Remove each box that covers almost the same pixels as an earlier one of its class that stays."""
    places = [
        i
        for i, one in enumerate(fixed)
        if one.box_xyxy is not None and np.isfinite(one.box_xyxy).all() and not crowd[i]
    ]
    if len(places) < 2:
        return fixed
    boxes = np.stack([box for i in places if (box := fixed[i].box_xyxy) is not None])
    result = list(fixed)
    for one, other in overlapping_pairs(boxes, labels[places])[0].tolist():
        if result[places[one]].box_xyxy is not None:
            result[places[other]] = FixedBox(BOX_OVERLAP.id, None)
    return result
