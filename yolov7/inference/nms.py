"""From decoded predictions to detections: thresholds and greedy non-maximum suppression."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from yolov7.boxes import cxcywh_to_xyxy, pairwise_iou
from yolov7.settings import NmsSettings
from yolov7.structures import Detections

_BLOCK = 512  # candidates that are compared with each other at once
_FEW = 1024  # boxes that may stay and be compared with whatever comes after, whichever its class
_GROUP_STEP = 4096.0  # pixels between the classes


@torch.no_grad()
def non_max_suppression(
    decoded: Float[Tensor, "b n channels"], *, settings: NmsSettings, classes: Sequence[int] | None = None
) -> list[Detections]:
    """The detections of every image, in the frame of the decoded boxes.

    A row holds cx, cy, w, h, objectness and the classes' probabilities. The score is objectness times class, or
    objectness alone where there is one class. `classes` keeps only those labels.
    """
    return [_detect(rows, settings=settings, classes=classes) for rows in decoded]


def _detect(rows: Float[Tensor, "n channels"], *, settings: NmsSettings, classes: Sequence[int] | None) -> Detections:
    candidate, labels, scores = _score(rows[rows[:, 4] > settings.confidence], settings=settings)
    if classes is not None:
        wanted = torch.isin(labels, torch.tensor(list(classes), device=labels.device))
        candidate, labels, scores = candidate[wanted], labels[wanted], scores[wanted]
    order = best_first(scores, limit=settings.max_candidates)
    boxes, labels, scores = cxcywh_to_xyxy(candidate[order]), labels[order], scores[order]
    groups = torch.zeros_like(labels) if settings.agnostic else labels
    keep = suppress(boxes, groups=groups, threshold=settings.iou, limit=settings.max_detections)
    return Detections(boxes[keep], scores[keep], labels[keep])


def _score(rows: Tensor, *, settings: NmsSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes cxcywh (c, 4), labels (c,) and scores (c,) above the confidence: of every class, or of the best one."""
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
    """The order by descending score, equal ones as they come; the first `limit`."""
    if len(scores) <= limit:
        return torch.sort(scores, descending=True, stable=True).indices
    enough = (scores >= scores.topk(limit).values[-1]).nonzero()[:, 0]
    return enough[torch.sort(scores[enough], descending=True, stable=True).indices[:limit]]


def suppress(
    boxes_xyxy: Float[Tensor, "c 4"], *, groups: Int[Tensor, " c"], threshold: float, limit: int
) -> Int[Tensor, " k"]:
    """Greedy suppression of boxes that come best first: the first `limit` that stay.

    A box goes if its IoU with one that stays, of the same group, is above the threshold.
    """
    if not len(boxes_xyxy):
        return groups
    boxes = _apart(boxes_xyxy, groups)
    kernel = _compiled_kernel()
    if kernel is not None:
        ranks = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
        return kernel(boxes, ranks, threshold)[:limit]
    if limit <= _FEW:
        return _suppress_in_blocks(boxes, threshold=threshold, limit=limit)
    return _suppress_by_group(boxes, groups=groups, threshold=threshold)[:limit]


def _apart(boxes_xyxy: Float[Tensor, "c 4"], groups: Int[Tensor, " c"]) -> Float[Tensor, "c 4"]:
    """The boxes, each group moved to where it meets no other.

    The step is the reference's, whose rounding in float32 decides IoUs at the very threshold. Boxes that do not fit
    in it, of larger images, are moved as far as they need, in float64.
    """
    span = boxes_xyxy.max() - boxes_xyxy.min()
    if span < _GROUP_STEP:
        return boxes_xyxy + groups[:, None] * _GROUP_STEP
    return boxes_xyxy.double() + groups[:, None] * (span.double() + 1)


def _suppress_by_group(
    boxes_xyxy: Float[Tensor, "c 4"], *, groups: Int[Tensor, " c"], threshold: float
) -> Int[Tensor, " k"]:
    """All boxes that stay: where so many may stay that comparing each with the same group's only pays off."""
    order = torch.argsort(groups, stable=True)
    members = torch.split(order, groups.bincount().tolist())
    kept = [group[_suppress_in_blocks(boxes_xyxy[group], threshold=threshold, limit=len(group))] for group in members]
    return torch.cat(kept).sort().values


def _suppress_in_blocks(boxes_xyxy: Float[Tensor, "c 4"], *, threshold: float, limit: int) -> Int[Tensor, " k"]:
    """Greedy suppression, block after block, until `limit` boxes stay."""
    kept = torch.zeros(0, dtype=torch.int64, device=boxes_xyxy.device)
    for start in range(0, len(boxes_xyxy), _BLOCK):
        block = torch.arange(start, min(start + _BLOCK, len(boxes_xyxy)), device=kept.device)
        if len(kept):
            block = block[~(pairwise_iou(boxes_xyxy[kept], boxes_xyxy[block]) > threshold).any(0)]
        beats = (pairwise_iou(boxes_xyxy[block], boxes_xyxy[block]) > threshold).triu_(1)
        kept = torch.cat((kept, block[_survivors(beats)]))
        if len(kept) >= limit:
            break
    return kept[:limit]


def _survivors(beats: Bool[Tensor, "n n"]) -> Bool[Tensor, " n"]:
    """What greedy suppression leaves, if box i, while it stays, removes every later j with beats[i, j].

    Starting from all, each round settles at least the next box of every chain of overlaps, so the fixed point is
    reached after as many rounds as the longest chain has boxes, and it is the greedy result.
    """
    weights = beats.float()
    stays = torch.ones(len(beats), device=beats.device)
    while True:
        after = (stays @ weights == 0).float()
        if torch.equal(after, stays):
            return after.bool()
        stays = after


@functools.cache
def _compiled_kernel() -> Callable[[Tensor, Tensor, float], Tensor] | None:
    """torchvision's kernel, where torchvision is installed and fits this torch."""
    try:
        kernel: Callable[[Tensor, Tensor, float], Tensor] = importlib.import_module("torchvision.ops").nms
        kernel(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError):
        return None
    return kernel
