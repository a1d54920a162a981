"""Boxes against vectors of the reference implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from yolov7 import boxes

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_iou_family(kind: str) -> None:
    data = np.load(DATA / "iou.npz")
    ours = getattr(boxes, kind)(torch.from_numpy(data["b1"]), torch.from_numpy(data["b2"]))
    np.testing.assert_allclose(ours.numpy(), data[kind], atol=1e-6)


def test_gradient_of_ciou() -> None:
    data = np.load(DATA / "iou.npz")
    first = torch.from_numpy(data["b1"]).requires_grad_()
    boxes.ciou(first, torch.from_numpy(data["b2"])).sum().backward()
    assert first.grad is not None
    np.testing.assert_allclose(first.grad.numpy(), data["ciou_grad_b1"], rtol=1e-4, atol=2e-6)


def test_pairwise_iou() -> None:
    data = np.load(DATA / "iou.npz")
    first, second = (boxes.cxcywh_to_xyxy(torch.from_numpy(data[name])) for name in ("b1", "b2"))
    np.testing.assert_allclose(boxes.pairwise_iou(first, second).numpy(), data["pairwise_iou_xyxy"], atol=1e-6)


def test_from_letterbox() -> None:
    data = np.load(DATA / "scale_coords.npz")
    rows = torch.from_numpy(data["coords"])
    (height, width), (frame_height, frame_width) = data["img0"].tolist(), data["img1"].tolist()
    ratio, pad_xy = boxes.centred_letterbox(frame_wh=(frame_width, frame_height), image_wh=(width, height))
    ours = boxes.from_letterbox(rows, ratio=ratio, pad_xy=pad_xy, width=width, height=height)
    np.testing.assert_allclose(ours.numpy(), data["out_auto"], rtol=1e-6, atol=1e-4)
    ratio, _, pad_x, pad_y = data["ratio_pad"].tolist()
    ours = boxes.from_letterbox(rows, ratio=ratio, pad_xy=(pad_x, pad_y), width=width, height=height)
    np.testing.assert_allclose(ours.numpy(), data["out_rp"], rtol=1e-6, atol=1e-4)
