"""Test the losses of heads without anchors: degenerate batches, shares of processes, phases of a run, learning."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tests.unit.exported import small_spec
from tests.unit.test_shared_loss import share_of, together
from yolov7.criterion.anchor_free_loss import class_loss, distribution_focal_loss
from yolov7.criterion.choice import make_loss
from yolov7.criterion.loss_parts import Loss
from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.structures import HeadMaps, Targets

HEADS = ("yolox", "ppyoloe", "dfl")
CLASSES, SIZE = 3, 96


def model_of(head: str, *, seed: int = 0) -> DetectionModel:
    torch.manual_seed(seed)
    return DetectionModel(small_spec(head), num_classes=CLASSES)


def loss_of(head: str, *, epoch: int = 0, **settings: Any) -> Loss:
    return make_loss(model_of(head), TrainSettings.model_validate({"image_size": SIZE, **settings}), epoch=epoch)


def example(head: str, counts: tuple[int, ...], *, scale: float = 1.0) -> tuple[HeadMaps, Targets]:
    """Return random maps that are leaves, and random objects."""
    random = torch.Generator().manual_seed(3)
    model = model_of(head).eval()
    shapes = [m.shape for m in model(torch.zeros(1, 3, SIZE, SIZE)).lead]
    drawn = [scale * torch.randn(len(counts), *shape[1:], generator=random) for shape in shapes]
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    boxes = 0.1 + 0.4 * torch.rand(len(image), 4, generator=random)
    labels = torch.randint(CLASSES, image.shape, generator=random)
    return HeadMaps(tuple(m.requires_grad_() for m in drawn)), Targets(image, labels, boxes)


@pytest.mark.parametrize("split", [([0, 2, 4], [1, 3]), ([0, 3], [1, 4], [2]), ([0, 1, 2, 3, 4], [])], ids=str)
@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("yolox", {}),
        ("yolox", {"close_mosaic": 1, "epochs": 5}),
        ("ppyoloe", {"loss": {"atss_epochs": 9}}),
        ("dfl", {}),
    ],
    ids=str,
)
def test_shares_of_processes_add_up_to_the_whole_batch(
    split: tuple[list[int], ...], head: str, settings: dict[str, Any]
) -> None:
    maps, targets = example(head, (3, 0, 5, 1, 2))
    loss = loss_of(head, epoch=4 if "epochs" in settings else 0, **settings)
    whole = loss(maps, targets)
    parts = together(loss, [share_of(maps, targets, images) for images in split])
    for of_whole, *of_shares in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(of_shares), of_whole)
    expected = torch.autograd.grad(whole.total, maps.lead)
    found = torch.autograd.grad(torch.stack([part.total for part in parts]).sum(), maps.lead)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_without_objects_has_a_finite_loss(head: str) -> None:
    maps, targets = example(head, (0, 0))
    parts = loss_of(head)(maps, targets)
    parts.total.backward()
    assert parts.box == 0
    assert parts.total > 0
    assert all(m.grad is not None and torch.isfinite(m.grad).all() and m.grad.abs().sum() > 0 for m in maps.lead)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
@pytest.mark.parametrize("head", HEADS)
def test_extreme_outputs_have_finite_losses_and_gradients(head: str, scale: float) -> None:
    maps, targets = example(head, (4, 2), scale=scale)
    total = loss_of(head)(maps, targets).total
    assert torch.isfinite(total)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(total, maps.lead))


@pytest.mark.parametrize("head", HEADS)
def test_maps_in_bfloat16_have_the_loss_of_their_values(head: str) -> None:
    maps, targets = example(head, (4, 2))
    half = HeadMaps(tuple(m.detach().bfloat16() for m in maps.lead))
    wide = HeadMaps(tuple(m.float() for m in half.lead))
    for one, other in zip(loss_of(head)(half, targets), loss_of(head)(wide, targets), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("head", "factor"), [("yolox", 0.5), ("ppyoloe", 0.5), ("dfl", 1.0)])
def test_gradients_of_mean_losses_are_for_the_nominal_batch(head: str, factor: float) -> None:
    maps, targets = example(head, (4, 2))
    once, twice = (loss_of(head, optim={"nominal_batch": n})(maps, targets) for n in (2, 4))
    torch.testing.assert_close(twice.total, factor * once.total)
    torch.testing.assert_close(twice.box, once.box)


def test_the_closing_epochs_of_yolox_have_an_l1_loss() -> None:
    maps, targets = example("yolox", (4, 2))
    boxes = [loss_of("yolox", epoch=epoch, epochs=10, close_mosaic=2)(maps, targets).box for epoch in (0, 7, 8, 9)]
    assert boxes[0] == boxes[1] < boxes[2] == boxes[3]


@pytest.mark.parametrize("head", ["ppyoloe", "dfl"])
def test_atss_is_used_in_the_first_epochs_of_at_most_a_third_of_the_run(head: str) -> None:
    maps, targets = example(head, (4, 2))
    losses = [loss_of(head, epoch=e, epochs=9, loss={"atss_epochs": 5})(maps, targets).total for e in (0, 2, 3, 8)]
    assert losses[0] == losses[1] != losses[2] == losses[3]
    assert losses[3] == loss_of(head)(maps, targets).total


@pytest.mark.parametrize("head", HEADS)
def test_a_small_model_learns(head: str) -> None:
    model = model_of(head)
    settings = TrainSettings(image_size=SIZE)
    loss = make_loss(model, settings)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[0.3, 0.4, 0.3, 0.2], [0.7, 0.6, 0.2, 0.4], [0.5, 0.5, 0.5, 0.5]])
    targets = Targets(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), boxes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    totals = []
    for _ in range(16):
        total = loss(model(images), targets).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-2:]) < 0.7 * sum(totals[:2])
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", ["bce", "varifocal"])
def test_the_class_loss_is_that_of_a_dense_target(kind: Literal["bce", "varifocal"]) -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score = torch.tensor([0.9, 0.2], dtype=torch.float64)
    goal = torch.zeros_like(logits)
    goal[[1, 4], [2, 0]] = score
    p = logits.sigmoid()
    bce = -(goal * p.log() + (1 - goal) * (1 - p).log())
    weight = torch.where(goal > 0, goal, 0.75 * p**2) if kind == "varifocal" else torch.ones_like(p)
    found = class_loss(logits, logits[[1, 4], [2, 0]], score, kind=kind)
    torch.testing.assert_close(found, (weight * bce).sum())


def test_the_distribution_loss_is_lowest_for_the_two_bins_around_the_distance() -> None:
    def loss(probabilities: list[float], distance: float) -> Tensor:
        return distribution_focal_loss(torch.tensor(probabilities).log()[None], torch.tensor([distance]))[0]

    tiny = 1e-6
    assert (
        loss([tiny, 0.75, 0.25, tiny], 1.25) < loss([tiny, 0.5, 0.5, tiny], 1.25) < loss([0.5, tiny, tiny, 0.5], 1.25)
    )
    expected = -(0.75 * torch.tensor(0.7).log() + 0.25 * torch.tensor(0.2).log())
    torch.testing.assert_close(loss([0.05, 0.7, 0.2, 0.05], 1.25), expected)
    assert torch.isfinite(loss([0.1, 0.2, 0.3, 0.4], 99.0))
    assert torch.isfinite(loss([0.1, 0.2, 0.3, 0.4], -5.0))
