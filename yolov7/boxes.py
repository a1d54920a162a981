"""Boxes: formats and similarity measures, that is IoU and the variants of it that serve as losses."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from yolov7.system.shapes import Float

IouKind = Literal["iou", "giou", "diou", "ciou", "siou", "eiou"]

_EPS = 1e-7


def cxcywh_to_xyxy(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Convert centre and size to corners.

    Args:
        boxes: Boxes cx, cy, w, h (..., 4).

    Returns:
        Boxes x1, y1, x2, y2 (..., 4) in the same unit.
    """
    half = boxes[..., 2:] / 2
    return torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Convert corners to centres and sizes.

    Args:
        boxes: Boxes x1, y1, x2, y2 (..., 4).

    Returns:
        Boxes cx, cy, w, h (..., 4) in the same unit.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def pairwise_iou(a_xyxy: Float[Tensor, "*b n 4"], b_xyxy: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Return the IoU of every box of one set with every box of another.

    Args:
        a_xyxy: Corners (..., n, 4).
        b_xyxy: Corners (..., m, 4) in the same unit.

    Returns:
        IoUs (..., n, m); 0 for two boxes without area.
    """
    ax1, ay1, ax2, ay2 = a_xyxy.unsqueeze(-2).unbind(-1)  # *b n 1
    bx1, by1, bx2, by2 = b_xyxy.unsqueeze(-3).unbind(-1)  # *b 1 m
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    inter = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def box_similarity(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"], *, kind: IouKind) -> Float[Tensor, " n"]:
    """Return the similarity of pairs of boxes: the IoU minus a penalty.

    Args:
        a: Boxes cx, cy, w, h (n, 4).
        b: Boxes cx, cy, w, h (n, 4) in the same unit.
        kind: The penalty. `iou`: none. `giou`: the share of the enclosing box that the union does not cover. `diou`:
            the squared distance of the centres relative to the diagonal of the enclosing box. `ciou`: the penalty of
            `diou`, and one for the difference of the aspect ratios, whose weight has no gradient. `eiou`: the penalty
            of `diou`, and the squared differences of the sides relative to the enclosing box. `siou`: half of the
            distance and shape costs of Gevorgyan (2022).

    Returns:
        Similarities (n,); 1 for equal boxes.
    """
    iou, union, enclosing = _overlap(a, b)
    match kind:
        case "iou":
            return iou
        case "giou":
            area = enclosing.prod(-1) + _EPS
            return iou - (area - union) / area
        case "diou":
            return iou - _distance(a, b, enclosing)
        case "ciou":
            return iou - (_distance(a, b, enclosing) + _aspect(a, b, iou))
        case "eiou":
            sides = (a[:, 2:] - b[:, 2:]).square() / (enclosing.square() + _EPS)
            return iou - (_distance(a, b, enclosing) + sides.sum(-1))
        case "siou":
            return iou - (_angled_distance(a, b, enclosing) + _shape(a, b)) / 2


def _distance(a: Tensor, b: Tensor, enclosing: Tensor) -> Tensor:
    """Return the squared distance of the centres divided by the squared diagonal of the enclosing box."""
    return (b[:, :2] - a[:, :2]).square().sum(-1) / (enclosing.square().sum(-1) + _EPS)


def _aspect(a: Tensor, b: Tensor, iou: Tensor) -> Tensor:
    """Return the penalty of CIoU for different aspect ratios; heights grow by eps twice, as in the reference."""
    difference = torch.atan(b[:, 2] / (b[:, 3] + 2 * _EPS)) - torch.atan(a[:, 2] / (a[:, 3] + 2 * _EPS))
    v = (4 / math.pi**2) * difference**2
    with torch.no_grad():
        alpha = v / (v - iou + (1 + _EPS))
    return v * alpha


def _angled_distance(a: Tensor, b: Tensor, enclosing: Tensor) -> Tensor:
    """Return the distance cost of SIoU, 0 to 2. It is lower if the centres differ along one axis only."""
    offset = b[:, :2] - a[:, :2]
    square = offset.square()
    angle = 2 * offset.abs().prod(-1) / (square.sum(-1) + _EPS)
    return (1 - torch.exp((angle - 2)[:, None] * square / (enclosing.square() + _EPS))).sum(-1)


def _shape(a: Tensor, b: Tensor) -> Tensor:
    """Return the shape cost of SIoU, 0 to 2, from the relative difference of each side."""
    difference = (a[:, 2:] - b[:, 2:]).abs() / (torch.maximum(a[:, 2:], b[:, 2:]) + _EPS)
    return (1 - torch.exp(-difference)).pow(4).sum(-1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return IoU (n,), union (n,) and size of the enclosing box (n, 2); heights grow by eps, as in the reference."""
    a_low, a_high = _corners(a)
    b_low, b_high = _corners(b)
    inter = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    union = a[:, 2] * (a[:, 3] + _EPS) + b[:, 2] * (b[:, 3] + _EPS) - inter + _EPS
    return inter / union, union, torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper corner of boxes cxcywh."""
    half = boxes[:, 2:] / 2
    return boxes[:, :2] - half, boxes[:, :2] + half
