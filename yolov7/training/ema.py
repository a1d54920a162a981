"""The exponential moving average of a model's weights, which is what is evaluated (paper, sections 2.2 and 4.3)."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Generic, Literal, TypeVar, final

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


@final
class Ema(Generic[Model]):
    """An exponential moving average of the weights and buffers of a model.

    In the form `ramp`, update number u has the decay `decay * (1 - exp(-u / ramp))`, so that the first weights lose
    their influence quickly. In the form `corrected`, of PP-YOLOE, it has the decay `d = min(decay, u / (9 + u))`; the
    average starts at 0 and is divided by `1 - d**u`.

    Attributes:
        model: The average, in evaluation mode and without gradients.
        updates: The number of updates so far.
    """

    def __init__(self, model: Model, *, decay: float, ramp: float, form: Literal["ramp", "corrected"] = "ramp") -> None:
        """Start an average.

        Args:
            model: The model to follow; the average starts as a copy of it.
            decay: The share of the average that an update keeps in the long run.
            ramp: The number of updates over which the decay grows in the form `ramp`.
            form: How the average starts.
        """
        self.model = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay
        self._ramp = ramp
        self._form = form

    def decay_at(self, updates: int) -> float:
        """Return the share of the average that an update keeps.

        Args:
            updates: The number of the update, counted from 1.
        """
        if self._form == "corrected":
            return min(self._decay, updates / (9 + updates))
        return self._decay * (1 - math.exp(-updates / self._ramp))

    def _shares(self, updates: int) -> tuple[float, float]:
        """Return the factors of the average and of the new weights in an update.

        With `corrected`, the average is kept after its correction, so that the correction of the update before is
        undone here.
        """
        decay = self.decay_at(updates)
        if self._form == "ramp":
            return decay, 1 - decay
        before = 1 - self.decay_at(updates - 1) ** (updates - 1)
        correction = 1 - decay**updates
        return decay * before / correction, (1 - decay) / correction

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Move the average towards a model.

        The operations round in the same order as the reference implementation; a fused multiply-add would not.

        Args:
            model: The model that the average follows.
        """
        self.updates += 1
        keep, add = self._shares(self.updates)
        average = _floating_state(self.model)
        torch._foreach_mul_(average, keep)
        torch._foreach_add_(average, torch._foreach_mul(_floating_state(model), add))


def _floating_state(model: nn.Module) -> list[torch.Tensor]:
    tensors = itertools.chain(model.parameters(), model.buffers())  # much faster than a state_dict
    return [tensor for tensor in tensors if tensor.is_floating_point()]
