"""Boxes: formats, and how much two of them overlap (the loss takes CIoU)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

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


def ciou(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """Complete IoU of the boxes of a row, both cxcywh.

    IoU, less the squared distance of the centres over the squared diagonal of the enclosing box, less a term for the
    difference of the aspect ratios, whose weight has no gradient.
    """
    overlap, enclosing = _overlap(a, b)
    distance = (b[:, :2] - a[:, :2]).square().sum(-1) / (enclosing.square().sum(-1) + _EPS)
    aspect = torch.atan(b[:, 2] / (b[:, 3] + 2 * _EPS)) - torch.atan(a[:, 2] / (a[:, 3] + 2 * _EPS))
    v = (4 / math.pi**2) * aspect**2
    with torch.no_grad():
        alpha = v / (v - overlap + (1 + _EPS))
    return overlap - (distance + v * alpha)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU (n,) and the size of the enclosing box (n, 2); heights grow by eps, as the reference's do."""
    a_low, a_high = _corners(a)
    b_low, b_high = _corners(b)
    inter = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    union = a[:, 2] * (a[:, 3] + _EPS) + b[:, 2] * (b[:, 3] + _EPS) - inter + _EPS
    return inter / union, torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corner of boxes cxcywh."""
    half = boxes[:, 2:] / 2
    return boxes[:, :2] - half, boxes[:, :2] + half
