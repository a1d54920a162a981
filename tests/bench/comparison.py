"""What a benchmark measures: a plain form of something beside ours, in the same process, by turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


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
        seconds = "".join(f"{_shown(value):>11s}" for value in (self.plain, self.ours))
        ratio = f"{self.ratio:.1f}x" if self.ratio else ""
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


def compare(
    case: str, plain: Callable[[], object], ours: Callable[[], object], *, repeats: int, figure: str = ""
) -> Row:
    """The shortest of several runs of each, one after the other, so that other work on the machine hits both."""
    plain()
    ours()
    times = [(seconds_of(plain), seconds_of(ours)) for _ in range(repeats)]
    slow, fast = (min(column) for column in zip(*times, strict=True))
    return Row(case, slow, fast, figure)


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _shown(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds * 1e3:.1f} ms"
