"""Test the loss: degenerate batches, precision of the maps, gradients and gains."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from yolov7.criterion.loss import DetectionLoss, _put_last, level_balance, varifocal_weight
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


def loss_for(classes: int = 4, *, size: int = 96, **settings: Any) -> DetectionLoss:
    return DetectionLoss(
        anchors_px=ANCHORS,
        strides=STRIDES,
        num_classes=classes,
        image_size=size,
        settings=LossSettings(**settings),
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


@pytest.mark.parametrize("num_levels", [1, 2, 4, 5, 6, 7])
def test_every_level_of_a_head_gets_an_objectness_gradient(num_levels: int) -> None:
    """A head may have any number of levels; the reference names weights for five of them."""
    strides = tuple(2**level for level in range(num_levels))
    maps = tuple(torch.zeros(1, 1, 64 // s, 64 // s, 6).requires_grad_() for s in strides)
    loss = DetectionLoss(
        anchors_px=torch.ones(num_levels, 1, 2),
        strides=strides,
        num_classes=1,
        image_size=64,
        settings=LossSettings(),
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    loss(HeadMaps(maps), Targets(nothing, nothing, torch.zeros(0, 4))).total.backward()
    sums = [m.grad[..., 4].sum().item() for m in maps if m.grad is not None]
    assert len(sums) == num_levels
    assert min(sums) > 0
    assert all(one > other for one, other in itertools.pairwise(sums))


def test_balance_of_levels() -> None:
    assert level_balance(3) == (4.0, 1.0, 0.4)
    assert level_balance(4) == (4.0, 1.0, 0.25, 0.06)
    assert level_balance(7) == pytest.approx((4.0, 1.0, 0.25, 0.06, 0.02, 0.005, 0.00125))


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


@pytest.mark.parametrize("assigner", ["ota", "anchor"])
def test_gradient_by_differences(assigner: str) -> None:
    maps, targets = example(counts=(2,), classes=2)
    loss = loss_for(2, assigner=assigner, focal_gamma=1.5, label_smoothing=0.1)
    gradients = torch.autograd.grad(loss(maps, targets).total, maps.lead)
    for level, gradient in enumerate(gradients):
        position = (
            int(gradient[..., 5].abs().argmax()) * gradient.shape[-1] + 5
        )  # of a class, because other targets are detached
        step = torch.zeros_like(gradient).view(-1)
        step[position] = 1e-2
        higher, lower = (_moved(maps, level, sign * step.view_as(gradient)) for sign in (1, -1))
        slope = (loss(higher, targets).total - loss(lower, targets).total).item() / 2e-2
        assert gradient.flatten()[position].item() == pytest.approx(slope, rel=2e-2, abs=1e-4)


def varifocal(logits: Tensor, goal: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, goal, reduction="none") * varifocal_weight(logits, goal)


def test_varifocal_loss_and_gradient_follow_the_formula() -> None:
    """Compare with the formula in float64 and with finite differences; logits of 300 have finite losses."""
    random = torch.Generator().manual_seed(2)
    logits = (4 * torch.randn(200, generator=random)).double().requires_grad_()
    goal = torch.rand(200, generator=random).double() * (torch.rand(200, generator=random) < 0.4)
    p = logits.sigmoid()
    positive = -goal * (goal * p.log() + (1 - goal) * (1 - p).log())
    formula = torch.where(goal > 0, positive, -0.75 * p.square() * (1 - p).log())
    torch.testing.assert_close(varifocal(logits, goal), formula)
    assert torch.autograd.gradcheck(varifocal, (logits, goal))
    extreme = torch.tensor([300.0, -300.0]).requires_grad_()
    varifocal(extreme, torch.zeros(2)).sum().backward()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


@pytest.mark.parametrize("parts", [["classification"], ["objectness"], ["classification", "objectness"]])
def test_varifocal_changes_only_its_own_parts_and_learns(parts: list[str]) -> None:
    maps, targets = example(counts=(2, 1), classes=3)
    loss, leaves = loss_for(3, assigner="anchor", **{f"{part}_loss": "varifocal" for part in parts}), list(maps.lead)
    first, plain = loss(maps, targets), loss_for(3, assigner="anchor")(maps, targets)
    for part in ("box", "objectness", "classification"):
        assert (getattr(first, part) == getattr(plain, part)).item() == (part not in parts)
    optimizer = torch.optim.Adam(leaves, lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        loss(maps, targets).total.backward()
        optimizer.step()
    assert loss(maps, targets).total.item() < 0.6 * first.total.item()


def test_varifocal_refuses_other_weights() -> None:
    for given in ({"classification_pos_weight": 2.0}, {"label_smoothing": 0.1}):
        with pytest.raises(ValueError, match="leave classification_pos_weight at 1 and label_smoothing at 0"):
            LossSettings.model_validate({"classification_loss": "varifocal", **given})
    with pytest.raises(ValueError, match="leave objectness_pos_weight at 1"):
        LossSettings(objectness_loss="varifocal", objectness_pos_weight=2.0)


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


def test_the_last_of_several_values_is_used() -> None:
    goal = torch.zeros(4)
    _put_last(goal, torch.tensor([1, 3, 1]), torch.tensor([0.25, 0.5, 0.75]))
    assert goal.tolist() == [0, 0.75, 0, 0.5]


def test_cells_of_several_objects_add_their_gradients() -> None:
    maps, targets = example(counts=(1,), classes=2)
    twice = Targets(*(torch.cat((field, field)) for field in (targets.image, targets.label, targets.boxes_cxcywh)))
    parts = loss_for(2, assigner="anchor")(maps, twice)
    single = loss_for(2, assigner="anchor")(maps, targets)
    for both, one in zip(*(torch.autograd.grad(p.total, maps.lead) for p in (parts, single)), strict=True):
        torch.testing.assert_close(both, one)  # means over twice as many equal rows


@pytest.mark.parametrize("kind", ["ciou", "giou", "diou", "siou", "eiou"])
def test_every_kind_of_box_loss_learns(kind: str) -> None:
    maps, targets = example(counts=(2, 1), classes=2)
    loss, leaves = loss_for(2, box_loss=kind, assigner="anchor"), list(maps.lead)
    optimizer = torch.optim.Adam(leaves, lr=0.1)
    first = loss(maps, targets).box.item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(maps, targets).total.backward()
        optimizer.step()
    assert loss(maps, targets).box.item() < 0.3 * first


def with_auxiliary(maps: HeadMaps) -> HeadMaps:
    """Add an auxiliary head with slightly different maps as separate leaves."""
    return HeadMaps(maps.lead, tuple((m.detach() + 0.3 * m.detach().flip(-1)).requires_grad_() for m in maps.lead))


def test_the_loss_of_an_auxiliary_head_is_added_with_its_gain() -> None:
    maps, targets = example()
    alike = HeadMaps(maps.lead, tuple(m.detach().clone().requires_grad_() for m in maps.lead))
    both = loss_for(auxiliary="lead_guided", auxiliary_gain=0.5)(alike, targets)
    lead = loss_for(auxiliary="lead_guided", auxiliary_gain=0.0)(alike, targets)
    assert both.total.item() == pytest.approx(1.5 * lead.total.item(), rel=1e-5)
    gradients = torch.autograd.grad(both.total, (*alike.lead, *alike.auxiliary))
    for ours, theirs in zip(gradients[:3], gradients[3:], strict=True):
        torch.testing.assert_close(0.5 * ours, theirs)


@pytest.mark.parametrize("guidance", ["coarse_to_fine", "lead_guided", "independent"])
def test_every_auxiliary_head_learns(guidance: str) -> None:
    maps, targets = example(classes=2)
    maps = with_auxiliary(maps)
    loss, leaves = loss_for(2, auxiliary=guidance, auxiliary_gain=1.0), [*maps.lead, *maps.auxiliary]
    optimizer = torch.optim.Adam(leaves, lr=0.1)
    first = loss(maps, targets).total.item()
    for _ in range(20):
        optimizer.zero_grad()
        loss(maps, targets).total.backward()
        optimizer.step()
    assert loss(maps, targets).total.item() < 0.6 * first


def test_the_constraint_keeps_boxes_from_coarse_cells() -> None:
    """A centre at 4.9 has coarse positives in cell 3, at a distance of 1.9, which only the wide decoder can reach."""
    nothing = torch.zeros(1, dtype=torch.int64)
    targets = Targets(nothing, nothing, torch.tensor([[39.2, 39.2, 8, 8]]) / 64)
    left = {}
    for constraint in (True, False):
        settings = LossSettings(assigner="anchor", auxiliary_constraint=constraint, auxiliary_gain=1.0, objectness=0.0)
        anchors = torch.tensor([[[8.0, 8.0]]])
        loss = DetectionLoss(anchors_px=anchors, strides=(8,), num_classes=1, image_size=64, settings=settings)
        lead, auxiliary = (torch.zeros(1, 1, 8, 8, 6).requires_grad_() for _ in range(2))
        optimizer = torch.optim.Adam([auxiliary], lr=0.2)
        for _ in range(100):
            optimizer.zero_grad()
            parts = loss(HeadMaps((lead,), (auxiliary,)), targets)
            parts.total.backward()
            optimizer.step()
        left[constraint] = parts.box.item() - loss(HeadMaps((lead,)), targets).box.item()
    assert left[False] < 0.4 * left[True]
