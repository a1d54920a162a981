"""Test properties of box functions for random boxes: round trips, bounds and symmetries."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolov7 import boxes

coordinate = st.floats(-1000, 1000, width=32)
side = st.floats(0.5, 500, width=32)
box = st.tuples(coordinate, coordinate, side, side)
KINDS: tuple[boxes.IouKind, ...] = get_args(boxes.IouKind)
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
def test_iou_of_all_with_all(rows: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    first, second = split(rows)
    matrix = boxes.pairwise_iou(boxes.cxcywh_to_xyxy(first), boxes.cxcywh_to_xyxy(second))
    assert ((matrix >= 0) & (matrix <= 1 + 1e-6)).all()
    back = boxes.pairwise_iou(boxes.cxcywh_to_xyxy(second), boxes.cxcywh_to_xyxy(first))
    torch.testing.assert_close(back, matrix.T)
    one_by_one = boxes.box_similarity(first, second, kind="iou")
    torch.testing.assert_close(one_by_one, matrix.diagonal(), atol=1e-5, rtol=0)


@settings(deadline=None)
@given(pairs, st.sampled_from(KINDS))
def test_no_kind_exceeds_iou(rows: list[tuple[tuple[float, ...], tuple[float, ...]]], kind: boxes.IouKind) -> None:
    first, second = split(rows)
    iou, similarity = (boxes.box_similarity(first, second, kind=k) for k in ("iou", kind))
    lowest = {"iou": 0, "giou": -1, "diou": -1, "ciou": -2, "siou": -2, "eiou": -3}[kind]
    assert ((similarity > lowest - 1e-6) & (similarity <= iou + 1e-5)).all()
    same = boxes.box_similarity(first, first, kind=kind)
    torch.testing.assert_close(same, torch.ones(len(first), dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes.box_similarity(second, first, kind=kind), similarity, atol=1e-5, rtol=0)


@settings(deadline=None)
@given(pairs, st.sampled_from(KINDS), st.floats(0.1, 10), coordinate, coordinate)
def test_similarity_does_not_depend_on_unit_and_origin(
    rows: list[tuple[tuple[float, ...], tuple[float, ...]]], kind: boxes.IouKind, unit: float, x: float, y: float
) -> None:
    first, second = split(rows)
    origin = torch.tensor([x, y, 0, 0], dtype=torch.float64)
    moved = boxes.box_similarity((first + origin) * unit, (second + origin) * unit, kind=kind)
    torch.testing.assert_close(moved, boxes.box_similarity(first, second, kind=kind), atol=1e-4, rtol=0)


@settings(deadline=None)
@given(st.tuples(box, box), st.sampled_from([kind for kind in KINDS if kind != "iou"]))
def test_following_the_gradient_brings_boxes_nearer(
    pair: tuple[tuple[float, ...], tuple[float, ...]], kind: boxes.IouKind
) -> None:
    first, second = split([pair])
    first.requires_grad_()
    before = boxes.box_similarity(first, second, kind=kind)
    (gradient,) = torch.autograd.grad(before.sum(), first)
    assert torch.isfinite(gradient).all()
    between = (first[:, :2] - second[:, :2]).abs() - (first[:, 2:] + second[:, 2:]) / 2
    assert bool(between.max() <= 0) or bool(gradient[:, :2].abs().sum() > 0), (
        "the gradient must move separate boxes towards each other"
    )


def test_siou_by_hand() -> None:
    """Squares of side 2, two apart along x: IoU 0, angle cost 0, enclosing width 4, so exp(-2 (2 / 4)^2)."""
    first, second = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[2.0, 0, 2, 2]])
    distance = 1 - math.exp(-0.5)
    assert boxes.box_similarity(first, second, kind="siou").item() == pytest.approx(-distance / 2, abs=1e-6)
    askew = torch.tensor([[2.0, 2, 2, 2]])  # 45 degrees: the angle cost is 1
    both = 2 * (1 - math.exp(-0.25))
    assert boxes.box_similarity(first, askew, kind="siou").item() == pytest.approx(-both / 2, abs=1e-6)
    wide = torch.tensor([[0.0, 0, 4, 2]])
    shape = (1 - math.exp(-0.5)) ** 4
    assert boxes.box_similarity(first, wide, kind="siou").item() == pytest.approx(0.5 - shape / 2, abs=1e-6)


def test_eiou_by_hand() -> None:
    """Concentric 2 x 2 and 4 x 2: IoU 1/2, widths differ by 2 of 4."""
    first, wide = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 4, 2]])
    assert boxes.box_similarity(first, wide, kind="eiou").item() == pytest.approx(0.5 - 0.25, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_area(kind: boxes.IouKind) -> None:
    point = torch.zeros(1, 4, requires_grad=True)
    assert boxes.pairwise_iou(point, point).item() == 0
    similarity = boxes.box_similarity(point, torch.zeros(1, 4), kind=kind)
    assert torch.isfinite(similarity).all()
    assert torch.isfinite(torch.autograd.grad(similarity.sum(), point)[0]).all()
