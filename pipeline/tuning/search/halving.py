"""Asynchronous successive halving (ASHA, arXiv 1810.05934) on AP at equal compute."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import final

RUNGS = (0.25, 0.5)  # shares of a trial's compute at which it may be stopped


@final
class Halving:
    """The rungs of one stratum. `milestones`: training compute, rising; of those at a rung, 1/factor go on.

    A trial is measured against those that came to the rung before it, so that none ever waits.
    """

    def __init__(self, milestones: Sequence[float], *, factor: float) -> None:
        self._rungs: list[tuple[float, dict[str, float]]] = [(milestone, {}) for milestone in milestones]
        self._factor = factor

    def report(self, key: str, *, compute: float, AP: float) -> bool:
        """Whether a trial goes on that has this AP after this compute."""
        goes_on = True
        for milestone, seen in self._rungs:
            if compute < milestone or key in seen:
                continue
            seen[key] = AP
            goes_on = goes_on and self._bar(seen.values()) <= AP
        return goes_on

    def _bar(self, seen: Collection[float]) -> float:
        return sorted(seen, reverse=True)[math.ceil(len(seen) / self._factor) - 1]
