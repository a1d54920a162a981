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
def test_round_trip_of_formats(rows: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    first, _ = split(rows)
    torch.testing.assert_close(boxes.xyxy_to_cxcywh(boxes.cxcywh_to_xyxy(first)), first)


@settings(deadline=None)
@given(pairs)
def test_bounds_and_order_of_the_iou_family(rows: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    first, second = split(rows)
    iou, giou, diou, ciou = (kind(first, second) for kind in (boxes.iou, boxes.giou, boxes.diou, boxes.ciou))
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou > -1 - 1e-6) & (giou <= iou + 1e-6)).all()
    assert ((diou > -1 - 1e-6) & (diou <= iou + 1e-6)).all()
    assert (ciou <= diou + 1e-6).all()
    torch.testing.assert_close(boxes.iou(second, first), iou)
    torch.testing.assert_close(boxes.ciou(first, first), torch.ones(len(first), dtype=torch.float64), atol=1e-5, rtol=0)


@settings(deadline=None)
@given(pairs)
def test_pairwise_iou_is_the_iou_of_each_pair(rows: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    first, second = split(rows)
    matrix = boxes.pairwise_iou(boxes.cxcywh_to_xyxy(first), boxes.cxcywh_to_xyxy(second))
    torch.testing.assert_close(matrix.diagonal(), boxes.iou(first, second), atol=1e-5, rtol=0)


@settings(deadline=None)
@given(pairs, st.integers(1, 2000), st.integers(1, 2000), st.integers(32, 1280))
def test_round_trip_of_the_letterbox(
    rows: list[tuple[tuple[float, ...], tuple[float, ...]]], width: int, height: int, frame: int
) -> None:
    inside = boxes.clip_boxes(boxes.cxcywh_to_xyxy(split(rows)[0]), width=width, height=height)
    ratio, pad_xy = boxes.centred_letterbox(frame_wh=(frame, frame), image_wh=(width, height))
    moved = inside * ratio + inside.new_tensor([*pad_xy, *pad_xy])
    assert ((moved >= -1e-6) & (moved <= frame + 1e-6)).all()
    back = boxes.from_letterbox(moved, ratio=ratio, pad_xy=pad_xy, width=width, height=height)
    torch.testing.assert_close(back, inside, atol=1e-6, rtol=0)


def test_boxes_without_area() -> None:
    point = torch.zeros(1, 4)
    assert boxes.pairwise_iou(point, point).item() == 0
    assert torch.isfinite(boxes.ciou(point, point)).all()
