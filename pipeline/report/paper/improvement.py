"""Table 1's improvement rows: what is printed, and the same change over the new and over the old value."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.report.paper.check import QUANTITIES
from pipeline.report.paper.printed import PrintedChange, decimals, printed_changes, printed_table, value_of
from yolov7.settings import Settings

Figures = Mapping[str, float]  # by quantity


class Change(Settings):
    """One quantity of an improvement row; shares in percent, None for AP, whose difference is in points."""

    quantity: str
    printed: str
    difference: float  # new - old, of the printed figures
    of_new: float | None
    of_old: float | None
    ours: float | None  # new - old, of our figures; None where one of them is missing
    ours_of_new: float | None
    ours_of_old: float | None


class Improvement(Settings):
    """One improvement row of Table 1."""

    new: str
    new_size: int
    old: str
    old_size: int
    changes: tuple[Change, ...]

    @property
    def title(self) -> str:
        """`YOLOv7-tiny (416) over YOLOv4-tiny [79]`."""
        return f"{self.new} ({self.new_size}) over {self.old}"


def improvements(ours: Mapping[tuple[str, int], Figures]) -> tuple[Improvement, ...]:
    """All improvement rows. `ours`: our figures of Table 1 by model and size."""
    printed = {
        (row.model, row.size): {name: value_of(text) for name, text in row.figures.items() if text}
        for row in printed_table("table1").rows
        if row.size
    }
    return tuple(_improvement(row, printed, ours) for row in printed_changes())


def rounding_range(new: str, old: str) -> tuple[float, float]:
    """Between which percentages (new - old) / new lies if both figures were rounded to the digits printed."""
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
