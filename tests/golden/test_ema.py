"""The moving average equals the reference's in every bit, and its corrected form that of PP-YOLOE."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.golden.vectors import load_vectors
from yolov7.settings import OptimSettings
from yolov7.training.ema import Ema


def make_ema(start: torch.Tensor) -> tuple[nn.Linear, Ema[nn.Linear]]:
    model = nn.Linear(start.shape[1], start.shape[0], bias=False)
    model.weight.data = start.clone()
    settings = OptimSettings()
    return model, Ema(model, decay=settings.ema_decay, ramp=settings.ema_ramp)


def test_the_decay_grows_as_the_references() -> None:
    golden = load_vectors("ema")
    _, ema = make_ema(golden["w0"])
    found = [ema.decay_at(updates) for updates in golden["updates"].tolist()]
    assert found == pytest.approx(golden["decay"].tolist(), rel=1e-12)


def test_the_average_is_the_references_to_the_last_bit() -> None:
    golden = load_vectors("ema")
    model, ema = make_ema(golden["w0"])
    for weights, expected in zip(golden["w_seq"], golden["ema_seq"], strict=True):
        model.weight.data = weights.clone()
        ema.update(model)
        assert torch.equal(ema.model.weight, expected)


def test_the_corrected_average_is_that_of_ppyoloe() -> None:
    golden = load_vectors("baselines/ema_ppyoloe")
    model = nn.Linear(golden["w_seq"].shape[1], 1, bias=False)
    ema = Ema(model, decay=0.9998, ramp=1.0, form="corrected")
    for number, (weights, expected) in enumerate(zip(golden["w_seq"], golden["ema_applied"], strict=True)):
        model.weight.data = weights[None].clone()
        ema.update(model)
        assert ema.decay_at(number + 1) == pytest.approx(golden["decay"][number].item(), rel=1e-12)
        torch.testing.assert_close(ema.model.weight[0], expected, rtol=1e-6, atol=1e-6)


def test_the_long_run_of_the_corrected_average_has_the_decay_of_the_settings() -> None:
    model = nn.Linear(1, 1, bias=False)
    assert Ema(model, decay=0.9998, ramp=1.0, form="corrected").decay_at(10**6) == 0.9998
