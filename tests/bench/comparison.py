"""What a benchmark measures: a plain form of something beside ours, in the same process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Seconds of the plain form and of ours."""

    case: str
    plain: float
    ours: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.plain / self.ours


def best_seconds(call: Callable[[], object], *, repeats: int) -> float:
    """The shortest of several runs, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
