"""Boxes: formats, and how alike two of them are: IoU and the kinds of it that a loss can follow."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

IouKind = Literal["iou", "giou", "diou", "ciou", "siou", "eiou"]

_EPS = 1e-7


def cxcywh_to_xyxy(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Centre and size to the two corners, in the same unit."""
    half = boxes[..., 2:] / 2
    return torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), dim=-1)


def pairwise_iou(a_xyxy: Float[Tensor, "*b n 4"], b_xyxy: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """IoU of every box of `a` with every box of `b`; 0 for two boxes without area."""
    ax1, ay1, ax2, ay2 = a_xyxy.unsqueeze(-2).unbind(-1)  # *b n 1
    bx1, by1, bx2, by2 = b_xyxy.unsqueeze(-3).unbind(-1)  # *b 1 m
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    inter = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def box_similarity(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"], *, kind: IouKind) -> Float[Tensor, " n"]:
    """How alike the boxes of a row are, both cxcywh: 1 for equal ones, and IoU less what the kind takes off else.

    giou: the share of the enclosing box that neither fills. diou: the distance of the centres, over the diagonal of the
    enclosing box, squared. ciou: that and the difference of the aspects, whose weight has no gradient. eiou: diou's
    and the differences of the sides, over those of the enclosing box, squared. siou: half of its distance and shape
    costs (Gevorgyan, 2022).
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
    """Squared distance of the centres over the squared diagonal of the enclosing box."""
    return (b[:, :2] - a[:, :2]).square().sum(-1) / (enclosing.square().sum(-1) + _EPS)


def _aspect(a: Tensor, b: Tensor, iou: Tensor) -> Tensor:
    """CIoU's term for the difference of the aspects; heights grow by eps twice, as the reference's do."""
    difference = torch.atan(b[:, 2] / (b[:, 3] + 2 * _EPS)) - torch.atan(a[:, 2] / (a[:, 3] + 2 * _EPS))
    v = (4 / math.pi**2) * difference**2
    with torch.no_grad():
        alpha = v / (v - iou + (1 + _EPS))
    return v * alpha


def _angled_distance(a: Tensor, b: Tensor, enclosing: Tensor) -> Tensor:
    """SIoU's distance cost: 0 to 2, less where the centres lie along an axis; sin(2 angle) is its angle cost."""
    offset = b[:, :2] - a[:, :2]
    square = offset.square()
    angle = 2 * offset.abs().prod(-1) / (square.sum(-1) + _EPS)
    return (1 - torch.exp((angle - 2)[:, None] * square / (enclosing.square() + _EPS))).sum(-1)


def _shape(a: Tensor, b: Tensor) -> Tensor:
    """SIoU's shape cost: 0 to 2, by the relative difference of each side."""
    difference = (a[:, 2:] - b[:, 2:]).abs() / (torch.maximum(a[:, 2:], b[:, 2:]) + _EPS)
    return (1 - torch.exp(-difference)).pow(4).sum(-1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU (n,), union (n,) and the size of the enclosing box (n, 2); heights grow by eps, as the reference's do."""
    a_low, a_high = _corners(a)
    b_low, b_high = _corners(b)
    inter = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    union = a[:, 2] * (a[:, 3] + _EPS) + b[:, 2] * (b[:, 3] + _EPS) - inter + _EPS
    return inter / union, union, torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corner of boxes cxcywh."""
    half = boxes[:, 2:] / 2
    return boxes[:, :2] - half, boxes[:, :2] + half
