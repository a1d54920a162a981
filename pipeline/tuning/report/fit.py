"""A straight line through points, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Line(NamedTuple):
    """y = level + slope (x - centre), by least squares. `spread`: standard deviation of points around it;
    `slope_error`: standard error of the slope. Both are None for fewer than three points.
    """

    level: float
    slope: float
    centre: float
    points: int
    spread: float | None
    slope_error: float | None
    width: float  # sum of squared distances of x from the centre

    def at(self, x: float) -> float:
        """The line's value."""
        return self.level + self.slope * (x - self.centre)

    def error_at(self, x: float) -> float | None:
        """The standard error of the line's value."""
        if self.spread is None or self.slope_error is None:
            return None
        return self.spread * math.sqrt(1 / self.points + (x - self.centre) ** 2 / self.width)


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """The line of least squares; level where all points have the same x."""
    number = len(points)
    centre = sum(x for x, _ in points) / number
    level = sum(y for _, y in points) / number
    width = sum((x - centre) ** 2 for x, _ in points)
    if width < 1e-12:
        return Line(level, 0.0, centre, number, None, None, 0.0)
    slope = sum((x - centre) * (y - level) for x, y in points) / width
    if number < 3:
        return Line(level, slope, centre, number, None, None, width)
    squares = sum((y - level - slope * (x - centre)) ** 2 for x, y in points)
    spread = math.sqrt(squares / (number - 2))
    return Line(level, slope, centre, number, spread, spread / math.sqrt(width), width)
