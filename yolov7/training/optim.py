"""The optimizer's parameter groups, and the schedule of learning rates, momentum and gradient accumulation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from yolov7.settings import OptimSettings


@dataclass(frozen=True)
class StepPlan:
    """What holds at one step."""

    lr: float
    bias_lr: float
    momentum: float
    accumulate: int  # steps whose gradients are summed before the optimizer moves


@dataclass(frozen=True)
class Schedule(ABC):
    """Rates, momentum and gradient accumulation, step by step: a warm-up, then a cosine to `lr0 * lr_final`."""

    settings: OptimSettings
    batch_size: int
    steps_per_epoch: int
    epochs: int

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def accumulate(self) -> int:
        """Steps that make up the nominal batch after the warm-up."""
        return max(1, round(self.settings.nominal_batch / self.batch_size))

    @property
    @abstractmethod
    def warmup_steps(self) -> int: ...

    @abstractmethod
    def at(self, step: int) -> StepPlan:
        """The plan of a step, counted from 0 over the whole run."""

    @abstractmethod
    def moves(self, step: int, *, waiting: int) -> bool:
        """Whether the optimizer moves after a step, where the gradients of `waiting` steps are summed."""

    @property
    @abstractmethod
    def moves_at_epoch_end(self) -> bool:
        """Whether no gradient is carried over into the next epoch."""

    def _cosine(self, progress: float) -> float:
        """The share of `lr0` when `progress` of the run, from 0 to 1, is over."""
        return 1 + (self.settings.lr_final - 1) * (1 - math.cos(math.pi * progress)) / 2


@final
@dataclass(frozen=True)
class ScaledSchedule(Schedule):
    """The warm-up takes `warmup_epochs`, but never more than `warmup_share` of the run; the cosine falls every step.

    The reference's warm-up takes at least 1000 steps however short the run is, so that small data sets never leave it.
    """

    @property
    def warmup_steps(self) -> int:
        wanted = self.settings.warmup_epochs * self.steps_per_epoch
        return int(min(wanted, self.settings.warmup_share * self.total_steps))

    def at(self, step: int) -> StepPlan:
        settings = self.settings
        lr = settings.lr0 * self._cosine(step / max(1, self.total_steps - 1))
        if step >= self.warmup_steps:
            return StepPlan(lr=lr, bias_lr=lr, momentum=settings.momentum, accumulate=self.accumulate)
        share = (step + 1) / (self.warmup_steps + 1)
        return StepPlan(
            lr=share * lr,
            bias_lr=_between(settings.warmup_bias_lr, lr, share) if settings.optimizer == "sgd" else share * lr,
            momentum=_between(settings.warmup_momentum, settings.momentum, share),
            accumulate=max(1, round(_between(1, self.accumulate, share))),
        )

    def moves(self, step: int, *, waiting: int) -> bool:
        return waiting >= self.at(step).accumulate

    @property
    def moves_at_epoch_end(self) -> bool:
        return True


@final
@dataclass(frozen=True)
class ReferenceSchedule(Schedule):
    """The reference's: a warm-up of at least 1000 steps, then a cosine that falls once an epoch, one epoch late."""

    @property
    def warmup_steps(self) -> int:
        return max(round(self.settings.warmup_epochs * self.steps_per_epoch), 1000)

    def at(self, step: int) -> StepPlan:
        settings, epoch = self.settings, step // self.steps_per_epoch
        if step > self.warmup_steps:
            late = epoch > self.warmup_steps // self.steps_per_epoch  # the warm-up's last rate holds to its epoch's end
            lr = settings.lr0 * self._cosine((epoch - late) / self.epochs)
            return StepPlan(lr=lr, bias_lr=lr, momentum=settings.momentum, accumulate=self.accumulate)
        share = step / self.warmup_steps
        lr = settings.lr0 * self._cosine(epoch / self.epochs)
        return StepPlan(
            lr=share * lr,
            bias_lr=_between(settings.warmup_bias_lr, lr, share),
            momentum=_between(settings.warmup_momentum, settings.momentum, share),
            accumulate=max(1, round(_between(1, settings.nominal_batch / self.batch_size, share))),
        )

    def moves(self, step: int, *, waiting: int) -> bool:
        return step % self.at(step).accumulate == 0

    @property
    def moves_at_epoch_end(self) -> bool:
        return False


def build_schedule(settings: OptimSettings, *, batch_size: int, steps_per_epoch: int, epochs: int) -> Schedule:
    """The schedule that the settings name."""
    kind = ReferenceSchedule if settings.schedule == "reference" else ScaledSchedule
    return kind(settings=settings, batch_size=batch_size, steps_per_epoch=steps_per_epoch, epochs=epochs)


def build_optimizer(model: nn.Module, settings: OptimSettings, *, schedule: Schedule) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over three groups: convolution weights, everything else, biases.

    Only convolution weights decay; batch norm's scale and implicit vectors do not. The decay is for the
    nominal batch and grows with the batch that is really summed.
    """
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue  # frozen
            if name == "bias":
                biases.append(parameter)
            elif name == "weight" and isinstance(module, nn.Conv2d):
                weights.append(parameter)
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
    return torch.optim.SGD(
        groups, lr=settings.lr0, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
    )


def apply_plan(optimizer: torch.optim.Optimizer, plan: StepPlan, *, share: float = 1.0) -> None:
    """Sets momentum and that share of the learning rates; the biases' group is the last one."""
    for group in optimizer.param_groups:
        group["lr"] = share * plan.lr
        if "betas" in group:
            group["betas"] = (plan.momentum, group["betas"][1])
        else:
            group["momentum"] = plan.momentum
    optimizer.param_groups[-1]["lr"] = share * plan.bias_lr


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share
