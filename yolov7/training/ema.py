"""The exponential moving average of a model's weights, which is what is evaluated (paper, sections 2.2 and 4.3)."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Generic, TypeVar, final

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


@final
class Ema(Generic[Model]):
    """An exponential moving average of the weights and buffers of a model.

    After update number u the decay is `decay * (1 - exp(-u / ramp))`, so that the first weights lose their influence
    quickly.

    Attributes:
        model: The average, in evaluation mode and without gradients.
        updates: The number of updates so far.
    """

    def __init__(self, model: Model, *, decay: float, ramp: float) -> None:
        """Start an average.

        Args:
            model: The model to follow; the average starts as a copy of it.
            decay: The share of the average that an update keeps in the long run.
            ramp: The number of updates over which the decay grows.
        """
        self.model = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay
        self._ramp = ramp

    def decay_at(self, updates: int) -> float:
        """Return the share of the average that an update keeps.

        Args:
            updates: The number of the update, counted from 1.
        """
        return self._decay * (1 - math.exp(-updates / self._ramp))

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Move the average towards a model.

        The operations round in the same order as the reference implementation; a fused multiply-add would not.

        Args:
            model: The model that the average follows.
        """
        self.updates += 1
        decay = self.decay_at(self.updates)
        average = _floating_state(self.model)
        torch._foreach_mul_(average, decay)
        torch._foreach_add_(average, torch._foreach_mul(_floating_state(model), 1 - decay))


def _floating_state(model: nn.Module) -> list[torch.Tensor]:
    tensors = itertools.chain(model.parameters(), model.buffers())  # much faster than a state_dict
    return [tensor for tensor in tensors if tensor.is_floating_point()]
