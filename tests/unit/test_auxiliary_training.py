"""Test that both heads of a small model learn with every way to assign cells to the auxiliary head."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from yolov7.criterion.loss import DetectionLoss
from yolov7.nn.model import DetectionModel
from yolov7.settings import Guidance, LossSettings
from yolov7.spec.spec_files import resolve_spec
from yolov7.structures import HeadMaps, Targets


@pytest.mark.parametrize("guidance", get_args(Guidance))
def test_a_model_with_an_auxiliary_head_learns(guidance: Guidance) -> None:
    torch.manual_seed(0)
    model = DetectionModel(resolve_spec({"base": "nano", "auxiliary": True}, name="aux"), num_classes=2)
    loss = DetectionLoss(
        anchors_px=model.anchors_px,
        strides=model.strides,
        num_classes=2,
        image_size=96,
        settings=LossSettings(auxiliary=guidance, auxiliary_gain=1.0),
    )
    images = torch.rand(2, 3, 96, 96)
    boxes = torch.tensor([[0.3, 0.4, 0.3, 0.2], [0.7, 0.6, 0.2, 0.4], [0.5, 0.5, 0.5, 0.5]])
    targets = Targets(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), boxes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    losses = []
    for _ in range(16):
        maps = model(images)
        assert len(maps.auxiliary) == len(maps.lead)
        parts = loss(maps, targets)
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        losses.append([_box_and_class_loss(loss, head, targets) for head in maps])
    first, *_, before_last, last = torch.tensor(losses)
    assert ((before_last + last) / 2 < 0.8 * first).all()  # other seeds give 0.32 to 0.57 here
    for head in (model.head.convs, model.head.auxiliary_convs):
        assert all(conv.weight.grad is not None and conv.weight.grad.abs().sum() > 0 for conv in head)


@torch.no_grad()
def _box_and_class_loss(loss: DetectionLoss, head: tuple[Tensor, ...], targets: Targets) -> float:
    """Return the loss of one head on its own. The objectness is left out: its target rises as boxes become better."""
    parts = loss(HeadMaps(head), targets)
    return parts.box.item() + parts.classification.item()
