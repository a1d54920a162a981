"""The settings of a training that a search varies: their ranges, and the settings of the trials."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from pipeline.tune_settings import SettingRange, TuneSettings, list_numbers, nest
from pipeline.tuning.search.space import Candidate
from yolov7.errors import SettingError
from yolov7.recipes import merge
from yolov7.settings import TrainSettings
from yolov7.spec.graph import ModelSpec
from yolov7.training.unused_settings import settings_without_effect

STATED = "stated"  # what a candidate with the stated settings has in place of scaling rules
MOST_CANDIDATES = 1000  # settings that are drawn; the sampler chooses among them
_DRAWS = 5  # attempts for each wanted candidate, because rounded values may be the same
_SHARES = (0.25, 0.5, 1.0)  # of the settings that differ from the stated ones in a draw
_SHOWN = 2  # settings in a label

# Ranges by setting. A number f stands for the range from 1/f of the stated value to f times it, on a logarithmic scale.
DEFAULT_RANGES: Mapping[str, SettingRange | float] = MappingProxyType(
    {
        "optim.lr0": 8.0,
        "optim.lr_final": SettingRange(low=0.005, high=0.5, scale="log"),
        "optim.warmup_share": SettingRange(low=0.0, high=0.3),
        "optim.momentum": SettingRange(low=0.8, high=0.98, scale="decay"),
        "optim.weight_decay": 10.0,
        "optim.ema_decay": SettingRange(low=0.9, high=0.9999, scale="decay"),
        "optim.ema_ramp": 8.0,
        "loss.box": 4.0,
        "loss.objectness": 4.0,
        "loss.classification": 4.0,
        "augment.mosaic": SettingRange(low=0.0, high=1.0, scale="probability"),
        "augment.mixup": SettingRange(low=0.0, high=0.3, scale="probability"),
        "augment.scale": SettingRange(low=0.0, high=0.9),
        "augment.translate": SettingRange(low=0.0, high=0.3),
        "augment.hsv_hue": SettingRange(low=0.0, high=0.05),
        "augment.hsv_saturation": SettingRange(low=0.0, high=0.9),
        "augment.hsv_value": SettingRange(low=0.0, high=0.9),
        "augment.flip_horizontal": SettingRange(low=0.0, high=0.5, scale="probability"),
        "augment.flip_vertical": SettingRange(low=0.0, high=0.5, scale="probability"),
    }
)


def resolve_ranges(settings: TuneSettings, train: TrainSettings, spec: ModelSpec) -> dict[str, SettingRange]:
    """Return the ranges of the settings that a search varies.

    Settings without an effect on this training are left out, such as the gains of a loss that has none. So are default
    ranges around a stated value of 0, because something that is switched off has no scale.

    Args:
        settings: The settings `tune`.
        train: The stated settings of the training.
        spec: The model.

    Raises:
        SettingError: If no setting is left, or if `tune` names a setting without an effect.
    """
    useless = settings_without_effect(spec.head, train)
    named = {*settings.vary, *(key for key, values in settings.train_space.items() if values)} & useless.keys()
    if named:
        key = min(named)
        raise SettingError(f"tune: {key} has no effect {useless[key]}; leave it out of vary and train_space")
    ranges: dict[str, SettingRange] = {}
    for key in list_numbers():
        found = settings.train_space.get(key, DEFAULT_RANGES.get(key))
        if isinstance(found, float):
            found = _range_around(read_setting(train, key), factor=found)
        group, _, _ = key.rpartition(".")
        if key in settings.vary and found is None:
            raise SettingError(
                f"tune.vary: {key} has no default range; state it, such as "
                f"tune.train_space: {{{key}: {{low: 0.1, high: 0.5}}}}"
            )
        if found is not None and key not in useless and (not settings.vary or {key, group} & set(settings.vary)):
            ranges[key] = found
    _check_groups(settings, ranges, useless)
    if not ranges:
        raise SettingError("tune: no setting of the training is left to vary; name fewer as null in tune.train_space")
    return ranges


def draw_settings(
    base: Candidate, ranges: Mapping[str, SettingRange], train: TrainSettings, generator: random.Random
) -> tuple[Candidate, ...]:
    """Draw different settings for the training of one model: first the stated ones, then random ones.

    A draw changes about a quarter, half or all of the settings, so that there are draws near the stated settings too.

    Args:
        base: The model.
        ranges: The ranges of the settings.
        train: The stated settings.
        generator: Source of randomness.

    Returns:
        At most `MOST_CANDIDATES` candidates.
    """
    stated = {key: read_setting(train, key) for key in ranges}
    found: dict[str, Candidate] = {}
    draws = _draw_values(ranges, stated, generator)
    for _, values in zip(range(_DRAWS * MOST_CANDIDATES), draws, strict=False):
        key = hashlib.sha256(json.dumps([base.key, values]).encode()).hexdigest()[:8]
        if key in found:
            continue
        found[key] = replace(
            base,
            key=key,
            label=_label(ranges, stated, values),
            rules=() if found else (STATED,),
            train=tuple(values.items()),
            features=tuple((name, ranges[name].position(value)) for name, value in values.items()),
        )
        if len(found) == MOST_CANDIDATES:
            break
    return tuple(found.values())


def read_setting(train: TrainSettings, key: str) -> float:
    """Return the value of a setting.

    Args:
        train: The settings of a training.
        key: The name of the setting, such as `optim.lr0`.

    Raises:
        SettingError: The value is `auto`.
    """
    group, _, name = key.rpartition(".")
    part = getattr(train, group) if group else train
    value: float | str = part.model_dump(include={name})[name]
    if isinstance(value, str):
        raise SettingError(f"{key}={value} cannot be varied; state a number for it below train")
    return value


def with_values(train: TrainSettings, values: Mapping[str, float]) -> TrainSettings:
    """Return validated settings with other values.

    Args:
        train: The settings of a training.
        values: The new values by the name of the setting.
    """
    return TrainSettings.model_validate(merge(train.model_dump(), nest(values)))


def _draw_values(
    ranges: Mapping[str, SettingRange], stated: dict[str, float], generator: random.Random
) -> Iterator[dict[str, float]]:
    yield stated
    is_integer = list_numbers()
    while True:
        share, values = generator.choice(_SHARES), dict(stated)
        for key, allowed in ranges.items():
            if generator.random() < share:
                value = allowed.draw(generator)
                values[key] = round(value) if is_integer[key] else value
        yield values


def _range_around(stated: float, *, factor: float) -> SettingRange | None:
    return SettingRange(low=stated / factor, high=stated * factor, scale="log") if stated > 0 else None


def _check_groups(settings: TuneSettings, ranges: Mapping[str, SettingRange], useless: Mapping[str, str]) -> None:
    """Check that each group in `vary` has a setting with an effect, if its settings have ranges at all."""
    for group in settings.vary:
        keys = [key for key in list_numbers() if key.startswith(f"{group}.")]
        left_out = [key for key in keys if key in useless and key in DEFAULT_RANGES]
        if left_out and not any(key in ranges for key in keys):
            others = [key for key in keys if key not in useless and key not in settings.train_space]
            remedy = f", or state a range of {' or '.join(others)} in tune.train_space" if others else ""
            raise SettingError(
                f"tune.vary: no setting of {group} that has a range has an effect {useless[left_out[0]]}; leave "
                f"{group} out of vary{remedy}"
            )


def _label(ranges: Mapping[str, SettingRange], stated: Mapping[str, float], values: Mapping[str, float]) -> str:
    """Return the settings that differ most from the stated ones, such as `lr0 0.031, mixup 0.2 and 9 more`."""

    def distance(key: str) -> float:
        return abs(ranges[key].position(values[key]) - ranges[key].position(stated[key]))

    changed = sorted((key for key in values if values[key] != stated[key]), key=distance, reverse=True)
    shown = [f"{key.rpartition('.')[2]} {values[key]:g}" for key in changed[:_SHOWN]]
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return ", ".join(shown) + more if changed else "stated settings"
