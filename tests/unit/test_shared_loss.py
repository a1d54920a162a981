"""Test that the losses of processes that share a batch add up to the loss of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.test_loss import ANCHORS, STRIDES, example
from yolov7.criterion.loss import DetectionLoss, LossParts
from yolov7.settings import LossSettings
from yolov7.structures import HeadMaps, Targets


def loss_with(**settings: Any) -> DetectionLoss:
    return DetectionLoss(
        anchors_px=ANCHORS, strides=STRIDES, num_classes=4, image_size=96, settings=LossSettings(**settings)
    )


def share_of(maps: HeadMaps, targets: Targets, images: Sequence[int]) -> tuple[HeadMaps, Targets]:
    """Return the share of a process that has these images."""
    chosen = torch.tensor(images, dtype=torch.int64)
    mine = torch.isin(targets.image, chosen)
    position = torch.searchsorted(chosen, targets.image[mine])
    part = Targets(position, targets.label[mine], targets.boxes_cxcywh[mine])
    return HeadMaps(*(tuple(m[chosen] for m in head) for head in maps)), part


def together(loss: DetectionLoss, shares: Sequence[tuple[HeadMaps, Targets]]) -> list[LossParts]:
    """Return the loss of each process; a first round collects what they would sum."""
    told: list[Tensor] = []

    def listen(counts: Tensor) -> Tensor:
        told.append(counts)
        return counts.clamp(min=1)

    for maps, targets in shares:
        loss(maps, targets, sum_over_ranks=listen)
    whole = torch.stack(told).sum(0)
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda _: whole  # noqa: E731
    return [loss(maps, targets, sum_over_ranks=sum_over_ranks) for maps, targets in shares]


def with_auxiliary(maps: HeadMaps) -> HeadMaps:
    random = torch.Generator().manual_seed(8)
    return HeadMaps(maps.lead, tuple(torch.randn(m.shape, generator=random).requires_grad_() for m in maps.lead))


@pytest.mark.parametrize("split", [([0, 2, 4], [1, 3]), ([0, 3], [1, 4], [2]), ([0, 1, 2, 3, 4], [])])
@pytest.mark.parametrize(
    "settings", [{}, {"assigner": "anchor", "focal_gamma": 1.5}, {"auxiliary": "lead_guided"}], ids=str
)
def test_loss_and_gradient_are_those_of_the_whole_batch(split: tuple[list[int], ...], settings: dict[str, Any]) -> None:
    maps, targets = example(counts=(3, 0, 5, 1, 2))
    maps = with_auxiliary(maps) if "auxiliary" in settings else maps
    loss, leaves = loss_with(**settings), [*maps.lead, *maps.auxiliary]
    whole = loss(maps, targets)
    parts = together(loss, [share_of(maps, targets, images) for images in split])
    for of_whole, *of_shares in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(of_shares), of_whole)
    expected = torch.autograd.grad(whole.total, leaves)
    found = torch.autograd.grad(torch.stack([part.total for part in parts]).sum(), leaves)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_mean_of_means_would_be_another_loss() -> None:
    """Show that the test above can fail."""
    maps, targets = example(counts=(3, 0, 5, 1, 2))
    loss = loss_with()
    shares = [share_of(maps, targets, images) for images in ([0, 2, 4], [1, 3])]
    apart = sum(loss(*share).total for share in shares)
    assert (apart - loss(maps, targets).total).abs() > 0.01
