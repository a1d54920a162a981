"""The loss: degenerate batches, precision of the maps, gradients, and gains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolov7.assign import AnchorAssigner, Anchors, Assignment
from yolov7.loss import DetectionLoss, _put_last
from yolov7.settings import LossSettings
from yolov7.structures import HeadMaps, Targets

STRIDES = (8, 16, 32)
ANCHORS = torch.tensor([[[8, 8], [16, 16]], [[32, 32], [48, 48]], [[64, 64], [96, 96]]], dtype=torch.float32)


def example(*, counts: tuple[int, ...] = (3, 0, 5), classes: int = 4, size: int = 96) -> tuple[HeadMaps, Targets]:
    random = torch.Generator().manual_seed(7)
    shapes = [(len(counts), 2, size // s, size // s, 5 + classes) for s in STRIDES]
    maps = tuple(torch.randn(shape, generator=random).requires_grad_() for shape in shapes)
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    boxes = torch.cat((torch.rand(len(image), 2, generator=random), torch.full((len(image), 2), 0.3)), dim=1)
    return HeadMaps(maps), Targets(image, torch.randint(classes, image.shape, generator=random), boxes)


def loss_for(classes: int = 4, *, size: int = 96, plain: bool = False, **settings: float) -> DetectionLoss:
    anchors = Anchors(ANCHORS, STRIDES)
    return DetectionLoss(
        anchors_px=ANCHORS,
        strides=STRIDES,
        num_classes=classes,
        image_size=size,
        settings=LossSettings(**settings),  # type: ignore[arg-type]
        assigner=AnchorAssigner(anchors, threshold=4.0) if plain else None,
    )


def test_total_is_the_parts_times_the_batch() -> None:
    maps, targets = example()
    total, *parts = loss_for()(maps, targets)
    assert total.item() == pytest.approx(3 * sum(part.item() for part in parts))
    assert not any(part.requires_grad for part in parts)


def test_batch_without_objects_has_objectness_only() -> None:
    maps, targets = example(counts=(0, 0))
    parts = loss_for()(maps, targets)
    parts.total.backward()
    assert parts.box == parts.classification == 0
    assert all(m.grad is not None and m.grad[..., 4].abs().sum() > 0 for m in maps.lead)
    assert all(m.grad is not None and m.grad[..., :4].abs().sum() == 0 for m in maps.lead)


def test_one_class_has_no_class_loss() -> None:
    maps, targets = example(classes=1)
    parts = loss_for(1)(maps, targets)
    assert parts.classification == 0
    assert parts.box > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_maps(dtype: torch.dtype) -> None:
    maps, targets = example()
    low = HeadMaps(tuple(m.detach().to(dtype).requires_grad_() for m in maps.lead))
    exact = HeadMaps(tuple(m.detach().float() for m in low.lead))
    parts = loss_for()(low, targets)
    parts.total.backward()
    assert parts.total.dtype == torch.float32
    assert parts.total.item() == pytest.approx(loss_for()(exact, targets).total.item(), rel=1e-6)
    assert all(m.grad is not None and m.grad.dtype == dtype for m in low.lead)


@pytest.mark.parametrize("plain", [False, True])
def test_gradient_by_differences(plain: bool) -> None:
    maps, targets = example(counts=(2,), classes=2)
    loss = loss_for(2, plain=plain, focal_gamma=1.5, label_smoothing=0.1)
    gradients = torch.autograd.grad(loss(maps, targets).total, maps.lead)
    for level, gradient in enumerate(gradients):
        position = int(gradient[..., 5].abs().argmax()) * gradient.shape[-1] + 5  # a class: no part of detached goals
        step = torch.zeros_like(gradient).view(-1)
        step[position] = 1e-2
        higher, lower = (_moved(maps, level, sign * step.view_as(gradient)) for sign in (1, -1))
        slope = (loss(higher, targets).total - loss(lower, targets).total).item() / 2e-2
        assert gradient.flatten()[position].item() == pytest.approx(slope, rel=2e-2, abs=1e-4)


def _moved(maps: HeadMaps, level: int, step: Tensor) -> HeadMaps:
    return HeadMaps(tuple(m.detach() + step if i == level else m.detach() for i, m in enumerate(maps.lead)))


def test_memory_order_of_the_maps_does_not_matter() -> None:
    maps, targets = example()
    permuted = tuple(
        m.detach().permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2).requires_grad_() for m in maps.lead
    )
    first, second = loss_for()(maps, targets), loss_for()(HeadMaps(permuted), targets)
    assert first.total.item() == pytest.approx(second.total.item())
    one, two = torch.autograd.grad(first.total, maps.lead), torch.autograd.grad(second.total, permuted)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


def test_objectness_gain_grows_with_the_area() -> None:
    maps, targets = example()
    small, large = loss_for(size=96)(maps, targets), loss_for(size=192)(maps, targets)
    assert large.objectness.item() == pytest.approx(4 * small.objectness.item())
    assert large.box == small.box


def test_last_of_several_values_stays() -> None:
    goal = torch.zeros(1, 1, 2, 2)
    zero = torch.zeros(3, dtype=torch.int64)
    cells = Assignment(zero, zero, zero, torch.tensor([0, 1, 0]), torch.tensor([1, 1, 1]), zero)
    _put_last(goal, cells, torch.tensor([0.25, 0.5, 0.75]))
    assert goal.flatten().tolist() == [0, 0.75, 0, 0.5]


def test_auxiliary_maps_are_refused() -> None:
    maps, targets = example()
    with pytest.raises(ValueError, match="auxiliary head"):
        loss_for()(HeadMaps(maps.lead, maps.lead), targets)
