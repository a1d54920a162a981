"""The improvement rows of Table 1: the printed changes, and the changes relative to the new and to the old figure."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.report.paper.check import QUANTITIES
from pipeline.report.paper.printed import PrintedChange, decimals, printed_changes, printed_table, value_of
from yolov7.system.settings_base import Settings

Figures = Mapping[str, float]  # by quantity


class Change(Settings):
    """One quantity of an improvement row. Relative changes are in percent, and None for AP.

    Attributes:
        quantity: A key of `pipeline.report.paper.printed.LABELS`.
        printed: The change as the paper prints it.
        difference: The new printed figure minus the old one.
        of_new: The difference relative to the new figure.
        of_old: The difference relative to the old figure.
        ours: Our new figure minus our old one; None if one of them is missing.
        ours_of_new: Our difference relative to our new figure.
        ours_of_old: Our difference relative to our old figure.
    """

    quantity: str
    printed: str
    difference: float
    of_new: float | None
    of_old: float | None
    ours: float | None
    ours_of_new: float | None
    ours_of_old: float | None


class Improvement(Settings):
    """One improvement row of Table 1.

    Attributes:
        new: The new model as the paper names it.
        new_size: Its image size in pixels.
        old: The old model as the paper names it.
        old_size: Its image size in pixels.
        changes: The change of each quantity.
    """

    new: str
    new_size: int
    old: str
    old_size: int
    changes: tuple[Change, ...]

    @property
    def title(self) -> str:
        """The two models, such as `YOLOv7-tiny (416) over YOLOv4-tiny [79]`."""
        return f"{self.new} ({self.new_size}) over {self.old}"


def improvements(ours: Mapping[tuple[str, int], Figures]) -> tuple[Improvement, ...]:
    """Return all improvement rows.

    Args:
        ours: Our figures of Table 1 by model and size.

    Returns:
        The rows in order.
    """
    printed = {
        (row.model, row.size): {name: value_of(text) for name, text in row.figures.items() if text}
        for row in printed_table("table1").rows
        if row.size
    }
    return tuple(_improvement(row, printed, ours) for row in printed_changes())


def rounding_range(new: str, old: str) -> tuple[float, float]:
    """Return which relative changes are possible if both printed figures are rounded.

    Args:
        new: The new figure as printed.
        old: The old figure as printed.

    Returns:
        The smallest and the largest value of (new - old) / new, in percent.
    """
    low_new, high_new = _interval(new)
    low_old, high_old = _interval(old)
    return 100 * (1 - high_old / low_new), 100 * (1 - low_old / high_new)


def _improvement(
    row: PrintedChange, printed: Mapping[tuple[str, int], Figures], ours: Mapping[tuple[str, int], Figures]
) -> Improvement:
    our_new, our_old = ours.get(row.new, {}), ours.get(row.old, {})
    changes = []
    for quantity, text in row.figures.items():
        new, old = printed[row.new][quantity], printed[row.old][quantity]
        pair = (our_new.get(quantity), our_old.get(quantity))
        difference, of_new, of_old = _change(quantity, new, old)
        our_change = (None, None, None) if pair[0] is None or pair[1] is None else _change(quantity, pair[0], pair[1])
        changes.append(
            Change(
                quantity=quantity,
                printed=text,
                difference=difference,
                of_new=of_new,
                of_old=of_old,
                ours=our_change[0],
                ours_of_new=our_change[1],
                ours_of_old=our_change[2],
            )
        )
    return Improvement(new=row.new[0], new_size=row.new[1], old=row.old[0], old_size=row.old[1], changes=tuple(changes))


def _change(quantity: str, new: float, old: float) -> tuple[float, float | None, float | None]:
    if quantity not in QUANTITIES:
        return new - old, None, None
    return new - old, 100 * (new - old) / new, 100 * (new - old) / old


def _interval(printed: str) -> tuple[float, float]:
    half = 0.5 * 10.0 ** -decimals(printed)
    return float(printed) - half, float(printed) + half
