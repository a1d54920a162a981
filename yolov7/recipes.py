"""Named settings of a training: the reference's, those of other families, one for fine-tuning, one from the data.

A recipe is a set of keys: `{recipe: p5, epochs: 100}` is p5 with 100 epochs. Keys that a recipe does not name keep
their defaults. The reference's settings files name neither batch size nor schedule, and so its recipes do not either.
No recipe names the batch size, because all learning rates are stated for 64 images, or the number of epochs, which is
300 for all families. `docs/design/training.md` lists what the recipes of other families approximate or leave out.

Training settings are stated for all variants and, key by key, for single ones. The order, from weak to strong, is:
defaults, the keys of the recipe, the keys that are stated for all variants, the keys that are stated for the variant.
A variant's recipe replaces the recipe for all variants.

A learning rate suits one optimizer only. The recipes `finetune` and `small` are therefore complete: their optimizer and
its settings belong together. Where a variant names one of them, keys of `optim` that are stated for all variants do not
apply to it. The keys of `small` depend on the training data; `yolov7.training.data_recipe` computes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from yolov7.errors import shown, suggest

RecipeName = Literal[
    "p5",
    "p6",
    "tiny",
    "custom",
    "finetune",
    "small",
    "yolov5-low",
    "yolov5-high",
    "yolov4",
    "yolov4-tiny",
    "yolox",
    "ppyoloe",
    "u6",
]

COMPLETE = ("finetune", "small")  # recipes whose optimizer and learning rate belong together
_GAINS = ("box", "objectness", "classification")

_SGD = {"optimizer": "sgd", "lr0": 0.01, "lr_final": 0.1, "momentum": 0.937, "weight_decay": 0.0005}
_LINEAR_SGD = {**_SGD, "lr_final": 0.01, "decay": "linear"}
_FINE = {"lr_final": 0.1, "warmup_epochs": 1.0, "nominal_batch": 16, "ema_ramp": 200.0}
_FINE_SGD = {"optimizer": "sgd", "lr0": 0.002, "momentum": 0.937, "weight_decay": 0.0005, **_FINE}
_FINE_ADAPTIVE = {"lr0": 0.0002, "momentum": 0.9, "weight_decay": 0.01, **_FINE}  # of other optimizers
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
    "optim": _SGD,
}


_YOLOV5 = {
    "close_mosaic": 0,
    "augment": {"mosaic": 1.0, "mixup": 0.0, "translate": 0.1, "scale": 0.5, "flip_horizontal": 0.5},
    "loss": {"assigner": "anchor", "box": 0.05, "classification": 0.5, "objectness": 1.0},
    "optim": _LINEAR_SGD,
}
_YOLOV4 = {
    "close_mosaic": 0,
    "anchors": "spec",
    "augment": {"mosaic": 1.0, "mixup": 0.0, "translate": 0.1, "scale": 0.9, "flip_horizontal": 0.5},
    "loss": {"assigner": "anchor", "box": 0.05, "classification": 0.3, "objectness": 0.6, "objectness_by_size": False},
    "optim": _SGD,
}


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings.

    Args:
        base: A nested mapping; it is not changed.
        overrides: Values that replace those of `base`, with the same nesting.

    Returns:
        A new mapping. Where both values are mappings, they are merged in the same way.
    """
    merged = dict(base)
    for key, value in overrides.items():
        is_nested = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = merge(base[key], value) if is_nested else value
    return merged


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "small": {},  # its keys depend on the data
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
    "yolov5-low": _YOLOV5,  # of the models N and S
    "yolov5-high": merge(  # of the models M, L and X, and of those with four levels
        _YOLOV5,
        {
            "augment": {"mixup": 0.1, "copy_paste": 0.1, "scale": 0.9},
            "loss": {"classification": 0.3, "objectness": 0.7},
            "optim": {"lr_final": 0.1},
        },
    ),
    "yolov4": _YOLOV4,
    "yolov4-tiny": merge(_YOLOV4, {"loss": {"classification": 0.5, "objectness": 1.0, "objectness_balance": "coarse"}}),
    "yolox": {
        "close_mosaic": 16,
        "multi_scale": 0.3,
        "augment": {
            "mosaic": 1.0,
            "mixup": 1.0,
            "degrees": 10.0,
            "shear": 2.0,
            "translate": 0.1,
            "scale": 0.9,
            "flip_horizontal": 0.5,
        },
        "loss": {"simota": "r25"},
        "optim": {
            "optimizer": "sgd",
            "schedule": "yolox",
            "lr0": 0.01,
            "lr_final": 0.05,
            "flat_share": 0.05,
            "momentum": 0.9,
            "weight_decay": 0.0005,
            "warmup_epochs": 5.0,
            "ema_decay": 0.9998,
        },
    },
    "ppyoloe": {
        "close_mosaic": 0,
        "multi_scale": 0.2,
        "augment": {"mosaic": 0.0, "mixup": 0.0, "translate": 0.2, "scale": 0.7, "flip_horizontal": 0.5},
        "loss": {"atss_epochs": 100},
        "optim": {
            "optimizer": "sgd",
            "nesterov": False,
            "schedule": "ppyoloe",
            "lr0": 0.01,
            "momentum": 0.9,
            "weight_decay": 0.0005,
            "decay_biases": True,
            "warmup_epochs": 5.0,
            "ema": "corrected",
            "ema_decay": 0.9998,
        },
    },
    "u6": {
        "close_mosaic": 0,
        "augment": {
            "mosaic": 1.0,
            "mixup": 0.1,
            "copy_paste": 0.2,
            "translate": 0.1,
            "scale": 0.9,
            "flip_horizontal": 0.5,
        },
        "optim": {**_LINEAR_SGD, "clip_norm": 10.0},
    },
    "finetune": {  # not from the reference: small steps and weak augmentation, because the weights are good already
        "epochs": 50,
        "close_mosaic": 10,
        "freeze": "p3",
        "patience": 20,
        "augment": {"mosaic": 0.5, "mixup": 0.0, "translate": 0.1, "scale": 0.3},
        "optim": _FINE_SGD,
    },
}


_COLOURS = {"hsv_hue": 0.015, "hsv_saturation": 0.7, "hsv_value": 0.4}
_NO_PASTING = {"copy_paste": 0.0, "paste_in": 0.0}
_NO_TILT = {"degrees": 0.0, "shear": 0.0, "perspective": 0.0}

# Presets of augmentation name every key but the flips, because it depends on the objects whether they may be flipped.
PRESETS: Mapping[str, Mapping[str, float]] = {
    "light": {
        "mosaic": 0.0,
        "mosaic_nine": 0.0,
        "mixup": 0.0,
        **_NO_PASTING,
        **_NO_TILT,
        "translate": 0.1,
        "scale": 0.25,
        "hsv_hue": 0.01,
        "hsv_saturation": 0.4,
        "hsv_value": 0.3,
    },
    "medium": {
        "mosaic": 1.0,
        "mosaic_nine": 0.0,
        "mixup": 0.05,
        **_NO_PASTING,
        **_NO_TILT,
        "translate": 0.1,
        "scale": 0.5,
        **_COLOURS,
    },
    "strong": {
        "mosaic": 1.0,
        "mosaic_nine": 0.2,
        "mixup": 0.15,
        "copy_paste": 0.1,
        "paste_in": 0.15,
        **_NO_TILT,
        "translate": 0.2,
        "scale": 0.9,
        **_COLOURS,
    },
}


def expand_preset(augment: Any) -> Any:
    """Replace the name of a preset of augmentation by its keys.

    Args:
        augment: The name of a preset; or settings of augmentation, which may name a `preset` beside keys that override
            it.

    Returns:
        The settings. What names no preset is returned as it is.

    Raises:
        ValueError: There is no preset of that name.
    """
    if isinstance(augment, str):
        augment = {"preset": augment}
    if not isinstance(augment, Mapping) or "preset" not in augment:
        return augment
    name = augment["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        hint = suggest(name, PRESETS) if isinstance(name, str) else ""
        raise ValueError(f"the preset {shown(name)} is unknown{hint}; name one of {', '.join(PRESETS)}")
    return {**PRESETS[name], **{key: value for key, value in augment.items() if key != "preset"}}


def expand_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys of the recipe that a mapping names, and those of its preset of augmentation.

    Args:
        given: Settings that may name a `recipe`.

    Returns:
        The settings; keys of the recipe are added where the settings do not state them. An unknown recipe or preset
        adds nothing and is left for validation.
    """
    given = _with_preset(given)
    return merge(_keys_of(given.get("recipe"), given), given)


def resolve_settings(train: Mapping[str, Any], variant: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Merge the training settings that are stated for all variants and for one variant.

    Args:
        train: The settings for all variants as they are stated, without defaults.
        variant: The settings for one variant as they are stated, without defaults.

    Returns:
        The merged settings, in which all keys of the recipe are explicit; and one sentence for each key of the
        variant's recipe that has no effect because another value is stated for all variants, or for the settings of an
        optimizer that have no effect because the recipe has its own.
    """
    train, variant = _with_preset(train), _with_preset(variant)
    name = variant.get("recipe", train.get("recipe"))
    train, notes = _without_other_optimizer(train, variant, name)
    stated = merge(train, variant)
    keys = _keys_of(name, stated)
    merged = merge(keys, stated)
    if name is None or "recipe" not in variant:
        return merged, tuple(notes)
    stated_for_all = {path: value for path, value in leaves(train) if path != ("recipe",)}
    stated_for_one = dict(leaves(variant))
    for path, value in leaves(keys):
        other = stated_for_all.get(path, value)
        if other != value and path not in stated_for_one:
            key = ".".join(path)
            notes.append(
                f"recipe {name!r} would set {key}={value}, but {key}={other} is stated for all variants and is used; "
                "state the key for the variant to change it"
            )
    return merged, tuple(notes)


def _without_other_optimizer(
    train: Mapping[str, Any], variant: Mapping[str, Any], name: object
) -> tuple[Mapping[str, Any], list[str]]:
    """Drop the `optim` for all variants where it must not be mixed with that of a complete recipe, and say so.

    Gains of the loss scale the steps of SGD, but not those of AdamW and Muon. Those that are stated beside an optimizer
    of the other kind than the recipe's are therefore dropped too. `finetune` has SGD, `small` has Muon.
    """
    optim = train.get("optim")
    if name not in COMPLETE or not isinstance(optim, Mapping) or not optim:
        return train, []
    is_beside = "recipe" not in variant  # both are stated for all variants
    is_sgd = optim.get("optimizer", "sgd") == "sgd"
    if is_beside and (name == "small" or is_sgd):
        return train, []
    loss = train.get("loss")
    loss = loss if isinstance(loss, Mapping) and is_sgd != (name == "finetune") else {}
    gains = {gain: loss[gain] for gain in _GAINS if gain in loss}
    unused = {f"optim.{key}": value for key, value in optim.items()} | {f"loss.{key}": gains[key] for key in gains}
    stated = ", ".join(f"{key}={value}" for key, value in unused.items())
    note = (
        f"recipe {name!r} has an optimizer and a learning rate that belong together, so these settings for all "
        f"variants are not used: {stated}; state them for the variant to use them"
    )
    rest = {key: value for key, value in train.items() if key != "optim"}
    if gains:
        rest["loss"] = {key: value for key, value in loss.items() if key not in _GAINS}
    return rest, [note]


def _with_preset(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings with the keys of their preset of augmentation; an unknown one is left for validation."""
    if "augment" not in settings:
        return settings
    try:
        return {**settings, "augment": expand_preset(settings["augment"])}
    except ValueError:
        return settings


def _keys_of(name: object, stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys of a recipe, with the learning rate that suits the stated optimizer."""
    keys = RECIPES.get(name, {}) if isinstance(name, str) else {}
    optim = stated.get("optim")
    optimizer = optim.get("optimizer", "sgd") if isinstance(optim, Mapping) else "sgd"
    return {**keys, "optim": _FINE_ADAPTIVE} if name == "finetune" and optimizer != "sgd" else keys


def leaves(settings: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the values of a nested mapping that are not mappings, with the keys that lead to them.

    Args:
        settings: The mapping.
        path: The keys that lead to the mapping itself.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value
