"""Learning rates, momentum and optimizer steps of the reference, of YOLOX and of PP-YOLOE."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.golden.vectors import DATA
from yolov7.nn.model import DetectionModel
from yolov7.recipes import RECIPES
from yolov7.settings import OptimSettings
from yolov7.spec.spec_files import load_spec
from yolov7.training.optim import Schedule, apply_plan, build_optimizer, build_schedule

CASES = ("lr_p5_b16_nb100_e300", "lr_tiny_b64_nb400_e30")


def load_case(name: str) -> tuple[dict[str, Any], Schedule]:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        case = {key: file[key] for key in file.files}
    names = json.loads(str(case["hyp"]))
    names["lr_final"] = names.pop("lrf")
    settings = OptimSettings(schedule="reference", **names)
    batch, steps, epochs = (int(case[key]) for key in ("batch", "nb", "epochs"))
    return case, build_schedule(settings, batch_size=batch, steps_per_epoch=steps, epochs=epochs)


@pytest.mark.parametrize("name", CASES)
def test_rates_and_momentum_are_the_references(name: str) -> None:
    case, schedule = load_case(name)
    plans = [schedule.at(step) for step in range(len(case["lr"]))]
    rates = np.array([[plan.lr, plan.lr, plan.bias_lr] for plan in plans])  # batch norm, convolutions, biases
    np.testing.assert_allclose(rates, case["lr"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose([plan.momentum for plan in plans], case["momentum"], rtol=1e-12)
    assert schedule.warmup_steps == case["nw"]


@pytest.mark.parametrize("name", CASES)
def test_the_optimizer_moves_at_the_references_steps(name: str) -> None:
    case, schedule = load_case(name)
    steps = range(len(case["opt_step"]))
    assert [schedule.at(step).accumulate for step in steps] == case["accumulate"].tolist()
    assert [schedule.is_optimizer_step(step, pending=1) for step in steps] == case["opt_step"].tolist()


@pytest.mark.parametrize("name", CASES)
def test_the_optimizer_gets_the_rates_by_group_and_the_scaled_decay(name: str) -> None:
    case, schedule = load_case(name)
    model = DetectionModel(load_spec("nano"), num_classes=2)
    optimizer = build_optimizer(model, schedule.settings, schedule=schedule)
    apply_plan(optimizer, schedule.at(500))
    weights, others, biases = optimizer.param_groups
    np.testing.assert_allclose([others["lr"], weights["lr"], biases["lr"]], case["lr"][500], rtol=1e-12)
    assert weights["weight_decay"] == pytest.approx(float(case["weight_decay_scaled"]))


@pytest.mark.parametrize(("name", "batch"), [("yolox", 64), ("ppyoloe", 256)])
def test_rates_of_other_families(name: str, batch: int) -> None:
    with np.load(DATA / "baselines" / f"lr_{name}.npz", allow_pickle=False) as file:
        case = {key: file[key] for key in file.files}
    settings = OptimSettings.model_validate(RECIPES[name]["optim"])
    steps, epochs = int(case["iters_per_epoch"]), int(case["epochs"])
    schedule = build_schedule(settings, batch_size=batch, steps_per_epoch=steps, epochs=epochs)
    scale = batch / settings.nominal_batch  # the losses of both families are means, multiplied by this
    plans = [schedule.at(step) for step in case["iters"].tolist()]
    np.testing.assert_allclose([scale * plan.lr for plan in plans], case["lr"], rtol=1e-9, atol=1e-12)
    assert {plan.momentum for plan in plans} == {0.9}
    assert {plan.accumulate for plan in plans} == {1}
