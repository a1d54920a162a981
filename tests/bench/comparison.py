"""What a benchmark measures: a plain form of something beside ours, in the same process, by turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds of the plain form and of ours, or a figure of another kind in words."""

    case: str
    plain: float | None = None
    ours: float | None = None
    figure: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is."""
        return self.plain / self.ours if self.plain and self.ours else None

    def line(self) -> str:
        """As printed."""
        seconds = "".join(f"{shown(value):>11s}" for value in (self.plain, self.ours))
        ratio = f"{self.ratio:.2f}x" if self.ratio else ""
        return f"{self.case:76s}{seconds}{ratio:>8s}  {self.figure}".rstrip()

    def as_dict(self) -> dict[str, object]:
        """As kept."""
        return {
            "case": self.case,
            "plain_s": self.plain,
            "ours_s": self.ours,
            "ratio": self.ratio,
            "figure": self.figure or None,
        }


@dataclass(frozen=True)
class Stopwatch:
    """Takes the shortest of `repeats` runs; `clock` is the wall's, or the process's own where it shares the machine."""

    repeats: int
    clock: Callable[[], float] = time.perf_counter

    def compare(self, case: str, plain: Callable[[], object], ours: Callable[[], object], *, figure: str = "") -> Row:
        """Both by turns, after one run of each, so that other work on the machine hits both."""
        plain()
        ours()
        times = [(self.once(plain), self.once(ours)) for _ in range(self.repeats)]
        slow, fast = (min(column) for column in zip(*times, strict=True))
        return Row(case, slow, fast, figure)

    def seconds(self, call: Callable[[], object]) -> float:
        """Of one thing alone."""
        call()
        return min(self.once(call) for _ in range(self.repeats))

    def once(self, call: Callable[[], object]) -> float:
        """How long one call takes."""
        start = self.clock()
        call()
        return self.clock() - start

    def at_most(self, repeats: int) -> Stopwatch:
        """For what takes long."""
        return replace(self, repeats=min(self.repeats, repeats))


def shown(seconds: float | None) -> str:
    """Return a time as text in seconds or milliseconds; an empty text for None."""
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds * 1e3:.1f} ms"
