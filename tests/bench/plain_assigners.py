"""SimOTA and task-aligned assignment in their common form: image by image, every object with every cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, one_hot

from yolov7.boxes import box_similarity, cxcywh_to_xyxy, pairwise_iou
from yolov7.structures import Targets

Positive = tuple[int, int, int]  # image, cell, object of the batch


@torch.no_grad()
def loop_simota(maps: Sequence[Tensor], targets: Targets, strides: Sequence[int], *, rule: str) -> list[Positive]:
    """Return the positives of a batch by YOLOX's rule r25 or r15, cells counted over all levels."""
    places, stride, objects = _geometry(maps, targets, strides)
    radius = (2.5 if rule == "r25" else 1.5) * stride
    rows = torch.cat([m.flatten(1, 3) for m in maps], dim=1).float()
    found: list[Positive] = []
    for image in range(rows.shape[0]):
        mine = (targets.image == image).nonzero()[:, 0]
        if not len(mine):
            continue
        boxes = objects[mine]
        middle = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
        near = ((places - middle).abs() < radius[:, None]).all(-1)
        in_box = ((places > boxes[:, None, :2]) & (places < boxes[:, None, 2:])).all(-1)
        allowed, inner = (near | in_box, near & in_box) if rule == "r25" else (near, near)
        cells = allowed.any(0).nonzero()[:, 0]
        if not len(cells):
            continue
        logits = rows[image, cells]
        size = logits[:, 2:4].exp() * stride[cells, None]
        centre = logits[:, :2] * stride[cells, None] + places[cells] - stride[cells, None] / 2
        iou = pairwise_iou(boxes, cxcywh_to_xyxy(torch.cat((centre, size), 1)))
        hot = one_hot(targets.label[mine], logits.shape[1] - 5).float()[:, None].repeat(1, len(cells), 1)
        y = (logits[:, 5:].sigmoid() * logits[:, 4:5].sigmoid()).sqrt()[None].repeat(len(mine), 1, 1)
        cost = binary_cross_entropy(y, hot, reduction="none").sum(-1).double() - 3 * torch.log(iou.double() + 1e-8)
        cost = cost + 1e5 * ~inner[:, cells]  # in float64, so that the penalty does not round the costs
        wanted = iou.topk(min(10, len(cells)), dim=1).values.sum(1).int().clamp(min=1)
        taken = torch.zeros_like(cost)
        for g in range(len(mine)):
            taken[g, cost[g].topk(int(wanted[g]), largest=False).indices] = 1
        found += _settle(taken, cost, image, cells, mine)
    return sorted(found)


@torch.no_grad()
def loop_tal(
    maps: Sequence[Tensor],
    targets: Targets,
    strides: Sequence[int],
    *,
    bins: int,
    top: int,
    alpha: float,
    beta: float,
    ciou: bool,
) -> dict[Positive, float]:
    """Return the scores of the positives of a batch, cells counted over all levels."""
    places, stride, objects = _geometry(maps, targets, strides)
    rows = torch.cat([m.flatten(1, 3) for m in maps], dim=1).float()
    sides = rows[..., : 4 * bins].unflatten(-1, (4, bins)).softmax(-1) @ torch.arange(float(bins))
    sides = sides * stride[:, None]
    predicted = torch.cat((places - sides[..., :2], places + sides[..., 2:]), dim=-1)
    scores: dict[Positive, float] = {}
    for image in range(rows.shape[0]):
        mine = (targets.image == image).nonzero()[:, 0]
        if not len(mine):
            continue
        boxes = objects[mine]
        in_box = ((places > boxes[:, None, :2]) & (places < boxes[:, None, 2:])).all(-1)
        overlap = _pairwise_ciou(boxes, predicted[image]) if ciou else pairwise_iou(boxes, predicted[image])
        probability = rows[image, :, 4 * bins :].sigmoid()[:, targets.label[mine]].T
        alignment = probability**alpha * overlap**beta
        best = (alignment * in_box).topk(min(top, len(places)), dim=1).indices
        taken = torch.zeros_like(alignment).scatter_(1, best, 1.0) * in_box * (alignment > 0)
        owned = torch.zeros_like(alignment)
        for _, cell, target in _settle(taken, -overlap, image, torch.arange(len(places)), torch.arange(len(mine))):
            owned[target, cell] = 1
        top_alignment, top_overlap = (alignment * owned).amax(1), (overlap * owned).amax(1)
        score = alignment / (top_alignment[:, None] + 1e-9) * top_overlap[:, None] * owned
        for g, cell in score.nonzero().tolist():
            scores[image, cell, int(mine[g])] = float(score[g, cell])
    return scores


def _geometry(maps: Sequence[Tensor], targets: Targets, strides: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the centres (N, 2) and strides (N,) of all cells, and the objects (n, 4) xyxy, in pixels."""
    centres, steps = [], []
    for m, stride in zip(maps, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(m.shape[2]), torch.arange(m.shape[3]), indexing="ij")
        centres.append((torch.stack((x, y), -1).view(-1, 2) + 0.5) * stride)
        steps.append(torch.full((x.numel(),), float(stride)))
    size = torch.tensor([maps[0].shape[3], maps[0].shape[2]] * 2) * strides[0]
    return torch.cat(centres), torch.cat(steps), cxcywh_to_xyxy(targets.boxes_cxcywh * size)


def _settle(taken: Tensor, cost: Tensor, image: int, cells: Tensor, mine: Tensor) -> list[Positive]:
    conflict = taken.sum(0) > 1
    taken[:, conflict] = 0
    taken[cost[:, conflict].argmin(0), conflict] = 1
    positive = (taken.sum(0) > 0).nonzero()[:, 0]
    owner = mine[taken[:, positive].argmax(0)]
    return [(image, c, t) for c, t in zip(cells[positive].tolist(), owner.tolist(), strict=True)]


def _pairwise_ciou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    a, b = (torch.cat(((x[:, :2] + x[:, 2:]) / 2, x[:, 2:] - x[:, :2]), 1) for x in (a_xyxy, b_xyxy))
    shape = (len(a), len(b))
    pairs = a[:, None].expand(*shape, 4).reshape(-1, 4), b[None].expand(*shape, 4).reshape(-1, 4)
    return box_similarity(*pairs, kind="ciou").view(shape).clamp(min=0)
