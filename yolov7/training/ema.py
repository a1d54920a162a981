"""The exponential moving average of a model's weights (paper, section 2.2 and 4.3: what is evaluated)."""

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
    """A copy of a model whose floating-point state follows it.

    After update u the decay is `decay * (1 - exp(-u / ramp))`, so that early weights are soon forgotten.
    """

    def __init__(self, model: Model, *, decay: float, ramp: float) -> None:
        self.model = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay
        self._ramp = ramp

    def decay_at(self, updates: int) -> float:
        """The share of the average that update number `updates` keeps."""
        return self._decay * (1 - math.exp(-updates / self._ramp))

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Moves the average towards the model's weights and buffers, all tensors at once.

        In the reference's order of roundings, to which a fused multiply and add would not keep.
        """
        self.updates += 1
        decay = self.decay_at(self.updates)
        average = _floating_state(self.model)
        torch._foreach_mul_(average, decay)
        torch._foreach_add_(average, torch._foreach_mul(_floating_state(model), 1 - decay))


def _floating_state(model: nn.Module) -> list[torch.Tensor]:
    tensors = itertools.chain(model.parameters(), model.buffers())  # much quicker than a state_dict
    return [tensor for tensor in tensors if tensor.is_floating_point()]
