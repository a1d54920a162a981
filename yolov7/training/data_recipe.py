"""The recipe `small`: settings of a training that are computed from the number of its images and the sizes of boxes.

What decides how much a detector learns from few images is the number of steps of the optimizer, not the number of
epochs. The recipe therefore begins with a number of steps and derives the other settings from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from yolov7.data.box_sizes import fitted_sides
from yolov7.data.index import ImageIndex
from yolov7.errors import counted
from yolov7.recipes import RECIPES, leaves, merge
from yolov7.settings import TrainSettings
from yolov7.training.unused_settings import depends_on_data, stated_without_effect

NAME = "small"


@dataclass(frozen=True)
class Rules:
    """The constants of the recipe.

    Attributes:
        steps: The number of training steps that a run should have.
        epochs: The fewest and most epochs.
        batches: The batch sizes to choose from, the largest first.
        usual_batch: The batch size of runs whose number of epochs is free.
        few_images: With fewer images than this, the smallest batch is chosen.
        optimizer: The optimizer, if none is stated.
        learning_rates: The learning rate of each optimizer for `base_batch` images per step; it grows with the square
            root of the batch.
        clip_norm: The largest norm of the gradient of a step.
        base_batch: See `learning_rates`.
        warmup_share: The length of the warm-up as a share of the run.
        most_warmup_epochs: The longest warm-up in epochs.
        ema_share: The share of the run over which the moving average extends.
        ema_decays: The smallest and largest decay of the moving average.
        ema_ramp_share: The share of the run in which the decay of the moving average grows.
        closing_share: The share of the epochs without mosaic at the end.
        mosaic: The probability of a mosaic.
        most_scale: The largest value of `augment.scale`.
        fewest_pixels: A box of the smallest tenth keeps at least this many pixels after scaling.
        validations: About the number of validations in a run.
    """

    steps: int
    epochs: tuple[int, int]
    learning_rates: Mapping[str, float]
    mosaic: float
    most_scale: float
    optimizer: str = "muon"
    clip_norm: float = 10.0
    batches: tuple[int, ...] = (16, 8, 4)
    usual_batch: int = 8
    few_images: int = 100
    base_batch: int = 16
    warmup_share: float = 0.05
    most_warmup_epochs: float = 3.0
    ema_share: float = 0.05
    ema_decays: tuple[float, float] = (0.9, 0.9999)
    ema_ramp_share: float = 0.1
    closing_share: float = 0.12
    fewest_pixels: float = 8.0
    validations: int = 50


FROM_SCRATCH = Rules(
    steps=2000,
    epochs=(30, 400),
    learning_rates={"muon": 0.0056, "sgd": 0.01, "adamw": 0.001},
    mosaic=1.0,
    most_scale=0.5,
)
FROM_WEIGHTS = Rules(
    steps=1500,
    epochs=(20, 100),
    learning_rates={"muon": 0.0056, "sgd": 0.002, "adamw": 0.0002},
    mosaic=0.5,
    most_scale=0.3,
)
_AS_FINETUNE = "as in the recipe finetune, because training starts from weights"
_OF_OTHERS = {"momentum": 0.9, "weight_decay": 0.01}  # of optimizers other than SGD


@dataclass(frozen=True)
class DataFacts:
    """What the recipe needs to know of the training split.

    Attributes:
        images: The number of images.
        shares: (m,) the shorter side of each box as a share of the longer side of its image.
    """

    images: int
    shares: NDArray[np.float64]


class Fitted(NamedTuple):
    """Settings that fit the data.

    Attributes:
        settings: The settings, in which all keys of the recipe are explicit.
        reasons: One line for each key that was chosen, with its value and the reason.
    """

    settings: TrainSettings
    reasons: tuple[str, ...]


def describe_data(index: ImageIndex) -> DataFacts:
    """Return what the recipe needs to know of a training split.

    Args:
        index: The split.

    Returns:
        The facts; crowd regions do not count as boxes.
    """
    return DataFacts(len(index), fitted_sides(index, image_size=1)[~index.crowd].min(axis=1, initial=1.0))


def fit_to_data(settings: TrainSettings, facts: DataFacts) -> Fitted:
    """Replace the recipe `small` by the settings that it stands for with these data.

    Keys that are stated, which pydantic remembers, stay as they are, and the other keys follow from them. Settings that
    were fitted once are returned as they are.

    Args:
        settings: The settings of a training.
        facts: What is known of its training split.

    Returns:
        The settings and the reasons; the same settings without reasons if they name another recipe or none.
    """
    if settings.recipe != NAME:
        return Fitted(settings, ())
    stated = settings.model_dump(exclude_unset=True)
    is_fine = settings.weights is not None
    choices = _Choices(stated, FROM_WEIGHTS if is_fine else FROM_SCRATCH, facts)
    if is_fine:
        choices.start_from_weights()
    choices.choose_length()
    choices.choose_steps()
    choices.choose_samples(settings.image_size)
    fitted = TrainSettings.model_validate(merge(choices.chosen, stated))
    names = (".".join(path) for path, _ in leaves(stated))
    useless = stated_without_effect(None, fitted, (name for name in names if depends_on_data(name, recipe=NAME)))
    return Fitted(fitted, (*choices.describe(), *useless))


def steps_of_epoch(images: int, batch_size: int) -> int:
    """Return the number of training steps in which each image is drawn once."""
    return -(-images // batch_size)


def _why_batch(epochs: int, each: int, rules: Rules) -> str:
    """Explain the batch size that was chosen for a stated number of epochs, each of which has `each` steps."""
    if epochs * each >= rules.steps:
        return f"epochs={epochs} should have at least {rules.steps:,} steps"
    length = f"{counted(epochs, 'epoch')} {'has' if epochs == 1 else 'have'} only {epochs * each:,}"
    return f"the smallest batch, because even with it {length} of {rules.steps:,} steps"


def _why_epochs(each: int, rules: Rules) -> str:
    """Explain the number of epochs that was chosen, if each of them has `each` steps."""
    fewest, most = rules.epochs
    if most * each < rules.steps:
        return f"the most epochs, although {most} of them have only {most * each:,} of about {rules.steps:,} steps"
    if (fewest - 1) * each >= rules.steps:
        return (
            f"the fewest epochs, although {fewest} of them have {fewest * each:,} and not about {rules.steps:,} steps"
        )
    return f"about {rules.steps:,} steps, of which an epoch has {each:,}, within {fewest} to {most} epochs"


def _why_decay(updates: float, rules: Rules) -> str:
    """Explain the decay that was chosen for a moving average with this number of updates."""
    share = f"{rules.ema_share:.0%} of {counted(round(updates), 'update')}"
    fewest, most = (round(1 / (1 - decay)) for decay in rules.ema_decays)
    if rules.ema_share * updates < fewest:
        return f"averages over {fewest} updates, the fewest, and not {share}"
    if rules.ema_share * updates > most:
        return f"averages over {most:,} updates, the most, and not {share}"
    return f"averages over {share}"


@final
class _Choices:
    """The choices of the recipe, one after the other; each depends on those before it and on the stated keys."""

    def __init__(self, stated: Mapping[str, Any], rules: Rules, facts: DataFacts) -> None:
        self.chosen: dict[str, Any] = {}
        self._stated, self._rules, self._facts = stated, rules, facts
        self._reasons: list[str] = []

    def start_from_weights(self) -> None:
        """Take what does not depend on the data from the recipe for fine-tuning."""
        fine = RECIPES["finetune"]
        for name in sorted(fine["augment"].keys() - {"mosaic", "scale"}):
            self._choose(f"augment.{name}", fine["augment"][name], _AS_FINETUNE)
        self._choose("optim.lr_final", fine["optim"]["lr_final"], _AS_FINETUNE)

    def choose_length(self) -> None:
        """Choose the batch size and the number of epochs; either may be stated."""
        rules, images, epochs = self._rules, self._facts.images, self._stated.get("epochs")
        fewest, most = rules.epochs
        drawn = (fewest if epochs is None else epochs) * images
        largest = next((size for size in rules.batches if drawn >= size * rules.steps), None)
        if epochs is not None:
            batch = largest or rules.batches[-1]
            why = _why_batch(epochs, steps_of_epoch(images, batch), rules)
        elif largest is not None and largest > rules.usual_batch:
            batch, why = largest, f"{images:,} images give at least {rules.steps:,} steps in any case"
        elif images < rules.few_images:
            batch, why = rules.batches[-1], f"there are fewer than {rules.few_images} images"
        else:
            batch, why = rules.usual_batch, "small batches give many steps for the same compute"
        if images < batch:
            batch, why = max(1, images), f"an epoch has only {counted(images, 'image')}"
        batch = self._choose("batch_size", batch, why)
        each = steps_of_epoch(images, batch)
        epochs = self._choose(
            "epochs",
            min(max(math.ceil(rules.steps / each), fewest), most),
            _why_epochs(each, rules),
        )
        validations = f"fewer than {2 * rules.validations} validations"
        self._choose("validate_every", max(1, epochs // rules.validations), validations)
        share, closing = f"{rules.closing_share:.0%}", round(rules.closing_share * epochs)
        why = f"the last {share} of the epochs show whole images"
        if not closing:
            why = f"{share} of {counted(epochs, 'epoch')} is less than half an epoch"
        self._choose("close_mosaic", closing, why)

    def choose_steps(self) -> None:
        """Choose the optimizer, its learning rate, the warm-up and the moving average."""
        rules, batch, epochs = self._rules, self._value("batch_size"), self._value("epochs")
        optimizer = self._choose("optim.optimizer", rules.optimizer, "it learns more in few steps than SGD and AdamW")
        nominal = self._choose("optim.nominal_batch", batch, "every step moves the weights")
        if optimizer in rules.learning_rates:
            base = rules.learning_rates[optimizer]
            lr = float(f"{base * math.sqrt(nominal / rules.base_batch):.3g}")
            reason = f"{base:g} for {rules.base_batch} images, times the square root of {nominal}/{rules.base_batch}"
            self._choose("optim.lr0", lr, f"{reason}, for {optimizer}")
        if optimizer != "sgd":
            for name, value in _OF_OTHERS.items():
                self._choose(f"optim.{name}", value, f"usual for {optimizer}")
        self._choose("optim.clip_norm", rules.clip_norm, "a single large gradient cannot make the run diverge")
        warmup = round(min(rules.warmup_share * epochs, rules.most_warmup_epochs), 2)
        longest = f"{rules.most_warmup_epochs:g} epochs"
        self._choose("optim.warmup_epochs", warmup, f"{rules.warmup_share:.0%} of the run, at most {longest}")
        updates = max(1.0, epochs * steps_of_epoch(self._facts.images, batch) / max(1, round(nominal / batch)))
        lowest, highest = rules.ema_decays
        decay = round(min(max(1 - 1 / max(1.0, rules.ema_share * updates), lowest), highest), 4)
        self._choose("optim.ema_decay", decay, _why_decay(updates, rules))
        ramp = float(max(1, round(rules.ema_ramp_share * updates)))
        self._choose("optim.ema_ramp", ramp, f"{rules.ema_ramp_share:.0%} of the run, at least 1 update")

    def choose_samples(self, image_size: int) -> None:
        """Choose the augmentation that depends on the data, and the anchors."""
        rules, shares = self._rules, self._facts.shares
        self._choose("augment.mosaic", rules.mosaic, "mosaics show objects beside those of other images")
        scale, why = rules.most_scale, "no box is known"
        if len(shares):
            side = max(float(np.quantile(shares, 0.1)) * image_size, 1e-9)
            largest = math.floor(20 * (1 - rules.fewest_pixels / side)) / 20
            scale = min(max(largest, 0.1), rules.most_scale)
            why = (
                f"9 of 10 boxes are at least {side:.0f} pixels wide and high at image_size={image_size}, and at least "
                f"{side * (1 - scale):.0f} after scaling"
            )
        self._choose("augment.scale", scale, why)
        self._choose("anchors", "auto", "fitted to the boxes if those of the spec fit too few")

    def describe(self) -> tuple[str, ...]:
        """Return the reasons, and how much is computed."""
        epochs, batch = self._value("epochs"), self._value("batch_size")
        if not self._reasons:
            return ()
        total, each = epochs * self._facts.images, steps_of_epoch(self._facts.images, batch)
        length = f"the run has {counted(epochs * each, 'step')} and processes {counted(total, 'image')}"
        return tuple(f"recipe {NAME}: {line}" for line in (*self._reasons, length))

    def _choose(self, path: str, value: Any, reason: str) -> Any:
        """Choose the value of a key unless it is stated; return the value that counts."""
        group, _, key = path.rpartition(".")
        place = self.chosen.setdefault(group, {}) if group else self.chosen
        stated = self._stated.get(group, {}) if group else self._stated
        if key in stated:
            return stated[key]
        if group:
            self.chosen[group] = {**place, key: value}
        else:
            self.chosen[key] = value
        self._reasons.append(f"{path}={value}: {reason}")
        return value

    def _value(self, key: str) -> Any:
        return self._stated.get(key, self.chosen.get(key))
