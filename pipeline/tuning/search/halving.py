"""Asynchronous successive halving (ASHA, arXiv 1810.05934) on the AP at equal training compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

RUNGS = (0.25, 0.5)  # shares of a trial's compute at which the trial may be stopped


@final
class Halving:
    """Decide which trials of one stratum continue.

    A trial is compared with the trials that reached the same rung before it, so that no trial ever waits for others.
    """

    def __init__(self, milestones: Sequence[float], *, factor: float) -> None:
        """Start without trials.

        Args:
            milestones: Training compute of each rung in floating point operations, ascending.
            factor: The best `1 / factor` of the trials at a rung continue.
        """
        self._rungs: list[tuple[float, dict[str, float]]] = [(milestone, {}) for milestone in milestones]
        self._factor = factor

    def report(self, key: str, *, compute: float, AP: float) -> bool:
        """Record the AP of a trial and return whether the trial continues.

        Args:
            key: The trial.
            compute: Training compute that the trial has used, in floating point operations.
            AP: Its AP after this compute.
        """
        continues = True
        for milestone, APs in self._rungs:
            if compute < milestone or key in APs:
                continue
            APs[key] = AP
            best_first = sorted(APs.values(), reverse=True)
            continues = continues and best_first[math.ceil(len(best_first) / self._factor) - 1] <= AP
        return continues
