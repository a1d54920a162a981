"""Boxes: round trips, bounds and symmetries, whatever the numbers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolov7 import boxes

coordinate = st.floats(-1000, 1000, width=32)
side = st.floats(0.5, 500, width=32)
box = st.tuples(coordinate, coordinate, side, side)
pairs = st.lists(st.tuples(box, box), min_size=1, max_size=8)


def split(rows: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> tuple[Tensor, Tensor]:
    table = torch.tensor(rows, dtype=torch.float64)
    return table[:, 0], table[:, 1]


@settings(deadline=None)
@given(pairs)
def test_corners_hold_centre_and_size(rows: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    first, _ = split(rows)
    low, high = boxes.cxcywh_to_xyxy(first).split(2, dim=-1)
    torch.testing.assert_close(torch.cat(((low + high) / 2, high - low), dim=-1), first)


@settings(deadline=None)
@given(pairs)
def test_iou_and_ciou_bound_each_other(rows: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    first, second = split(rows)
    matrix = boxes.pairwise_iou(boxes.cxcywh_to_xyxy(first), boxes.cxcywh_to_xyxy(second))
    iou, ciou = matrix.diagonal(), boxes.ciou(first, second)
    assert ((matrix >= 0) & (matrix <= 1 + 1e-6)).all()
    assert ((ciou > -2 - 1e-6) & (ciou <= iou + 1e-5)).all()
    torch.testing.assert_close(boxes.ciou(first, first), torch.ones(len(first), dtype=torch.float64), atol=1e-5, rtol=0)
    back = boxes.pairwise_iou(boxes.cxcywh_to_xyxy(second), boxes.cxcywh_to_xyxy(first))
    torch.testing.assert_close(back, matrix.T)


def test_boxes_without_area() -> None:
    point = torch.zeros(1, 4)
    assert boxes.pairwise_iou(point, point).item() == 0
    assert torch.isfinite(boxes.ciou(point, point)).all()
