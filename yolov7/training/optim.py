"""The optimizer and its parameter groups; the schedule of learning rates, momentum and gradient accumulation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from yolov7.settings import OptimSettings

_PPYOLOE_COSINE = 360 / 300  # length of the cosine relative to the run, which ends before it


@dataclass(frozen=True)
class StepPlan:
    """The values of a schedule at one step.

    Attributes:
        lr: The learning rate of all parameters but the biases.
        bias_lr: The learning rate of the biases.
        momentum: The momentum of SGD, or the first beta of AdamW.
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


def build_optimizer(model: nn.Module, settings: OptimSettings, *, schedule: Schedule) -> torch.optim.Optimizer:
    """Build SGD with momentum, or AdamW.

    There are three groups of parameters: convolution weights, others (batch norm and implicit vectors), and biases.
    Weight decay applies to convolution weights only; with `decay_biases`, the biases of convolutions belong to this
    group too. The setting holds for the nominal batch and is scaled with the batch that is really summed.

    Args:
        model: The model; parameters that need no gradient are left out.
        settings: The settings of the optimizer.
        schedule: The schedule, which tells how many images are summed.

    Returns:
        The optimizer; its last group holds the biases.
    """
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue  # frozen
            is_of_convolution = isinstance(module, nn.Conv2d)
            if is_of_convolution and (name == "weight" or settings.decay_biases):
                weights.append(parameter)
            elif name == "bias":
                biases.append(parameter)
            else:
                others.append(parameter)
    batch_share = schedule.batch_size * schedule.accumulate / settings.nominal_batch
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay * batch_share},
        {"params": others, "weight_decay": 0.0},
        {"params": biases, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr0, betas=(settings.momentum, 0.999), fused=True)
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.lr0, momentum=settings.momentum, nesterov=nesterov, fused=True)


def apply_plan(optimizer: torch.optim.Optimizer, plan: StepPlan, *, share: float = 1.0) -> None:
    """Set the momentum and the learning rates of an optimizer.

    Args:
        optimizer: An optimizer from `build_optimizer`.
        plan: The values to set.
        share: A factor on both learning rates.
    """
    for group in optimizer.param_groups:
        group["lr"] = share * plan.lr
        if "betas" in group:
            group["betas"] = (plan.momentum, group["betas"][1])
        else:
            group["momentum"] = plan.momentum
    optimizer.param_groups[-1]["lr"] = share * plan.bias_lr


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _half_cosine(progress: float) -> float:
    """Return 0 at the beginning and 1 at the end, with a cosine between them."""
    return (1 - math.cos(math.pi * progress)) / 2
