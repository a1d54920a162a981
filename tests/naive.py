"""Plain implementations of the batched algorithms of the detector, for tests and benchmarks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from yolov7.structures import Targets

Cell = tuple[int, int, int, int, int, int]  # level, image, anchor, row, column, target


def naive_ota(
    maps: tuple[Tensor, ...],
    targets: Targets,
    *,
    anchors_px: Tensor,
    strides: tuple[int, ...],
    threshold: float = 4.0,
    merge: bool = False,
) -> list[Cell]:
    """Return the positives, computed image by image and object by object in float64."""
    positives: list[Cell] = []
    for image in range(maps[0].shape[0]):
        members = [t for t in range(len(targets)) if int(targets.image[t]) == image]
        cells = _cells_of_image(maps, targets, members, image, anchors_px, strides, threshold)
        if merge:
            cells = sorted({(*cell[:5], -1) for cell in cells})
        if members and cells:
            positives += _match_image(maps, targets, members, cells, anchors_px, strides)
    return sorted(positives, key=lambda cell: cell[0])


def _cells_of_image(
    maps: tuple[Tensor, ...],
    targets: Targets,
    members: list[int],
    image: int,
    anchors_px: Tensor,
    strides: tuple[int, ...],
    threshold: float,
) -> list[Cell]:
    cells: list[Cell] = []
    for level, level_map in enumerate(maps):
        height, width = level_map.shape[2:4]
        boxes = targets.boxes_cxcywh * torch.tensor([width, height, width, height])
        for dx, dy in ((0, 0), (0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5)):
            for anchor in range(level_map.shape[1]):
                for target in members:
                    x, y, w, h = boxes[target].tolist()
                    aw, ah = (anchors_px[level, anchor] / strides[level]).tolist()
                    near = {
                        (0, 0): True,
                        (0.5, 0): x % 1 < 0.5 and x > 1,
                        (0, 0.5): y % 1 < 0.5 and y > 1,
                        (-0.5, 0): (width - x) % 1 < 0.5 and width - x > 1,
                        (0, -0.5): (height - y) % 1 < 0.5 and height - y > 1,
                    }[(dx, dy)]
                    if near and max(w / aw, aw / w, h / ah, ah / h) < threshold:
                        column = min(max(int(x - dx), 0), width - 1)
                        row = min(max(int(y - dy), 0), height - 1)
                        cells.append((level, image, anchor, row, column, target))
    return cells


def _match_image(
    maps: tuple[Tensor, ...],
    targets: Targets,
    members: list[int],
    cells: list[Cell],
    anchors_px: Tensor,
    strides: tuple[int, ...],
) -> list[Cell]:
    height, width = (side * strides[0] for side in maps[0].shape[2:4])
    costs: list[list[float]] = []
    chosen: list[list[int]] = [[] for _ in cells]
    for position, target in enumerate(members):
        box = targets.boxes_cxcywh[target].double() * torch.tensor([width, height, width, height])
        ious, row = [], []
        for level, image, anchor, gy, gx, _ in cells:
            logits = maps[level][image, anchor, gy, gx].double()
            scaled = logits[:4].sigmoid() * 2
            centre = (scaled[:2] - 0.5 + torch.tensor([gx, gy])) * strides[level]
            size = scaled[2:] ** 2 * anchors_px[level, anchor]
            iou = _iou(torch.cat((centre, size)).tolist(), box.tolist())
            y = (logits[5:].sigmoid() * logits[4].sigmoid()).sqrt()
            negative = -(1 - y).log()
            label = int(targets.label[target])
            class_cost = float(negative.sum() - negative[label] - y[label].log())
            ious.append(iou)
            row.append(class_cost - 3 * math.log(iou + 1e-8))
        wanted = max(1, int(sum(sorted(ious, reverse=True)[:10])))
        for candidate in sorted(range(len(cells)), key=row.__getitem__)[:wanted]:
            chosen[candidate].append(position)
        costs.append(row)
    positives = []
    for candidate, takers in enumerate(chosen):
        if takers:
            best = takers[0]
            if len(takers) > 1:
                best = min(range(len(members)), key=lambda position: costs[position][candidate])
            positives.append((*cells[candidate][:5], members[best]))
    return positives


def _iou(a: list[float], b: list[float]) -> float:
    """Return the IoU of two boxes cxcywh."""
    width = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    height = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    inter = max(width, 0) * max(height, 0)
    return inter / (a[2] * a[3] + b[2] * b[3] - inter)


def naive_nms(boxes_xyxy: Tensor, groups: Tensor, *, threshold: float) -> list[int]:
    """Suppress boxes, ordered by descending score, greedily and one by one."""
    centred = torch.cat(((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), dim=1)
    rows, labels = centred.tolist(), groups.tolist()
    kept: list[int] = []
    for i, row in enumerate(rows):
        if all(labels[i] != labels[j] or _iou(row, rows[j]) <= threshold for j in kept):
            kept.append(i)
    return kept
