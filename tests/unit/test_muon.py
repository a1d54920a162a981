"""Muon: orthogonalised updates of convolutions, AdamW for all others, and exact continuation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from yolov7.nn.model import DetectionModel
from yolov7.settings import OptimSettings
from yolov7.spec.spec_files import load_spec
from yolov7.training.muon import MuonWithAdamW, orthogonalise
from yolov7.training.optim import build_optimizer, build_schedule


def make(model: nn.Sequential) -> MuonWithAdamW:
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 4]
    groups = [{"params": weights, "weight_decay": 0.1}], [{"params": others, "weight_decay": 0.0}]
    return MuonWithAdamW(*groups, lr=0.02, betas=(0.9, 0.999))


def make_model() -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 40, 3, bias=False), nn.BatchNorm2d(40), nn.Conv2d(40, 6, 3, bias=False))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(2, 3, 9, 9)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (12, 12)])
def test_the_iteration_keeps_singular_vectors_and_maps_singular_values_by_its_polynomial(
    shape: tuple[int, int],
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    assert values[:-2].min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(orthogonalise(matrix).double(), u @ values.diag() @ v, rtol=1e-3, atol=1e-4)
    short = orthogonalise(matrix.bfloat16())
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.double(), u @ values.diag() @ v, rtol=0, atol=0.03)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5)])
def test_a_matrix_moves_as_with_the_optimizer_of_torch(shape: tuple[int, int]) -> None:
    def moved(make_optimizer: type[torch.optim.Muon] | None) -> Tensor:
        weight = nn.Parameter(torch.ones(shape) if make_optimizer else torch.ones(*shape, 1, 1))
        optimizer: torch.optim.Optimizer
        if make_optimizer:
            optimizer = make_optimizer(
                [weight], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
            )
        else:
            bias = nn.Parameter(torch.zeros(1))
            matrices, others = {"params": [weight], "weight_decay": 0.1}, {"params": [bias]}
            optimizer = MuonWithAdamW([matrices], [others], lr=0.02, betas=(0.9, 0.999))
        for step in range(3):
            gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
            weight.grad = gradient.view_as(weight)
            optimizer.step()
        return weight.detach().view(shape)

    own, theirs = moved(None), moved(torch.optim.Muon)
    assert (theirs - 1).abs().max() > 0.01
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-3)  # torch computes the update with bfloat16


def test_all_others_move_as_with_adamw() -> None:
    model, twin = make_model(), make_model()
    own = make(model)
    others = [parameter for parameter in twin.parameters() if parameter.dim() < 4]
    adamw = torch.optim.AdamW(others, lr=0.02, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    for step in range(3):
        torch.manual_seed(step)
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            mine.grad = theirs.grad = torch.randn(mine.shape)
        own.step()
        adamw.step()
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) == (mine.dim() < 4) for mine, theirs in pairs)


def test_it_continues_exactly_from_its_state() -> None:
    whole, parts = make_model(), make_model()
    train(whole, make(whole), steps=range(4))
    first = make(parts)
    train(parts, first, steps=range(2))
    second = make(parts)
    second.load_state_dict(first.state_dict())
    train(parts, second, steps=range(2, 4))
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in parts.state_dict().items())
    assert len(second.state) == 4


def test_muon_changes_convolutions_that_batch_norm_follows() -> None:
    model = DetectionModel(load_spec("yolov7-tiny"), num_classes=3)
    settings = OptimSettings(optimizer="muon", lr0=0.002)
    optimizer = build_optimizer(
        model, settings, schedule=build_schedule(settings, batch_size=16, steps_per_epoch=9, epochs=9)
    )
    matrices, weights, others, biases = optimizer.param_groups
    assert len(matrices["params"]) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert {id(p) for p in weights["params"]} == {id(conv.weight) for conv in model.head.convs}
    assert matrices["weight_decay"] == weights["weight_decay"] > others["weight_decay"] == biases["weight_decay"] == 0
    counts = [len(group["params"]) for group in optimizer.param_groups]
    assert sum(counts) == len(list(model.parameters()))
