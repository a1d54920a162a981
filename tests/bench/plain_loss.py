"""Assigner and loss in their common form: image by image, the class cost of every object over all classes, autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from yolov7.boxes import box_similarity, cxcywh_to_xyxy, pairwise_iou
from yolov7.criterion.candidates import Anchors, Assignment, find_candidates
from yolov7.settings import LossSettings
from yolov7.structures import Targets


def plain_loss(maps: Sequence[Tensor], targets: Targets, *, anchors_px: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return the total with default settings. If a cell has several objects, the last one decides its objectness."""
    settings, levels = LossSettings(), len(maps)
    found = loop_ota([m.detach() for m in maps], targets, anchors_px=anchors_px, strides=strides)
    box = objectness = classification = maps[0].new_zeros(())
    for level, (m, c) in enumerate(zip(maps, found.per_level(levels), strict=True)):
        goal = torch.zeros_like(m[..., 4])
        if len(c):
            rows = m[c.image, c.anchor, c.row, c.column]
            scaled = rows[:, :4].sigmoid() * 2
            size = scaled[:, 2:] ** 2 * anchors_px[level, c.anchor] / strides[level]
            wanted = targets.boxes_cxcywh[c.target] * torch.tensor(m.shape)[[3, 2, 3, 2]]
            wanted[:, :2] -= torch.stack((c.column, c.row), 1)
            similarity = box_similarity(torch.cat((scaled[:, :2] - 0.5, size), 1), wanted, kind="ciou")
            box = box + (1 - similarity).mean()
            goal[c.image, c.anchor, c.row, c.column] = similarity.detach().clamp(0)
            hot = one_hot(targets.label[c.target], m.shape[-1] - 5).float()
            classification = classification + binary_cross_entropy_with_logits(rows[:, 5:], hot)
        objectness = objectness + binary_cross_entropy_with_logits(m[..., 4], goal) * (4.0, 1.0, 0.4)[level]
    image_size, num_classes = maps[0].shape[2] * strides[0], maps[0].shape[-1] - 5
    gained = settings.box * box + settings.objectness * (image_size / 640) ** 2 * objectness
    gained = gained + settings.classification * num_classes / 80 * classification
    return gained * 3 / levels * maps[0].shape[0]


@torch.no_grad()
def loop_ota(maps: Sequence[Tensor], targets: Targets, *, anchors_px: Tensor, strides: tuple[int, ...]) -> Assignment:
    """Return the positives of a batch by ascending level."""
    candidates = find_candidates(targets, maps=maps, anchors=Anchors(anchors_px, strides), threshold=4.0)
    found = []
    for image in range(maps[0].shape[0]):
        mine = (targets.image == image).nonzero()[:, 0]
        cells = candidates.take((candidates.image == image).nonzero()[:, 0])
        if len(mine) and len(cells):
            found.append(_match_image(maps, targets, mine, cells, anchors_px, strides))
    fields = [torch.cat([getattr(f, name) for f in found]) for name in Assignment.__dataclass_fields__]
    joined = Assignment(*fields)
    return joined.take(torch.argsort(joined.level, stable=True))


def _match_image(
    maps: Sequence[Tensor],
    targets: Targets,
    mine: Tensor,
    cells: Assignment,
    anchors_px: Tensor,
    strides: tuple[int, ...],
) -> Assignment:
    height, width = (side * strides[0] for side in maps[0].shape[2:4])
    boxes, rows = [], []
    for level, c in enumerate(cells.per_level(len(maps))):
        logits = maps[level][c.image, c.anchor, c.row, c.column].float()
        scaled = logits[:, :4].sigmoid() * 2
        centre = (scaled[:, :2] - 0.5 + torch.stack((c.column, c.row), 1)) * strides[level]
        boxes.append(torch.cat((centre, scaled[:, 2:] ** 2 * anchors_px[level, c.anchor]), 1))
        rows.append(logits)
    logits = torch.cat(rows)
    gt = cxcywh_to_xyxy(targets.boxes_cxcywh[mine] * torch.tensor([width, height, width, height]))
    iou = pairwise_iou(gt, cxcywh_to_xyxy(torch.cat(boxes)))
    num_gt, num_cells = iou.shape
    wanted = iou.topk(min(10, num_cells), dim=1).values.sum(1).int().clamp(min=1)
    hot = one_hot(targets.label[mine], logits.shape[1] - 5).float()[:, None].repeat(1, num_cells, 1)
    y = (logits[:, 5:].sigmoid() * logits[:, 4:5].sigmoid()).sqrt()[None].repeat(num_gt, 1, 1)
    class_cost = binary_cross_entropy_with_logits(torch.log(y / (1 - y)), hot, reduction="none").sum(-1)
    cost = class_cost - 3 * torch.log(iou + 1e-8)
    taken = torch.zeros_like(cost)
    for g in range(num_gt):
        taken[g, cost[g].topk(int(wanted[g]), largest=False).indices] = 1
    conflict = taken.sum(0) > 1
    taken[:, conflict] = 0
    taken[cost[:, conflict].argmin(0), conflict] = 1
    positive = (taken.sum(0) > 0).nonzero()[:, 0]
    chosen = cells.take(positive)
    owner = mine[taken[:, positive].argmax(0)]
    return Assignment(chosen.level, chosen.image, chosen.anchor, chosen.row, chosen.column, owner)
