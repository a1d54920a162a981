"""The recipe that is computed from the data: what it chooses, what it leaves alone, and where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts.files import stage_folder
from pipeline.experiment import parse_experiment
from pipeline.stages.resolve import training_inputs
from pipeline.stages.train import build_job
from tests.integration.runs import prepared
from yolov7.recipes import RECIPES
from yolov7.settings import TrainSettings
from yolov7.training.data_recipe import FROM_SCRATCH, DataFacts, Fitted, fit_to_data


def fit(images: int = 200, shares: tuple[float, ...] = (0.1, 0.5), **stated: Any) -> Fitted:
    settings = TrainSettings.model_validate({"recipe": "small", **stated})
    return fit_to_data(settings, DataFacts(images, np.array(shares)))


FEWEST = "the fewest epochs, although 30 of them have"


@pytest.mark.parametrize("images", [1, 25, 100, 200, 1000, 20_000])
@pytest.mark.parametrize("stated", [{}, {"epochs": 30}, {"weights": "w"}, {"batch_size": 32}])
def test_the_settings_are_valid_and_fit_the_length_of_the_run(images: int, stated: dict[str, Any]) -> None:
    found = fit(images, **stated).settings
    steps = found.epochs * -(-images // found.batch_size)
    assert found.batch_size <= max(images, stated.get("batch_size", 0))
    if not stated and 25 <= images <= 200:
        assert FROM_SCRATCH.steps <= steps <= 1.1 * FROM_SCRATCH.steps
    assert found.optim.nominal_batch == found.batch_size
    assert found.optim.warmup_epochs <= 0.05 * found.epochs + 0.01
    assert found.optim.ema_ramp == pytest.approx(0.1 * steps, abs=1)
    assert 1 / (1 - found.optim.ema_decay) == pytest.approx(max(10, 0.05 * steps), rel=0.2)
    assert 0 <= found.close_mosaic <= found.epochs / 5
    assert (found.optim.lr_final == RECIPES["finetune"]["optim"]["lr_final"]) == ("weights" in stated)
    assert (found.freeze, found.patience) == (None, 0)  # a patience would need a validation split


def test_stated_keys_stay_and_the_others_follow_from_them() -> None:
    stated = {"epochs": 30, "image_size": 320, "close_mosaic": 0, "augment": {"mosaic": 0.25}, "optim": {"lr0": 0.3}}
    found, reasons = fit(205, **stated)
    assert found.model_dump(include=stated.keys(), exclude={"augment", "optim"}) == {
        key: stated[key] for key in ("epochs", "image_size", "close_mosaic")
    }
    assert (found.augment.mosaic, found.optim.lr0, found.batch_size) == (0.25, 0.3, 4)
    assert not any(key in line for line in reasons for key in ("epochs=30:", "lr0=", "mosaic=0.25"))
    assert reasons[-1] == "recipe small: the run has 1,560 steps and processes 6,150 images"
    assert fit(205).settings.optim.lr0 == pytest.approx(FROM_SCRATCH.learning_rates["muon"] * (8 / 16) ** 0.5, rel=0.01)


def test_stated_keys_without_effect_beside_the_chosen_ones_are_told() -> None:
    stated = {
        "weights": "w",
        "freeze": "p3",
        "unfreeze_epochs": 200,
        "optim": {"nesterov": False},
        "loss": {"box": 0.1},
    }
    found, reasons = fit(200, **stated)
    assert found.epochs < 200
    assert [line for line in reasons if not line.startswith("recipe small: ")] == [
        f"unfreeze_epochs=200 has no effect on rows that would be released after the last epoch, with epochs: "
        f"{found.epochs}",
        "optim.nesterov=False has no effect with optim.optimizer: muon",
    ]
    train = {"recipe": "small", **stated}
    (note,) = parse_experiment({"variants": {"a": {"spec": "nano", "head": "anchor_free", "train": train}}}).notes
    assert note.startswith("variants.a.train: loss.box=0.1 has no effect on the head 'detect_dfl'")


def test_few_images_are_told_in_the_singular_and_plural() -> None:
    (one, *_, length), (three, *_) = fit(1, epochs=1).reasons, fit(3).reasons
    assert one == "recipe small: batch_size=1: an epoch has only 1 image"
    assert three == "recipe small: batch_size=3: an epoch has only 3 images"
    assert length == "recipe small: the run has 1 step and processes 1 image"


@pytest.mark.parametrize(
    ("images", "stated", "expected"),
    [
        (
            10,
            {"epochs": 2},
            {
                "batch_size=4": "the smallest batch, because even with it 2 epochs have only 6 of 2,000 steps",
                "close_mosaic=0": "12% of 2 epochs is less than half an epoch",
                "optim.ema_decay=0.9": "averages over 10 updates, the fewest, and not 5% of 6 updates",
            },
        ),
        (
            10,
            {"epochs": 1, "optim": {"nominal_batch": 64}},
            {
                "batch_size=4": "the smallest batch, because even with it 1 epoch has only 3 of 2,000 steps",
                "optim.ema_decay=0.9": "averages over 10 updates, the fewest, and not 5% of 1 update",
                "optim.ema_ramp=1.0": "10% of the run, at least 1 update",
            },
        ),
        (
            10,
            {"weights": "w"},
            {
                "epochs=100": "the most epochs, although 100 of them have only 300 of about 1,500 steps",
                "optim.ema_decay=0.9333": "averages over 5% of 300 updates",
            },
        ),
        (
            20_000,
            {},
            {"epochs=30": f"{FEWEST} 37,500 and not about 2,000 steps"},
        ),
        (
            1000,
            {"epochs": 9000},
            {
                "batch_size=16": "epochs=9000 should have at least 2,000 steps",
                "optim.ema_decay=0.9999": "averages over 10,000 updates, the most, and not 5% of 567,000 updates",
            },
        ),
        (20, {}, {"epochs=400": "about 2,000 steps, of which an epoch has 5, within 30 to 400 epochs"}),
        (1104, {"batch_size": 16}, {"epochs=30": f"{FEWEST} 2,070 and not about 2,000 steps"}),
        (
            1088,
            {"batch_size": 16},
            {"epochs=30": "about 2,000 steps, of which an epoch has 68, within 30 to 400 epochs"},
        ),
    ],
)
def test_the_reasons_say_where_a_limit_decides(images: int, stated: dict[str, Any], expected: dict[str, str]) -> None:
    reasons = dict(line.removeprefix("recipe small: ").split(": ", 1) for line in fit(images, **stated).reasons[:-1])
    assert expected.items() <= reasons.items()


def test_every_choice_has_a_reason_with_its_value() -> None:
    found, reasons = fit()
    chosen = {line.partition(": ")[2].partition("=")[0] for line in reasons[:-1]}
    changed = found.model_dump(exclude_defaults=True)
    leaves = {f"{group}.{key}" for group in ("augment", "optim") for key in changed.get(group, {})}
    assert leaves | (changed.keys() - {"augment", "optim", "recipe"}) <= chosen


def test_fitted_settings_stay_as_they_are() -> None:
    found = fit().settings
    assert fit_to_data(found, DataFacts(10, np.array([0.5]))) == (found, ())
    again = TrainSettings.model_validate_json(found.model_dump_json())
    assert fit_to_data(again, DataFacts(10, np.array([0.5]))).settings == found
    other = TrainSettings(recipe="tiny")
    assert fit_to_data(other, DataFacts(10, np.array([0.5]))) == (other, ())


def test_the_learning_rate_belongs_to_the_optimizer() -> None:
    muon, adamw, sgd = (
        fit(optim=stated).settings.optim for stated in ({}, {"optimizer": "adamw"}, {"optimizer": "sgd"})
    )
    assert (muon.optimizer, muon.momentum, muon.weight_decay) == ("muon", 0.9, 0.01)
    assert (adamw.momentum, adamw.weight_decay) == (0.9, 0.01)
    assert (sgd.momentum, sgd.weight_decay) == (0.937, 0.0005)
    assert adamw.lr0 == pytest.approx(0.1 * sgd.lr0, rel=0.01)


def test_small_boxes_are_reduced_less() -> None:
    scales = [fit(shares=(share,), image_size=320).settings.augment.scale for share in (0.2, 0.04, 0.03, 0.01)]
    assert scales == [0.5, 0.35, 0.15, 0.1]
    assert fit(shares=()).settings.augment.scale == 0.5


def test_stages_use_the_recipe_and_dvc_sees_what_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path, train_images=12, val_images=2, image_size=64)
    monkeypatch.chdir(tmp_path)

    def variant(**stated: Any) -> Any:
        content = {"train": {"recipe": "small", "image_size": 64, **stated}, "variants": {"a": {"spec": "nano"}}}
        return parse_experiment(content).variant("a")

    job = build_job(variant(), seed=0)
    assert (job.settings.batch_size, job.settings.epochs) == (4, 400)
    assert job.notes[0] == "recipe small: batch_size=4: there are fewer than 100 images"
    assert stage_folder("prepare").is_dir()
    inputs = [training_inputs(variant(**stated), seed=0) for stated in ({}, {"epochs": 300}, {"recipe": None})]
    assert inputs[0]["settings"] == inputs[1]["settings"] == inputs[2]["settings"]
    assert "recipe_small_code" in inputs[0]  # an edit of the recipe repeats the training
    assert inputs[0] != inputs[1] != inputs[2] != inputs[0]
    assert build_job(variant(epochs=300), seed=0).settings.epochs == 300
