"""Boxes: conversions between frames and formats, and the IoU family (paper's loss: CIoU)."""

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


def xyxy_to_cxcywh(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """The two corners to centre and size, in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def clip_boxes(boxes_xyxy: Float[Tensor, "*n 4"], *, width: int, height: int) -> Float[Tensor, "*n 4"]:
    """Boxes cut off at the image's borders."""
    limits = boxes_xyxy.new_tensor([width, height, width, height])
    return torch.minimum(boxes_xyxy.clamp(min=0), limits)


def from_letterbox(
    boxes_xyxy: Float[Tensor, "*n 4"], *, ratio: float, pad_xy: tuple[float, float], width: int, height: int
) -> Float[Tensor, "*n 4"]:
    """Boxes of a letterboxed image in the pixels of the original, clipped to it.

    The letterboxed image is the original times `ratio`, moved by `pad_xy` (left, top);
    `width` and `height` are the original's.
    """
    pad_x, pad_y = pad_xy
    moved = boxes_xyxy - boxes_xyxy.new_tensor([pad_x, pad_y, pad_x, pad_y])
    return clip_boxes(moved / ratio, width=width, height=height)


def centred_letterbox(*, frame_wh: tuple[int, int], image_wh: tuple[int, int]) -> tuple[float, tuple[float, float]]:
    """Ratio and padding (left, top) of an image that lies centred in a frame, as large as fits."""
    ratio = min(frame_wh[0] / image_wh[0], frame_wh[1] / image_wh[1])
    pad_x = (frame_wh[0] - image_wh[0] * ratio) / 2
    pad_y = (frame_wh[1] - image_wh[1] * ratio) / 2
    return ratio, (pad_x, pad_y)


def pairwise_iou(a_xyxy: Float[Tensor, "*b n 4"], b_xyxy: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """IoU of every box of `a` with every box of `b`; 0 for two boxes without area."""
    ax1, ay1, ax2, ay2 = a_xyxy.unsqueeze(-2).unbind(-1)  # *b n 1
    bx1, by1, bx2, by2 = b_xyxy.unsqueeze(-3).unbind(-1)  # *b 1 m
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    inter = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def iou(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """IoU of the boxes of a row, both cxcywh."""
    return _overlap(a, b)[0]


def giou(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """IoU less the share of the enclosing box that belongs to neither; boxes cxcywh."""
    overlap, union, enclosing = _overlap(a, b)
    area = enclosing[:, 0] * enclosing[:, 1] + _EPS
    return overlap - (area - union) / area


def diou(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """IoU less the squared distance of the centres over the enclosing box's squared diagonal; boxes cxcywh."""
    overlap, _, enclosing = _overlap(a, b)
    return overlap - _centre_distance(a, b, enclosing)


def ciou(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """DIoU less a term for the difference of the aspect ratios, whose weight has no gradient; boxes cxcywh."""
    overlap, _, enclosing = _overlap(a, b)
    aspect = torch.atan(b[:, 2] / (b[:, 3] + 2 * _EPS)) - torch.atan(a[:, 2] / (a[:, 3] + 2 * _EPS))
    v = (4 / math.pi**2) * aspect**2
    with torch.no_grad():
        alpha = v / (v - overlap + (1 + _EPS))
    return overlap - (_centre_distance(a, b, enclosing) + v * alpha)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU (n,), union (n,) and size of the enclosing box (n, 2); heights grow by eps, as the reference's do."""
    a_low, a_high = _corners(a)
    b_low, b_high = _corners(b)
    inter = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    union = a[:, 2] * (a[:, 3] + _EPS) + b[:, 2] * (b[:, 3] + _EPS) - inter + _EPS
    enclosing = torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)
    return inter / union, union, enclosing


def _centre_distance(a: Tensor, b: Tensor, enclosing: Tensor) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the enclosing box."""
    return (b[:, :2] - a[:, :2]).square().sum(-1) / (enclosing.square().sum(-1) + _EPS)


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corner of boxes cxcywh."""
    half = boxes[:, 2:] / 2
    return boxes[:, :2] - half, boxes[:, :2] + half
