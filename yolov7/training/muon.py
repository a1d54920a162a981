"""Muon: momentum whose matrices are orthogonalised (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor

from yolov7.system.shapes import Float

_COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic polynomial of each Newton-Schulz iteration
_ITERATIONS = 5
_EPS = 1e-7
_RMS = 0.2  # root mean square of an update, as AdamW has it


@final
class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for weights of convolutions, AdamW for all other parameters, both with the learning rate of AdamW.

    A weight (out, in, height, width) is a matrix (out, in * height * width). Its update is the orthogonalised Nesterov
    momentum of its gradient, multiplied by 0.2 * sqrt(max(rows, columns)), so that its root mean square is that of
    AdamW (Liu et al., 2025, "Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2). Learning rates and the
    decoupled weight decay of AdamW therefore serve both. `torch.optim.Muon` accepts parameters with two axes only.
    """

    def __init__(
        self,
        matrices: Iterable[dict[str, Any]],
        others: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        is_bfloat16: bool = False,
    ) -> None:
        """Make the optimizer.

        Args:
            matrices: Groups of the parameters that Muon changes.
            others: Groups of the parameters that AdamW changes.
            lr: The learning rate.
            betas: The betas of AdamW; the first one is also the momentum of Muon.
            is_bfloat16: Whether Muon computes its updates with bfloat16.
        """
        self._dtype = torch.bfloat16 if is_bfloat16 else torch.float32
        self._adamw = torch.optim.AdamW(list(others), lr=lr, betas=betas, fused=True)
        groups = [{**group, "is_orthogonal": True} for group in matrices]
        groups += [{**group, "is_orthogonal": False} for group in self._adamw.param_groups]
        super().__init__(groups, {**self._adamw.defaults, "weight_decay": 0.0, "is_orthogonal": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change all parameters that have a gradient.

        Args:
            closure: Not supported.
        """
        assert closure is None
        for group in self.param_groups:
            if group["is_orthogonal"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_matrix(parameter, group)
        # The lists and values are replaced when a checkpoint is loaded.
        self._adamw.param_groups = [group for group in self.param_groups if not group["is_orthogonal"]]
        self._adamw.state = self.state
        self._adamw.step()

    def _step_matrix(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, momentum, lr = parameter.grad, group["betas"][0], group["lr"]
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = orthogonalise(gradient.lerp(average, momentum).flatten(1).to(self._dtype))
        scale = _RMS * math.sqrt(max(update.shape))
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(update.view_as(parameter), alpha=-lr * scale)


def orthogonalise(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Replace the singular values of a matrix by values near 1 (0.7 to 1.2) with Newton-Schulz iterations.

    The original computes with bfloat16, which is precise enough. On devices that are slow with it, float32 is faster.

    Args:
        matrix: The matrix.

    Returns:
        A matrix of the same shape and type.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=_EPS)  # the largest singular value is now at most 1
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T.contiguous() if is_tall else x
