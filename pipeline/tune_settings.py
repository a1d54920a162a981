"""The settings under `tune` in params.yaml: what `yolov7 tune` varies, and for how long. Imports no torch."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.data_settings import MAX_SEED
from yolov7.errors import shown, suggest
from yolov7.settings import TrainSettings
from yolov7.system.settings_base import Positive, Settings, describe_fault, nested_settings

TuneRule = Literal["compound", "width", "depth", "free"]
TuneSpace = Literal["scaling", "train"]
OPTIONS_OF: Mapping[TuneSpace, frozenset[str]] = {  # settings that only one space uses
    "scaling": frozenset({"rules", "max_gflops", "max_params", "max_latency_ms"}),
    "train": frozenset({"vary"}),
}

_GROUPS = ("optim", "loss", "augment")
_ALONE = ("class_balance", "close_mosaic", "multi_scale")  # settings outside the groups that can be varied too
_OFF_SHARE = 0.25  # of the draws of a probability: exactly the lower end


def tune_option(name: str) -> str:
    """Return the option of `yolov7 tune` that replaces a setting.

    Args:
        name: The name of the setting, or of one of its items, such as `rules.0`.
    """
    return "--rule" if name.startswith("rules") else f"--{name.replace('_', '-')}"


class SettingRange(Settings):
    """The values that `yolov7 tune --space train` tries for one setting of the training.

    Attributes:
        low: The smallest value.
        high: The largest value.
        scale: On which scale values are drawn evenly. `log` suits values whose ratios matter. `decay` is the
            logarithm of 1 - value and suits values just below 1, such as 0.9 and 0.999. `probability` is linear, but a
            quarter of the values is exactly `low`, because a probability of 0 switches something off.
    """

    low: float
    high: float
    scale: Literal["linear", "log", "decay", "probability"] = "linear"

    @model_validator(mode="after")
    def _check_ends(self) -> SettingRange:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be less than high={self.high:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low={self.low:g} must be greater than 0 with scale: log; use scale: linear")
        if self.scale == "decay" and self.high >= 1:
            raise ValueError(f"high={self.high:g} must be less than 1 with scale: decay; use scale: linear")
        if self.scale == "probability" and not 0 <= self.low < self.high <= 1:
            raise ValueError(f"{self.low:g} to {self.high:g} must be within 0 and 1 with scale: probability")
        return self

    def draw(self, generator: random.Random) -> float:
        """Draw a value.

        Args:
            generator: Source of randomness.
        """
        share = generator.random()
        if self.scale == "probability":
            share = max(0.0, (share - _OFF_SHARE) / (1 - _OFF_SHARE))
        return self.at(share)

    def at(self, position: float) -> float:
        """Return the value at a position on the scale, rounded to about three digits.

        Args:
            position: 0 at `low`, 1 at `high`.
        """
        start, end = self._scaled(self.low), self._scaled(self.high)
        value = start + position * (end - start)
        match self.scale:
            case "log":
                value = _rounded(math.exp(value))
            case "decay":
                value = round(1 - _rounded(math.exp(value)), 12)
            case "linear" | "probability":
                value = round(value, 2 - math.floor(math.log10(self.high - self.low)))
        return min(max(value, self.low), self.high)

    def position(self, value: float) -> float:
        """Return where a value lies on the scale: 0 at `low`, 1 at `high`; values outside count as the nearer end.

        Args:
            value: A value of the setting.
        """
        start, end = self._scaled(self.low), self._scaled(self.high)
        return (self._scaled(min(max(value, self.low), self.high)) - start) / (end - start)

    def _scaled(self, value: float) -> float:
        match self.scale:
            case "log":
                return math.log(value)
            case "decay":
                return math.log(1 - value)
            case "linear" | "probability":
                return value


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def list_numbers() -> dict[str, bool]:
    """List the settings of the training that can be varied: numbers that change neither its length nor the model.

    Returns:
        Whether the setting is an integer, by its name, such as `optim.lr0`.
    """
    found: dict[str, bool] = {}
    for group in _GROUPS:
        model = nested_settings(TrainSettings, group)
        for name, field in (model.model_fields if model else {}).items():
            if field.annotation in (int, float):
                found[f"{group}.{name}"] = field.annotation is int
    return found | {name: TrainSettings.model_fields[name].annotation is int for name in _ALONE}


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{"optim.lr0": 0.1}` into `{"optim": {"lr0": 0.1}}`.

    Args:
        values: Values by the name of the setting.
    """
    content: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        (content.setdefault(group, {}) if group else content)[name] = value
    return content


class TuneSettings(Settings):
    """What `yolov7 tune` varies, and for how long; the options of the command take precedence.

    The space `scaling` uses `rules`, `max_*`, `image_sizes`, `auxiliary`, `strata`, `candidates` and `warm_start`; the
    space `train` uses `vary` and `train_space`.
    """

    space: TuneSpace = Field(
        "scaling", description="What is varied; scaling: the model; train: the settings of its training."
    )
    vary: tuple[str, ...] = Field(
        (), description="Settings or groups (optim, loss, augment) to vary with space: train; empty: the whole space."
    )
    train_space: dict[str, SettingRange | None] = Field(
        default_factory=dict,
        description="Ranges by setting, such as `optim.lr0`, in place of the default ones; null: do not vary it.",
    )

    budget: str = Field(
        "30m",
        description="Wall-clock time (30m, 8h), trials (40trials) or training compute (2e18flop).",
    )
    base: str | None = Field(None, description="Variant or spec to start from; null: the first variant.")
    rules: tuple[TuneRule, ...] = Field(
        ("compound", "width", "depth"), min_length=1, description="Scaling rules; free: any depths and widths."
    )
    max_gflops: Positive | None = Field(None, description="Largest GFLOPs of the deployed model.")
    max_params: Positive | None = Field(None, description="Largest number of parameters, in millions.")
    max_latency_ms: Positive | None = Field(None, description="Largest latency at batch size 1 on this device.")
    image_sizes: tuple[Annotated[int, Field(ge=32)], ...] = Field(
        (), description="Image sizes to choose from; empty: that of the base."
    )
    auxiliary: bool = Field(False, description="Also try the other choice: with or without an auxiliary head.")
    trials: int = Field(16, ge=1, description="Trials that should fit into the budget; epochs are reduced for it.")
    epochs: int | None = Field(None, ge=1, description="Fixed number of epochs per trial; null: at most train.epochs.")
    strata: int = Field(4, ge=1, le=20, description="Number of ranges of GFLOPs that are searched in turn.")
    candidates: int = Field(16, ge=2, le=1000, description="Number of models that are drawn for each rule.")
    sampler: Literal["kriging", "random"] = Field(
        "kriging", description="How models are chosen: by a Gaussian process or at random."
    )
    halving: float = Field(2.0, ge=1.0, description="A share 1/halving of the trials continues at each rung (ASHA).")
    warm_start: bool = Field(False, description="Start trials with the weights of the most similar finished trial.")
    trials_per_gpu: int = Field(1, ge=1, le=100, description="Number of trials that share a GPU.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed of the search and of every training.")

    @field_validator("rules", "image_sizes")
    @classmethod
    def _check_different(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"{shown(list(values))} must be different; name each once")
        return values

    @field_validator("train_space")
    @classmethod
    def _check_space(cls, space: dict[str, SettingRange | None]) -> dict[str, SettingRange | None]:
        for key, values in space.items():
            _check_key(key, list_numbers())
            for end in () if values is None else (values.low, values.high):
                try:
                    TrainSettings.model_validate(nest({key: end}))
                except ValidationError as error:
                    raise ValueError(describe_fault(error, TrainSettings)) from None
        return space

    @field_validator("vary")
    @classmethod
    def _check_vary(cls, vary: tuple[str, ...]) -> tuple[str, ...]:
        for key in vary:
            _check_key(key, [*list_numbers(), *_GROUPS])
        return vary


def _check_key(key: str, known: Collection[str]) -> None:
    if key not in known:
        same_name = [name for name in known if name.rpartition(".")[2] == key]
        hint = f"; did you mean {same_name[0]!r}?" if same_name else suggest(key, known)
        hint = hint or f"; possible ones: {', '.join(known)}"
        raise ValueError(f"{shown(key)} is no setting of the training that can be varied{hint}")
