"""Compare box functions with vectors of the reference implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from yolov7 import boxes

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_similarity(kind: boxes.IouKind) -> None:
    data = np.load(DATA / "iou.npz")
    ours = boxes.box_similarity(torch.from_numpy(data["b1"]), torch.from_numpy(data["b2"]), kind=kind)
    np.testing.assert_allclose(ours.numpy(), data[kind], atol=1e-6)


def test_gradient_of_ciou() -> None:
    data = np.load(DATA / "iou.npz")
    first = torch.from_numpy(data["b1"]).requires_grad_()
    boxes.box_similarity(first, torch.from_numpy(data["b2"]), kind="ciou").sum().backward()
    assert first.grad is not None
    np.testing.assert_allclose(first.grad.numpy(), data["ciou_grad_b1"], rtol=1e-4, atol=2e-6)


def test_pairwise_iou() -> None:
    data = np.load(DATA / "iou.npz")
    first, second = (boxes.cxcywh_to_xyxy(torch.from_numpy(data[name])) for name in ("b1", "b2"))
    np.testing.assert_allclose(boxes.pairwise_iou(first, second).numpy(), data["pairwise_iou_xyxy"], atol=1e-6)
