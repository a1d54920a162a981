"""A small model with an auxiliary head and each way to assign it: both heads learn, and neither the other's part."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from yolov7.criterion.assigners import Guidance
from yolov7.criterion.loss import DetectionLoss
from yolov7.nn.model import DetectionModel
from yolov7.settings import LossSettings
from yolov7.spec.spec_files import resolve_spec
from yolov7.structures import Targets


@pytest.mark.parametrize("guidance", get_args(Guidance))
def test_a_model_with_an_auxiliary_head_learns(guidance: Guidance) -> None:
    torch.manual_seed(0)
    model = DetectionModel(resolve_spec({"base": "nano", "auxiliary": True}, name="aux"), num_classes=2)
    loss = DetectionLoss(
        anchors_px=model.anchors_px,
        strides=model.strides,
        num_classes=2,
        image_size=96,
        settings=LossSettings(auxiliary=guidance),
    )
    images = torch.rand(2, 3, 96, 96)
    boxes = torch.tensor([[0.3, 0.4, 0.3, 0.2], [0.7, 0.6, 0.2, 0.4], [0.5, 0.5, 0.5, 0.5]])
    targets = Targets(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), boxes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    losses = []
    for _ in range(6):
        maps = model(images)
        assert len(maps.auxiliary) == len(maps.lead)
        parts = loss(maps, targets)
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        losses.append(parts.box.item() + parts.classification.item())  # objectness follows boxes that get better
    assert losses[-1] < 0.8 * losses[0]
    for head in (model.head.convs, model.head.auxiliary_convs):
        assert all(conv.weight.grad is not None and conv.weight.grad.abs().sum() > 0 for conv in head)
