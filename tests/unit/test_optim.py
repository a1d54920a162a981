"""The schedule, the groups of parameters, and the moving average of the weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from yolov7.nn.model import DetectionModel
from yolov7.settings import OptimSettings
from yolov7.spec.spec_files import load_spec
from yolov7.training.ema import Ema
from yolov7.training.optim import Schedule, apply_plan, build_optimizer, build_schedule


def schedule(*, batch: int = 16, steps: int = 100, epochs: int = 30, **settings: float | str) -> Schedule:
    return build_schedule(
        OptimSettings.model_validate(settings), batch_size=batch, steps_per_epoch=steps, epochs=epochs
    )


def test_the_warm_up_never_takes_more_than_its_share_of_a_short_run() -> None:
    assert schedule(epochs=300).warmup_steps == 300
    assert schedule(steps=19, epochs=10, warmup_share=0.1).warmup_steps == 19


@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 128))
def test_a_plan_stays_within_its_bounds_at_every_step(steps: int, epochs: int, batch: int) -> None:
    plans = schedule(steps=steps, epochs=epochs, batch=batch)
    for step in range(plans.total_steps):
        plan = plans.at(step)
        assert 0 < plan.lr <= 0.01 + 1e-12
        assert plan.bias_lr <= 0.1 + 1e-12
        assert 0.8 <= plan.momentum <= 0.937
        assert 1 <= plan.accumulate <= plans.accumulate


def test_the_schedule_ends_at_the_final_rate() -> None:
    plans = schedule()
    assert plans.at(plans.total_steps - 1).lr == pytest.approx(0.01 * 0.01)
    half = plans.at(plans.total_steps // 2).lr
    assert half == pytest.approx(0.01 * (1 + 0.01) / 2, rel=0.01)


def test_gradients_accumulate_to_the_nominal_batch() -> None:
    assert schedule(batch=16).accumulate == 4
    assert schedule(batch=64).accumulate == 1
    assert schedule(batch=100).accumulate == 1


def test_the_optimizer_moves_when_the_nominal_batch_is_together() -> None:
    plans = schedule(batch=16)
    assert not plans.is_optimizer_step(1000, pending=3)
    assert plans.is_optimizer_step(1000, pending=4)


@pytest.mark.parametrize("kind", ["scaled", "reference"])
def test_a_linear_decay_falls_by_the_same_amount_in_every_epoch(kind: str) -> None:
    plans = schedule(steps=100, epochs=30, schedule=kind, decay="linear", lr_final=0.1)
    rates = [plans.at(step).lr for step in range(1250, 3000, 100)]
    falls = [before - after for before, after in itertools.pairwise(rates)]
    assert falls == pytest.approx([0.01 * 0.9 / 30] * len(falls), rel=0.01)


@pytest.mark.parametrize("kind", ["yolox", "ppyoloe"])
def test_a_short_run_leaves_the_warm_up_from_zero_and_stays_within_its_bounds(kind: str) -> None:
    plans = schedule(steps=10, epochs=5, warmup_epochs=5, schedule=kind, momentum=0.9, lr_final=0.05, flat_share=0.2)
    rates = [plans.at(step).lr for step in range(50)]
    assert rates[0] == 0
    assert max(rates) == rates[5] == 0.01
    assert rates[-1] == pytest.approx(0.0005 if kind == "yolox" else plans.at(49).bias_lr)
    assert (rates[-1] == rates[-10]) == (kind == "yolox")


@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 128))
def test_the_reference_schedule_stays_within_its_bounds_too(steps: int, epochs: int, batch: int) -> None:
    plans = schedule(steps=steps, epochs=epochs, batch=batch, schedule="reference")
    assert plans.warmup_steps >= 1000  # which a short run never leaves
    for step in range(plans.total_steps):
        plan = plans.at(step)
        assert 0 <= plan.lr <= 0.01 + 1e-12
        assert plan.bias_lr <= 0.1 + 1e-12
        assert 1 <= plan.accumulate <= max(1, round(64 / batch))


def test_only_convolution_weights_decay_and_every_parameter_is_in_one_group() -> None:
    model = DetectionModel(load_spec("yolov7-tiny"), num_classes=3)
    plans = schedule(batch=16)
    optimizer = build_optimizer(model, plans.settings, schedule=plans)
    weights, others, biases = optimizer.param_groups
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert weights["weight_decay"] == pytest.approx(0.0005)
    assert others["weight_decay"] == biases["weight_decay"] == 0
    assert all(parameter.dim() == 4 for parameter in weights["params"])
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(weights["params"]) == len(convolutions)


def test_the_biases_warm_up_from_above() -> None:
    model = DetectionModel(load_spec("nano"), num_classes=2)
    plans = schedule()
    optimizer = build_optimizer(model, plans.settings, schedule=plans)
    apply_plan(optimizer, plans.at(0))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[0] == rates[1] < 0.001
    assert rates[2] > 0.09


def test_the_average_follows_the_weights_with_a_growing_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = Ema(model, decay=0.9, ramp=2.0)
    expected = 0.0
    for update, value in enumerate((1.0, 2.0, -1.0), start=1):
        model.weight.data.fill_(value)
        ema.update(model)
        decay = 0.9 * (1 - math.exp(-update / 2.0))
        expected = decay * expected + (1 - decay) * value
    assert float(ema.model.weight) == pytest.approx(expected, rel=1e-6)


def test_a_share_of_the_rates_leaves_the_momentum() -> None:
    model = DetectionModel(load_spec("nano"), num_classes=2)
    plans = schedule()
    optimizer = build_optimizer(model, plans.settings, schedule=plans)
    plan = plans.at(10)
    apply_plan(optimizer, plan, share=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [plan.lr / 2, plan.lr / 2, plan.bias_lr / 2]
    assert all(group["momentum"] == plan.momentum for group in optimizer.param_groups)


def test_the_average_takes_running_statistics_along() -> None:
    model = nn.BatchNorm2d(2)
    ema = Ema(model, decay=0.5, ramp=1e-9)
    model(torch.randn(4, 2, 3, 3) + 5)
    ema.update(model)
    assert torch.allclose(ema.model.running_mean, model.running_mean / 2)
    assert not ema.model.weight.requires_grad


def test_biases_of_convolutions_decay_if_wanted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    plans = schedule(batch=64)
    counts = {}
    for wanted in (False, True):
        settings = OptimSettings(decay_biases=wanted, nesterov=False)
        optimizer = build_optimizer(model, settings, schedule=plans)
        decaying = [len(group["params"]) for group in optimizer.param_groups if group["weight_decay"]]
        counts[wanted] = sum(decaying)
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
        assert not any(group["nesterov"] for group in optimizer.param_groups)
    assert counts == {False: 1, True: 2}


def test_rows_far_from_the_head_learn_more_slowly_and_frozen_ones_not_at_all() -> None:
    model = DetectionModel(load_spec("nano"), num_classes=2)
    plans = schedule(layer_decay=0.9)
    optimizer = build_optimizer(model, plans.settings, schedule=plans)
    plan = plans.at(0)
    apply_plan(optimizer, plan, num_frozen=2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    rows = list(model.rows)
    for name, parameter in model.named_parameters():
        row = rows.index(name.split(".")[1]) if name.startswith("rows.") else len(rows)
        full = plan.bias_lr if name.endswith("bias") else plan.lr
        assert rates[id(parameter)] == pytest.approx(0 if row < 2 else full * 0.9 ** (len(rows) - row))
    apply_plan(optimizer, plan)
    assert min(group["lr"] for group in optimizer.param_groups) > 0
