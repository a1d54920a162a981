"""Named settings of a training: the reference's for each kind of model, and one for fine-tuning. Imports nothing heavy.

A recipe stands for its keys: `{recipe: p5, epochs: 100}` is p5 for 100 epochs. What a recipe does not name keeps its
default. Batch size and schedule are no part of the reference's settings files, so they are none of a recipe either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

RecipeName = Literal["p5", "p6", "tiny", "custom", "finetune"]

_P5 = {
    "image_size": 640,
    "augment": {
        "mosaic": 1.0,
        "mosaic_nine": 0.2,
        "mixup": 0.15,
        "paste_in": 0.15,
        "translate": 0.2,
        "scale": 0.9,
        "flip_horizontal": 0.5,
    },
    "loss": {"box": 0.05, "classification": 0.3, "objectness": 0.7},
    "optim": {"optimizer": "sgd", "lr0": 0.01, "lr_final": 0.1, "momentum": 0.937, "weight_decay": 0.0005},
}


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `overrides` in the place of its own, as deep as both are mappings."""
    merged = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = merge(base[key], value) if nested else value
    return merged


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "p5": _P5,
    "p6": merge(_P5, {"image_size": 1280, "optim": {"lr_final": 0.2}}),
    "tiny": merge(
        _P5,
        {
            "augment": {"mixup": 0.05, "paste_in": 0.05, "translate": 0.1, "scale": 0.5},
            "loss": {"classification": 0.5, "objectness": 1.0},
            "optim": {"lr_final": 0.01},
        },
    ),
    "custom": merge(_P5, {"augment": {"mixup": 0.0, "paste_in": 0.0, "scale": 0.5}}),
    "finetune": {  # ours: the weights are good already, so smaller steps, less of what is strange, a start that stays
        "epochs": 50,
        "close_mosaic": 10,
        "freeze": "p3",
        "patience": 20,
        "augment": {"mosaic": 0.5, "mixup": 0.0, "translate": 0.1, "scale": 0.3},
        "optim": {"lr0": 0.002, "lr_final": 0.1, "warmup_epochs": 1.0, "nominal_batch": 16, "ema_ramp": 200.0},
    },
}


def expand_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those of the recipe that they name, if they do, where they have none themselves."""
    name = given.get("recipe")
    recipe = RECIPES.get(name, {}) if isinstance(name, str) else {}
    return merge(recipe, given)


def resolve_settings(train: Mapping[str, Any], variant: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Temporary: the rule of the final version."""
    name = variant.get("recipe", train.get("recipe"))
    recipe = RECIPES.get(name, {}) if isinstance(name, str) else {}
    return merge(merge(recipe, train), variant), ()
