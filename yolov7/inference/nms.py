"""From decoded predictions to detections: score thresholds and greedy non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from yolov7.boxes import cxcywh_to_xyxy, pairwise_iou
from yolov7.settings import NmsSettings
from yolov7.structures import Detections
from yolov7.system.shapes import Bool, Float, Int

_BLOCK = 512  # candidates that are compared with each other at once
_FEW = 1024  # up to this limit, all kept boxes are compared with each new block, whatever their group
REFERENCE_STEP = 4096.0  # pixels by which the reference implementation shifts the boxes of successive classes
REFERENCE_EXTENT = 2.0**19  # up to this coordinate, float32 resolves 1/32 pixel


@torch.no_grad()
def non_max_suppression(
    decoded: Float[Tensor, "b n channels"],
    *,
    settings: NmsSettings,
    classes: Sequence[int] | None = None,
    suppresses: bool = True,
) -> list[Detections]:
    """Return the detections of every image, in the frame of the decoded boxes.

    The score of a candidate is its objectness times its class probability, or its objectness alone if there is only
    one class.

    Args:
        decoded: Predictions (batch, boxes, 5 + classes): cx, cy, w, h in pixels, objectness and class probabilities.
        settings: Thresholds and limits.
        classes: Labels to keep; None keeps all of them.
        suppresses: Whether overlapping detections are suppressed. Otherwise only the thresholds and limits apply, for
            heads with one prediction of each object.

    Returns:
        One `Detections` for each image, by descending score.
    """
    return [_detect(rows, settings=settings, classes=classes, suppresses=suppresses) for rows in decoded]


def _detect(
    rows: Float[Tensor, "n channels"], *, settings: NmsSettings, classes: Sequence[int] | None, suppresses: bool
) -> Detections:
    candidate, labels, scores = _score(rows[rows[:, 4] > settings.confidence], settings=settings)
    if classes is not None:
        wanted = torch.isin(labels, torch.tensor(list(classes), device=labels.device))
        candidate, labels, scores = candidate[wanted], labels[wanted], scores[wanted]
    limit = settings.max_candidates if suppresses else min(settings.max_candidates, settings.max_detections)
    order = best_first(scores, limit=limit)
    boxes, labels, scores = cxcywh_to_xyxy(candidate[order]), labels[order], scores[order]
    if not suppresses:
        return Detections(boxes, scores, labels)
    groups = torch.zeros_like(labels) if settings.agnostic else labels
    keep = suppress(boxes, groups=groups, threshold=settings.iou, limit=settings.max_detections)
    return Detections(boxes[keep], scores[keep], labels[keep])


def _score(rows: Tensor, *, settings: NmsSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes cxcywh (c, 4), labels (c,) and scores (c,) above the confidence: of all classes or of the best."""
    rows = rows.float()
    boxes, objectness, classes = rows[:, :4], rows[:, 4], rows[:, 5:]
    if classes.shape[1] == 1:
        return boxes, torch.zeros_like(objectness, dtype=torch.int64), objectness
    scores = classes * objectness[:, None]
    if settings.multi_label:
        row, label = (scores > settings.confidence).nonzero(as_tuple=True)
        return boxes[row], label, scores[row, label]
    best, label = scores.max(1)
    above = best > settings.confidence
    return boxes[above], label[above], best[above]


def best_first(scores: Float[Tensor, " c"], *, limit: int) -> Int[Tensor, " k"]:
    """Return the indices of the `limit` highest scores in descending order; equal scores keep their order.

    Args:
        scores: Scores (c,).
        limit: Largest number of indices to return.

    Returns:
        Indices (min(c, limit),) int64.
    """
    if len(scores) <= limit:
        return torch.sort(scores, descending=True, stable=True).indices
    enough = (scores >= scores.topk(limit).values[-1]).nonzero()[:, 0]
    return enough[torch.sort(scores[enough], descending=True, stable=True).indices[:limit]]


def suppress(
    boxes_xyxy: Float[Tensor, "c 4"], *, groups: Int[Tensor, " c"], threshold: float, limit: int
) -> Int[Tensor, " k"]:
    """Return the boxes that greedy non-maximum suppression keeps.

    A box is removed if its IoU with a kept box of the same group that precedes it is above the threshold. Boxes of
    different groups never suppress each other, whatever their coordinates and however many groups there are.

    Args:
        boxes_xyxy: Corners (c, 4) in pixels, ordered by descending score.
        groups: Group of each box (c,), its class for instance; int64, not negative.
        threshold: Largest IoU at which both boxes are kept.
        limit: Largest number of boxes to keep.

    Returns:
        Indices (k,) int64 of the kept boxes in ascending order.
    """
    if not len(boxes_xyxy):
        return groups
    boxes = _round_as_reference(boxes_xyxy, groups)
    if limit <= _FEW:
        return _suppress_in_blocks(boxes, groups, threshold=threshold, limit=limit)
    return _suppress_by_group(boxes, groups, threshold=threshold)[:limit]


def _round_as_reference(boxes_xyxy: Float[Tensor, "c 4"], groups: Int[Tensor, " c"]) -> Float[Tensor, "c 4"]:
    """Shift boxes by the reference's 4096 pixels per class while float32 resolves the result to 1/32 pixel.

    The shift separates nothing here, because group numbers are compared as well. But its rounding decides which box is
    kept where an IoU almost equals the threshold, and detections must be those of the reference up to about 120
    classes. Boxes of later classes and boxes with larger coordinates are not shifted, because the rounding would change
    their IoUs visibly.
    """
    shift = groups * REFERENCE_STEP
    is_fine = shift + boxes_xyxy.abs().max() < REFERENCE_EXTENT
    return boxes_xyxy + (shift * is_fine)[:, None]


def _suppress_by_group(
    boxes_xyxy: Float[Tensor, "c 4"], groups: Int[Tensor, " c"], *, threshold: float
) -> Int[Tensor, " k"]:
    """Suppress each group on its own, without a limit. This is faster if many boxes are kept."""
    order = torch.argsort(groups, stable=True)
    sizes = groups.unique(return_counts=True)[1]  # type: ignore[no-untyped-call]
    members = torch.split(order, sizes.tolist())
    kept = [
        group[_suppress_in_blocks(boxes_xyxy[group], groups[group], threshold=threshold, limit=len(group))]
        for group in members
    ]
    return torch.cat(kept).sort().values


def _suppress_in_blocks(
    boxes_xyxy: Float[Tensor, "c 4"], groups: Int[Tensor, " c"], *, threshold: float, limit: int
) -> Int[Tensor, " k"]:
    """Suppress greedily, block after block, until `limit` boxes are kept."""

    def overlap(first: Tensor, second: Tensor) -> Bool[Tensor, "f s"]:
        high = pairwise_iou(boxes_xyxy[first], boxes_xyxy[second]) > threshold
        return high.logical_and_(groups[first][:, None] == groups[second])

    kept = torch.zeros(0, dtype=torch.int64, device=boxes_xyxy.device)
    for start in range(0, len(boxes_xyxy), _BLOCK):
        block = torch.arange(start, min(start + _BLOCK, len(boxes_xyxy)), device=kept.device)
        if len(kept):
            block = block[~overlap(kept, block).any(0)]
        kept = torch.cat((kept, block[_survivors(overlap(block, block).triu_(1))]))
        if len(kept) >= limit:
            break
    return kept[:limit]


def _survivors(beats: Bool[Tensor, "n n"]) -> Bool[Tensor, " n"]:
    """Return which boxes greedy suppression keeps if a kept box i removes every later box j with beats[i, j].

    All boxes are kept at first. Each round settles at least the next box of every chain of overlaps. The fixed point is
    therefore reached after at most as many rounds as the longest chain has boxes, and it equals the greedy result.
    """
    weights = beats.float()
    stays = torch.ones(len(beats), device=beats.device)
    while True:
        after = (stays @ weights == 0).float()
        if torch.equal(after, stays):
            return after.bool()
        stays = after
