"""The optimizer and its parameter groups; the schedule of learning rates, momentum and gradient accumulation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
from torch import nn

from yolov7.nn.model import DetectionModel
from yolov7.settings import OptimSettings
from yolov7.training.muon import MuonWithAdamW

_PPYOLOE_COSINE = 360 / 300  # length of the cosine relative to the run, which ends before it
_MATRICES, _WEIGHTS, _OTHERS, _BIASES = range(4)  # kinds of parameters


@dataclass(frozen=True)
class StepPlan:
    """The values of a schedule at one step.

    Attributes:
        lr: The learning rate of all parameters but the biases.
        bias_lr: The learning rate of the biases.
        momentum: The momentum of SGD and of Muon, or the first beta of AdamW.
        accumulate: How many steps' gradients are summed for one step of the optimizer.
    """

    lr: float
    bias_lr: float
    momentum: float
    accumulate: int


@dataclass(frozen=True)
class Schedule(ABC):
    """Learning rates, momentum and gradient accumulation by step: a warm-up, then a decay to `lr0 * lr_final`.

    Attributes:
        settings: The settings of the optimizer.
        batch_size: Images per step, over all workers.
        steps_per_epoch: Steps per epoch.
        epochs: Epochs of the run.
    """

    settings: OptimSettings
    batch_size: int
    steps_per_epoch: int
    epochs: int

    @property
    def total_steps(self) -> int:
        """The number of steps of the run."""
        return self.steps_per_epoch * self.epochs

    @property
    def accumulate(self) -> int:
        """How many steps make up the nominal batch after the warm-up."""
        return max(1, round(self.settings.nominal_batch / self.batch_size))

    @property
    def warmup_steps(self) -> int:
        """The number of steps of the warm-up: `warmup_epochs`, at most `warmup_share` of the run."""
        wanted = self.settings.warmup_epochs * self.steps_per_epoch
        return int(min(wanted, self.settings.warmup_share * self.total_steps))

    @abstractmethod
    def at(self, step: int) -> StepPlan:
        """Return the values at a step.

        Args:
            step: The number of the step, counted from 0 over the whole run.
        """

    def is_optimizer_step(self, step: int, *, pending: int) -> bool:
        """Return whether the optimizer takes a step after a training step.

        Args:
            step: The number of the training step.
            pending: How many steps' gradients are summed, this step's included.
        """
        return pending >= self.at(step).accumulate

    @property
    def steps_at_epoch_end(self) -> bool:
        """Whether the optimizer also takes a step at the end of an epoch, so that no gradient is carried over."""
        return True

    def _decayed(self, progress: float) -> float:
        """Return the learning rate as a share of `lr0` after a share of the run, from 0 to 1."""
        done = progress if self.settings.decay == "linear" else _half_cosine(progress)
        return 1 + (self.settings.lr_final - 1) * done


@final
@dataclass(frozen=True)
class ScaledSchedule(Schedule):
    """A schedule whose warm-up takes `warmup_epochs`, at most `warmup_share` of the run; the rate changes every step.

    The reference's warm-up takes at least 1000 steps, so that short runs on small data sets never leave it.
    """

    def at(self, step: int) -> StepPlan:
        """Return the values at a step, counted from 0 over the whole run."""
        settings = self.settings
        lr = settings.lr0 * self._decayed(step / max(1, self.total_steps - 1))
        if step >= self.warmup_steps:
            return StepPlan(lr=lr, bias_lr=lr, momentum=settings.momentum, accumulate=self.accumulate)
        share = (step + 1) / (self.warmup_steps + 1)
        return StepPlan(
            lr=share * lr,
            bias_lr=_between(settings.warmup_bias_lr, lr, share) if settings.optimizer == "sgd" else share * lr,
            momentum=_between(settings.warmup_momentum, settings.momentum, share),
            accumulate=max(1, round(_between(1, self.accumulate, share))),
        )


@final
@dataclass(frozen=True)
class ReferenceSchedule(Schedule):
    """The reference implementation's schedule: a warm-up of at least 1000 steps, then a decay that changes by epoch.

    The decay lags one epoch behind if the warm-up has ended within an epoch.
    """

    @property
    def warmup_steps(self) -> int:
        """The number of steps of the warm-up."""
        return max(round(self.settings.warmup_epochs * self.steps_per_epoch), 1000)

    def at(self, step: int) -> StepPlan:
        """Return the values at a step, counted from 0 over the whole run."""
        settings, epoch = self.settings, step // self.steps_per_epoch
        if step > self.warmup_steps:
            late = epoch > self.warmup_steps // self.steps_per_epoch  # the epoch of the warm-up's end keeps its rate
            lr = settings.lr0 * self._decayed((epoch - late) / self.epochs)
            return StepPlan(lr=lr, bias_lr=lr, momentum=settings.momentum, accumulate=self.accumulate)
        share = step / self.warmup_steps
        lr = settings.lr0 * self._decayed(epoch / self.epochs)
        return StepPlan(
            lr=share * lr,
            bias_lr=_between(settings.warmup_bias_lr, lr, share),
            momentum=_between(settings.warmup_momentum, settings.momentum, share),
            accumulate=max(1, round(_between(1, settings.nominal_batch / self.batch_size, share))),
        )

    def is_optimizer_step(self, step: int, *, pending: int) -> bool:
        """Return whether the optimizer takes a step after a training step with `pending` summed gradients."""
        return step % self.at(step).accumulate == 0

    @property
    def steps_at_epoch_end(self) -> bool:
        """Whether the optimizer also takes a step at the end of an epoch."""
        return False


@final
@dataclass(frozen=True)
class SimpleSchedule(Schedule):
    """The schedules of YOLOX and PP-YOLOE: all rates warm up from 0, and momentum and accumulation are constant.

    The warm-up takes `warmup_epochs`, at most `warmup_share` of the run.
    """

    def at(self, step: int) -> StepPlan:
        """Return the values at a step, counted from 0 over the whole run."""
        settings = self.settings
        lr = settings.lr0 * self._share(step)
        return StepPlan(lr=lr, bias_lr=lr, momentum=settings.momentum, accumulate=self.accumulate)

    def _share(self, step: int) -> float:
        settings, warmup, steps = self.settings, self.warmup_steps, self.total_steps
        if settings.schedule == "ppyoloe":
            if step < warmup:
                return step / warmup
            return 1 - _half_cosine((step - warmup) / max(1.0, _PPYOLOE_COSINE * steps - warmup))
        if step < warmup:
            return (step / warmup) ** 2
        decaying = steps - warmup - settings.flat_share * steps
        return 1 + (settings.lr_final - 1) * _half_cosine(min(1.0, (step - warmup) / max(1.0, decaying)))


def build_schedule(settings: OptimSettings, *, batch_size: int, steps_per_epoch: int, epochs: int) -> Schedule:
    """Build the schedule that the settings name.

    Args:
        settings: The settings of the optimizer.
        batch_size: Images per step, over all workers.
        steps_per_epoch: Steps per epoch.
        epochs: Epochs of the run.

    Returns:
        The schedule of the whole run.
    """
    match settings.schedule:
        case "scaled":
            return ScaledSchedule(settings, batch_size, steps_per_epoch, epochs)
        case "reference":
            return ReferenceSchedule(settings, batch_size, steps_per_epoch, epochs)
        case "yolox" | "ppyoloe":
            return SimpleSchedule(settings, batch_size, steps_per_epoch, epochs)


def build_optimizer(
    model: nn.Module,
    settings: OptimSettings,
    *,
    schedule: Schedule,
    by_row: bool = False,
    is_bfloat16: bool = False,
) -> torch.optim.Optimizer:
    """Build SGD with momentum, AdamW, or Muon with AdamW.

    There are three kinds of parameters: convolution weights, others (batch norm and implicit vectors), and biases.
    Weight decay applies to convolution weights only; with `decay_biases`, the biases of convolutions belong to this
    kind too. The setting holds for the nominal batch and is scaled with the batch that is really summed. Each kind is
    one group, or one group per row if the learning rate depends on the row. Muon has an additional kind: the weights
    of convolutions without bias, which batch norm follows.

    Args:
        model: The model; parameters that need no gradient are left out.
        settings: The settings of the optimizer.
        schedule: The schedule, which tells how many images are summed.
        by_row: Whether every row needs its own groups even without `layer_decay`.
        is_bfloat16: Whether the model is trained in bfloat16, so that Muon computes with it too.

    Returns:
        The optimizer; its last groups hold the biases.
    """
    rows: list[tuple[nn.Module, dict[str, Any]]] = [(model, {})]
    if by_row or settings.layer_decay < 1:
        rows = _rows(model, decay=settings.layer_decay)
    kinds = [(_sort_parameters(module, settings), keys) for module, keys in rows]
    decay = settings.weight_decay * schedule.batch_size * schedule.accumulate / settings.nominal_batch
    matrices, *plain = [
        [
            {"params": of_kind[kind], "weight_decay": decay if kind <= _WEIGHTS else 0.0, **keys}
            | ({"is_bias": kind == _BIASES} if keys else {})
            for of_kind, keys in kinds
            if of_kind[kind] or not keys
        ]
        for kind in (_MATRICES, _WEIGHTS, _OTHERS, _BIASES)
    ]
    groups = list(chain.from_iterable(plain))
    match settings.optimizer:
        case "muon":
            betas = (settings.momentum, 0.999)
            return MuonWithAdamW(matrices, groups, lr=settings.lr0, betas=betas, is_bfloat16=is_bfloat16)
        case "adamw":
            return torch.optim.AdamW(groups, lr=settings.lr0, betas=(settings.momentum, 0.999), fused=True)
        case "sgd":
            nesterov = settings.nesterov and settings.momentum > 0
            return torch.optim.SGD(groups, lr=settings.lr0, momentum=settings.momentum, nesterov=nesterov, fused=True)


def _rows(model: nn.Module, *, decay: float) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Return the rows of a model and its head, with the keys of their groups."""
    assert isinstance(model, DetectionModel)
    modules = [*model.rows.values(), model.head]
    return [
        (module, {"row": number, "layer_share": decay ** (len(modules) - 1 - number)})
        for number, module in enumerate(modules)
    ]


def _sort_parameters(root: nn.Module, settings: OptimSettings) -> tuple[list[nn.Parameter], ...]:
    """Return the parameters that need a gradient by kind."""
    kinds: tuple[list[nn.Parameter], ...] = ([], [], [], [])
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue  # frozen
            is_of_convolution = isinstance(module, nn.Conv2d)
            if is_of_convolution and (name == "weight" or settings.decay_biases):
                is_matrix = settings.optimizer == "muon" and module.bias is None
                kinds[_MATRICES if is_matrix else _WEIGHTS].append(parameter)
            else:
                kinds[_BIASES if name == "bias" else _OTHERS].append(parameter)
    return kinds


def apply_plan(optimizer: torch.optim.Optimizer, plan: StepPlan, *, share: float = 1.0, num_frozen: int = 0) -> None:
    """Set the momentum and the learning rates of an optimizer.

    Args:
        optimizer: An optimizer from `build_optimizer`.
        plan: The values to set.
        share: A factor on both learning rates.
        num_frozen: How many rows, from the first one, have a learning rate of 0. The optimizer must have been built
            by row if this is not 0.
    """
    groups = optimizer.param_groups
    for group in groups:
        lr = plan.bias_lr if group.get("is_bias", group is groups[-1]) else plan.lr
        group["lr"] = 0.0 if group.get("row", num_frozen) < num_frozen else share * lr * group.get("layer_share", 1.0)
        if "betas" in group:
            group["betas"] = (plan.momentum, group["betas"][1])
        else:
            group["momentum"] = plan.momentum


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _half_cosine(progress: float) -> float:
    """Return 0 at the beginning and 1 at the end, with a cosine between them."""
    return (1 - math.cos(math.pi * progress)) / 2
