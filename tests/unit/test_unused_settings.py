"""The list of settings without effect, compared with what the loss, the schedule and the optimizer really do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.experiment import parse_experiment
from yolov7.criterion.choice import make_loss
from yolov7.nn.model import DetectionModel
from yolov7.settings import LossSettings, OptimSettings, TrainSettings
from yolov7.spec.spec_files import resolve_spec
from yolov7.structures import HeadMaps, Targets
from yolov7.training.ema import Ema
from yolov7.training.optim import build_optimizer, build_schedule
from yolov7.training.unused_settings import settings_without_effect

NARROW = {"image_size": 64, "scale": {"rule": "width", "width": 0.25}}
HEADS: dict[str, dict[str, Any]] = {
    "detect": {"base": "nano", "image_size": 64},
    "detect with an auxiliary head": {"base": "nano", "image_size": 64, "auxiliary": True},
    "yolox": {"base": "yolox-s", **NARROW},
    "ppyoloe": {"base": "ppyoloe-s", **NARROW},
    "u6": {"base": "nano", "image_size": 64, "head": "anchor_free"},
    "one to one": {"base": "nano", "image_size": 64, "head": "one_to_one"},
}
OTHER: dict[str, Any] = {  # a value of each setting of the loss that differs from its default
    "assigner": "anchor",
    "simota": "r15",
    "atss_epochs": 3,
    "box_loss": "giou",
    "box": 0.1,
    "objectness": 0.5,
    "classification": 0.3,
    "objectness_loss": "varifocal",
    "classification_loss": "varifocal",
    "objectness_balance": "coarse",
    "objectness_by_size": False,
    "label_smoothing": 0.2,
    "focal_gamma": 1.5,
    "objectness_pos_weight": 2.0,
    "classification_pos_weight": 2.0,
    "anchor_threshold": 2.0,
    "merge_duplicate_cells": False,
    "four_cells": True,
    "auxiliary": "independent",
    "auxiliary_gain": 0.5,
    "auxiliary_constraint": False,
}
VARIFOCAL = {"objectness_loss": "varifocal", "classification_loss": "varifocal"}
REFUSED = {"objectness_pos_weight", "classification_pos_weight", "label_smoothing"}  # beside VARIFOCAL
OWN = {"assigner": "tests.own_code.FirstCells"}


def loss_of(model: DetectionModel, maps: HeadMaps, targets: Targets, loss: dict[str, Any]) -> list[Tensor]:
    settings = TrainSettings.model_validate({"image_size": 64, "epochs": 9, "loss": loss})
    return list(make_loss(model, settings)(maps, targets))


@pytest.mark.parametrize("stated", [{}, {"assigner": "anchor"}, VARIFOCAL, OWN], ids=["", "anchor", "varifocal", "own"])
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_depends_on_exactly_the_other_settings(head: str, stated: dict[str, Any]) -> None:
    if head == "one to one" and stated == OWN:
        pytest.skip("this head takes no own assigner")
    torch.manual_seed(0)
    model = DetectionModel(resolve_spec(HEADS[head], name="model"), num_classes=3).train()
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    boxes = torch.cat((torch.rand(40, 2) * 0.8 + 0.1, torch.rand(40, 2) * 0.2 + 0.03), dim=1)
    targets = Targets(torch.arange(40) // 20, torch.arange(40) % 3, boxes)
    with torch.no_grad():
        maps = model(torch.rand(2, 3, 64, 64))
        before = loss_of(model, maps, targets, stated)
        settings = TrainSettings.model_validate({"loss": stated})
        unused = settings_without_effect(model.spec.head, settings)
        for name, value in OTHER.items():
            if name in stated:
                continue
            if stated == VARIFOCAL and name in REFUSED:
                assert f"loss.{name}" in unused
                continue
            after = loss_of(model, maps, targets, {**stated, name: value})
            is_same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            is_listed = f"loss.{name}" in unused
            assert is_same or not is_listed, name
            assert is_listed or not is_same or stated == OWN, name  # this own assigner ignores the maps
    assert OTHER.keys() == LossSettings.model_fields.keys()


OPTIM_OTHER: dict[str, Any] = {
    "decay": "linear",
    "flat_share": 0.3,
    "lr0": 0.02,
    "lr_final": 0.3,
    "momentum": 0.8,
    "nominal_batch": 128,
    "warmup_epochs": 3.9,
    "warmup_share": 0.05,
    "warmup_momentum": 0.5,
    "warmup_bias_lr": 0.3,
    "nesterov": False,
    "weight_decay": 0.1,
    "ema_ramp": 50.0,
    "ema_decay": 0.5,
}


def behaviour_of(model: nn.Module, stated: dict[str, Any]) -> tuple[Any, ...]:
    settings = OptimSettings.model_validate(stated)
    schedule = build_schedule(settings, batch_size=16, steps_per_epoch=300, epochs=40)
    optimizer = build_optimizer(model, settings, schedule=schedule)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    ema = Ema(model, decay=settings.ema_decay, ramp=settings.ema_ramp, form=settings.ema)
    return [schedule.at(step) for step in range(0, 12_000, 50)], groups, [ema.decay_at(n) for n in range(1, 50)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("schedule", ["scaled", "reference", "yolox", "ppyoloe"])
@pytest.mark.parametrize("ema", ["ramp", "corrected"])
def test_the_optimizer_depends_on_exactly_the_other_settings(optimizer: str, schedule: str, ema: str) -> None:
    stated = {"optimizer": optimizer, "schedule": schedule, "ema": ema}
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    before = behaviour_of(model, stated)
    head = resolve_spec(HEADS["detect"], name="model").head
    unused = settings_without_effect(head, TrainSettings.model_validate({"optim": stated}))
    same = {name for name, value in OPTIM_OTHER.items() if behaviour_of(model, {**stated, name: value}) == before}
    assert same == {name.removeprefix("optim.") for name in unused if name.startswith("optim.")}


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ({"loss": {"box": 0.1}}, "loss.box=0.1 has no effect on the head 'detect_dfl'"),
        ({"optim": {"flat_share": 0.1}}, "optim.flat_share=0.1 has no effect with optim.schedule: scaled"),
        ({"distil": {"outputs": 0.5}}, "distil.outputs=0.5 has no effect without distil.teacher"),
        (
            {"distil": {"teacher": "teacher.safetensors", "outputs": 0.0}},
            "distil.teacher=teacher.safetensors has no effect with distil.outputs: 0 and distil.features: 0",
        ),
        ({"low_resolution": 0.25}, "low_resolution=0.25 has no effect with low_resolution_share: 0"),
        (
            {"low_resolution_share": 0.2, "epochs": 2},
            "low_resolution_share=0.2 has no effect because that is less than half an epoch with epochs: 2",
        ),
        (
            {"weights": "w.safetensors", "freeze": "p3", "unfreeze_epochs": 50, "epochs": 2},
            "unfreeze_epochs=50 has no effect on rows that would be released after the last epoch, with epochs: 2",
        ),
        ({"loss": {"box": 0.05, "four_cells": True}, "low_resolution_share": 0.3, "epochs": 2}, ""),
    ],
)
def test_a_stated_setting_without_effect_is_said_for_each_variant(stated: dict[str, Any], sentence: str) -> None:
    variants = {"a": {"spec": "nano", "head": "anchor_free", "train": stated}, "b": {"spec": "nano"}}
    notes = parse_experiment({"variants": variants}).notes
    assert len(notes) == bool(sentence)
    assert all(note.startswith(f"variants.a.train: {sentence}") for note in notes)


def test_a_setting_that_is_stated_for_all_variants_is_said_where_it_has_no_effect() -> None:
    variants = {"a": {"spec": "nano", "head": "anchor_free"}, "b": {"spec": "nano"}}
    notes = parse_experiment({"train": {"loss": {"box_loss": "siou"}}, "variants": variants}).notes
    assert len(notes) == 1
    assert notes[0].startswith("variants.a.train: loss.box_loss=siou has no effect on the head 'detect_dfl'")
