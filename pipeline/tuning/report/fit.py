"""A straight line through points, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class LineFit(NamedTuple):
    """The line y = level + slope (x - centre), fitted by least squares.

    Attributes:
        level: Mean of y.
        slope: Slope of the line.
        centre: Mean of x.
        points: Number of points.
        spread: Standard deviation of the points around the line; None for fewer than three points.
        slope_error: Standard error of the slope; None for fewer than three points.
    """

    level: float
    slope: float
    centre: float
    points: int
    spread: float | None
    slope_error: float | None

    def at(self, x: float) -> float:
        """Return the value of the line."""
        return self.level + self.slope * (x - self.centre)


def fit_line(points: Sequence[tuple[float, float]]) -> LineFit:
    """Fit a line to points (x, y); it is level if all points have the same x.

    Args:
        points: The points, at least one.
    """
    number = len(points)
    centre = sum(x for x, _ in points) / number
    level = sum(y for _, y in points) / number
    x_squares = sum((x - centre) ** 2 for x, _ in points)
    if x_squares < 1e-12:
        return LineFit(level, 0.0, centre, number, None, None)
    slope = sum((x - centre) * (y - level) for x, y in points) / x_squares
    if number < 3:
        return LineFit(level, slope, centre, number, None, None)
    squares = sum((y - level - slope * (x - centre)) ** 2 for x, y in points)
    spread = math.sqrt(squares / (number - 2))
    return LineFit(level, slope, centre, number, spread, spread / math.sqrt(x_squares))
