"""Recipes: the reference's settings by name, the order in which stated keys override them, and errors."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.experiment import Experiment, parse_experiment
from yolov7.errors import SettingError
from yolov7.recipes import PRESETS, RECIPES, resolve_settings
from yolov7.settings import AugmentSettings, TrainSettings

# of the reference's settings files: lrf, cls, obj, translate, scale, mixup, paste_in
REFERENCE = {
    "p5": (0.1, 0.3, 0.7, 0.2, 0.9, 0.15, 0.15),
    "p6": (0.2, 0.3, 0.7, 0.2, 0.9, 0.15, 0.15),
    "tiny": (0.01, 0.5, 1.0, 0.1, 0.5, 0.05, 0.05),
    "custom": (0.1, 0.3, 0.7, 0.2, 0.5, 0.0, 0.0),
}


def settings(**given: Any) -> TrainSettings:
    return TrainSettings.model_validate(given)


@pytest.mark.parametrize("name", REFERENCE)
def test_a_recipe_is_the_references_settings(name: str) -> None:
    found = settings(recipe=name)
    augment, loss, optim = found.augment, found.loss, found.optim
    differing = (
        loss.classification,
        loss.objectness,
        augment.translate,
        augment.scale,
        augment.mixup,
        augment.paste_in,
    )
    assert (optim.lr_final, *differing) == REFERENCE[name]
    assert (optim.lr0, optim.momentum, optim.weight_decay) == (0.01, 0.937, 0.0005)
    assert (augment.mosaic, augment.mosaic_nine, augment.flip_horizontal, augment.flip_vertical) == (1, 0.2, 0.5, 0)
    assert (augment.hsv_hue, augment.hsv_saturation, augment.hsv_value) == (0.015, 0.7, 0.4)
    assert (augment.degrees, augment.shear, augment.perspective, augment.copy_paste) == (0, 0, 0, 0)
    assert (loss.box, loss.anchor_threshold, loss.focal_gamma, loss.assigner) == (0.05, 4, 0, "ota")
    assert found.image_size == (1280 if name == "p6" else 640)


def test_keys_beside_a_recipe_win_as_deep_as_they_go() -> None:
    found = settings(recipe="p5", epochs=7, augment={"mixup": 0.5})
    assert (found.epochs, found.augment.mixup, found.augment.scale) == (7, 0.5, 0.9)


def test_settings_read_back_are_the_same() -> None:
    found = settings(recipe="p6", optim={"lr0": 0.3})
    assert TrainSettings.model_validate_json(found.model_dump_json()) == found


def test_every_recipe_names_known_keys() -> None:
    for name in RECIPES:
        assert settings(recipe=name, weights="w.safetensors").recipe == name


def test_fine_tuning_wants_weights() -> None:
    with pytest.raises(ValueError, match="name a weight file in weights"):
        settings(recipe="finetune")
    found = settings(recipe="finetune", weights="w.safetensors", freeze=None)
    assert found.freeze is None
    assert found.optim.warmup_epochs == 1


def params(**variant: Any) -> Experiment:
    return parse_experiment(
        {"train": {"recipe": "p5", "epochs": 30}, "variants": {"a": {"spec": "yolov7-tiny", **variant}}}, source="here"
    )


def test_a_variants_recipe_overrides_what_train_says_and_its_keys_the_recipe() -> None:
    found = params(train={"recipe": "tiny", "augment": {"mixup": 0.3}}).variant("a").train
    assert (found.recipe, found.epochs, found.augment.mixup) == ("tiny", 30, 0.3)
    assert found.loss.objectness == 1.0
    assert params().variant("a").train.loss.objectness == 0.7


@pytest.mark.parametrize("name", ["p7", 5, ["p5"]])
def test_an_unknown_recipe_is_told_with_those_there_are(name: object) -> None:
    with pytest.raises(ValueError, match=r"train\.recipe: input should be 'p5', 'p6'"):
        parse_experiment({"train": {"recipe": name}, "variants": {"a": {"spec": "nano"}}}, source="here")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"plugins": "mypkg"}, "plugins: must be a list, such as [mypkg], got 'mypkg'"),
        ({"seeds": 3}, "seeds: must be a list, such as [3], got 3"),
        ({"data": {"sources": {"path": "x"}}}, "data.sources: must be a list, got {'path': 'x'}"),
        ({"train": {"callbacks": "history"}}, "train.callbacks: must be a list, such as [history], got 'history'"),
        ({"train": {"augment": {"plugins": None}}}, "train.augment.plugins: must be a list, got None"),
        ({"tune": {"vary": "lr0"}}, "tune.vary: must be a list, such as [lr0], got 'lr0'"),
    ],
)
def test_a_value_in_the_place_of_a_list_is_told_in_the_words_of_yaml(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as raised:
        parse_experiment({"variants": {"a": {"spec": "nano"}}, **stated})
    assert str(raised.value).endswith(message)


def test_a_variant_swaps_scales_and_gets_an_auxiliary_head() -> None:
    spec = (
        params(swap={"n3": {"cardinality": 2}}, scale={"rule": "width", "width": 0.5}, auxiliary=True).variant("a").spec
    )
    assert spec.rows["n3"].num_branches == 2
    assert spec.rows["n3"].out == 32  # type: ignore[union-attr]
    assert spec.head.taps == ("n3", "n4", "n5")
    assert spec.name == "yolov7-tiny"


def test_a_variant_without_the_auxiliary_head_of_its_spec() -> None:
    assert not params(spec="yolov7-w6", auxiliary=False, train={"image_size": 1280}).variant("a").spec.head.taps


def test_a_mistake_in_a_swap_is_told_with_the_variant() -> None:
    with pytest.raises(ValueError, match=r"variants\.a.*nn3.*did you mean"):
        params(swap={"nn3": {"depth": 1}})


def test_best_epochs_and_last_epochs_exclude_each_other() -> None:
    for name in ("patience", "average_best"):
        with pytest.raises(ValueError, match=f"{name}=3 and swa_epochs=3 exclude each other"):
            settings(**{name: 3}, swa_epochs=3)
    assert [settings(**given).best_epochs for given in ({}, {"patience": 9}, {"patience": 9, "average_best": 4})] == [
        0,
        1,
        4,
    ]


ADAMW = {"optimizer": "adamw", "lr0": 0.004, "nominal_batch": 8}


def test_a_complete_recipe_is_not_mixed_with_the_optimizer_for_all_variants() -> None:
    """The demo's AdamW under a learning rate that is meant for SGD halved the AP of a model."""
    fine = {"recipe": "finetune", "weights": "w"}
    for train, variant in (({"optim": ADAMW}, fine), ({**fine, "optim": ADAMW}, {})):
        merged, notes = resolve_settings(train, variant)
        assert merged["optim"] == RECIPES["finetune"]["optim"]
        (note,) = [note for note in notes if "belong together" in note]
        assert "are not used: optim.optimizer=adamw, optim.lr0=0.004, optim.nominal_batch=8; state" in note
    merged, notes = resolve_settings({"optim": ADAMW, "loss": {"box": 0.8, "focal_gamma": 1.0}}, fine)
    assert merged["loss"] == {"focal_gamma": 1.0}  # the gains multiply the steps of SGD, but not those of AdamW
    assert "loss.box=0.8; state them for the variant to use them" in notes[0]
    merged, _ = resolve_settings({"optim": {"lr0": 0.05}}, fine)  # it is stated for trainings from scratch
    assert merged["optim"]["lr0"] == 0.002
    merged, notes = resolve_settings({**fine, "optim": {"lr0": 0.003}}, {})  # it is stated beside the recipe
    assert (merged["optim"]["lr0"], notes) == (0.003, ())


def test_the_learning_rate_of_fine_tuning_follows_a_stated_optimizer() -> None:
    fine = {"recipe": "finetune", "weights": "w"}
    merged, _ = resolve_settings({}, {**fine, "optim": {"optimizer": "adamw"}})
    assert (merged["optim"]["optimizer"], merged["optim"]["lr0"]) == ("adamw", 0.0002)
    assert settings(**fine, optim={"optimizer": "adamw"}).optim.lr0 == 0.0002
    merged, _ = resolve_settings({}, {**fine, "optim": {"optimizer": "adamw", "lr0": 0.001}})
    assert merged["optim"]["lr0"] == 0.001


def test_keys_stated_for_all_variants_stay_beside_the_recipe_small() -> None:
    assert resolve_settings({"recipe": "small", "optim": ADAMW}, {})[0]["optim"] == ADAMW
    merged, notes = resolve_settings({"optim": ADAMW, "epochs": 9}, {"recipe": "small"})
    assert merged == {"epochs": 9, "recipe": "small"}
    assert "state them for the variant to use them" in notes[0]
    gains = {"loss": {"box": 0.8}}
    assert resolve_settings({"optim": ADAMW, **gains}, {"recipe": "small"})[0]["loss"] == gains["loss"]
    assert resolve_settings({"optim": {"lr0": 0.1}, **gains}, {"recipe": "small"})[0]["loss"] == {}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_of_augmentation_is_a_name_for_all_keys_but_the_flips(name: str) -> None:
    others = {"flip_horizontal", "flip_vertical", "plugins"}
    assert PRESETS[name].keys() == AugmentSettings.model_fields.keys() - others
    found = settings(augment=name, recipe="p5").augment
    assert found.model_dump(exclude=others) == PRESETS[name]
    assert (
        settings(augment={"preset": name, "mosaic": 0.2}).augment
        == settings(augment={**PRESETS[name], "mosaic": 0.2}).augment
    )


def test_the_medium_preset_is_the_default() -> None:
    assert settings(augment="medium") == settings()


def test_a_preset_counts_where_it_is_stated() -> None:
    train, variant = {"augment": {"mosaic": 0.3, "degrees": 5.0}}, {"augment": "light"}
    assert resolve_settings(train, variant)[0]["augment"] == PRESETS["light"]
    merged, _ = resolve_settings({"augment": "strong", "recipe": "tiny"}, {"augment": {"mosaic": 0.0}})
    assert merged["augment"] == {"flip_horizontal": 0.5, **PRESETS["strong"], "mosaic": 0.0}


@pytest.mark.parametrize("given", ["lihgt", {"preset": "lihgt"}, {"preset": 3}])
def test_an_unknown_preset_is_told_with_those_there_are(given: object) -> None:
    with pytest.raises(ValueError, match=r"augment: the preset .* is unknown.*; name one of light, medium, strong"):
        parse_experiment({"train": {"augment": given}, "variants": {"a": {"spec": "nano"}}}, source="here")


def test_fine_tuning_does_not_depend_on_the_default_optimizer() -> None:
    optim = RECIPES["finetune"]["optim"]
    assert {"optimizer", "lr0", "lr_final", "momentum", "weight_decay", "warmup_epochs"} <= optim.keys()


def test_stated_keys_override_every_recipe() -> None:
    train = {"recipe": "p5", "epochs": 30, "augment": {"mixup": 0.3, "scale": 0.7}, "optim": {"lr0": 0.02}}
    variant = {"recipe": "tiny", "augment": {"scale": 0.1}}
    merged, notes = resolve_settings(train, variant)
    assert merged["recipe"] == "tiny"
    assert merged["epochs"] == 30
    assert merged["augment"] == RECIPES["tiny"]["augment"] | {"mixup": 0.3, "scale": 0.1}
    assert merged["optim"] == RECIPES["tiny"]["optim"] | {"lr0": 0.02}
    assert merged["loss"] == RECIPES["tiny"]["loss"]
    assert notes == (
        "recipe 'tiny' would set augment.mixup=0.05, but augment.mixup=0.3 is stated for all variants and is used; "
        "state the key for the variant to change it",
        "recipe 'tiny' would set optim.lr0=0.01, but optim.lr0=0.02 is stated for all variants and is used; "
        "state the key for the variant to change it",
    )


def test_no_note_is_made_of_keys_that_are_stated_beside_their_recipe() -> None:
    assert resolve_settings({"recipe": "p5", "image_size": 320}, {})[1] == ()
    assert resolve_settings({}, {"recipe": "p5", "image_size": 320})[1] == ()
    assert resolve_settings({"recipe": "p5"}, {"image_size": 320})[1] == ()
    assert resolve_settings({"image_size": 640}, {"recipe": "p5"})[1] == ()


def test_a_variant_inherits_or_drops_the_recipe_for_all_variants() -> None:
    assert resolve_settings({"recipe": "p6"}, {})[0]["image_size"] == 1280
    assert resolve_settings({"recipe": "p6"}, {"recipe": None}) == ({"recipe": None}, ())


@pytest.mark.parametrize("name", ["p7", 5, ["p5"], {}])
def test_an_unknown_recipe_is_left_for_validation(name: object) -> None:
    assert resolve_settings({"epochs": 3}, {"recipe": name}) == ({"epochs": 3, "recipe": name}, ())


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e308, -1.0, 10**400])
def test_numbers_that_make_no_sense_are_refused(value: float) -> None:
    """A warm-up of 1e308 epochs, for example, cannot be converted into a number of steps."""
    names = ("lr0", "weight_decay", "nominal_batch", "warmup_epochs", "warmup_bias_lr", "ema_ramp", "momentum")
    for name in names:
        with pytest.raises(ValueError, match=f"optim.{name}"):
            settings(optim={name: value})
    for name, field in TrainSettings.model_fields.items():
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            with pytest.raises(ValueError, match=name):
                settings(**{name: value})


# lr_final, momentum, mosaic, mixup, copy_paste, scale, first epoch of the closing phase of 300
FAMILIES = {
    "yolov5-low": (0.01, 0.937, 1, 0, 0, 0.5, 300),
    "yolov5-high": (0.1, 0.937, 1, 0.1, 0.1, 0.9, 300),
    "yolov4": (0.1, 0.937, 1, 0, 0, 0.9, 300),
    "yolov4-tiny": (0.1, 0.937, 1, 0, 0, 0.9, 300),
    "yolox": (0.05, 0.9, 1, 1, 0, 0.9, 284),
    "ppyoloe": (0.01, 0.9, 0, 0, 0, 0.7, 300),
    "u6": (0.01, 0.937, 1, 0.1, 0.2, 0.9, 300),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_of_another_family_has_its_settings(name: str) -> None:
    found = settings(recipe=name)
    augment, optim = found.augment, found.optim
    drawn = (augment.mosaic, augment.mixup, augment.copy_paste, augment.scale)
    assert (optim.lr_final, optim.momentum, *drawn, found.first_closing_epoch) == FAMILIES[name]
    assert (optim.lr0, optim.nominal_batch, optim.weight_decay, found.epochs) == (0.01, 64, 0.0005, 300)


def test_the_recipes_of_anchor_based_families_match_by_shape() -> None:
    for name, gains in {
        "yolov5-low": (0.05, 0.5, 1.0),
        "yolov5-high": (0.05, 0.3, 0.7),
        "yolov4": (0.05, 0.3, 0.6),
        "yolov4-tiny": (0.05, 0.5, 1.0),
    }.items():
        loss = settings(recipe=name).loss
        assert (loss.assigner, loss.box, loss.classification, loss.objectness) == ("anchor", *gains)
