"""Parsing of single values of annotation files, which tools write as numbers, as text, or as null."""

from __future__ import annotations

import math
from collections.abc import Iterable

from yolov7.data.index import Id

MAX_COORDINATE = 1e9  # pixels
_TRUTH = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}


def parse_number(value: object) -> float:
    """Return a number that is given as such or as text.

    Args:
        value: For example 12, 12.0, " 12 " or "1.2e1".

    Returns:
        The number; NaN if the value is no number, or not finite. Truth values are no numbers.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def parse_truth(value: object) -> bool | None:
    """Return a truth value that is given as such, as 0 or 1, or as text.

    Args:
        value: For example true, 1, 1.0, "1", " True ". Null means false.

    Returns:
        The truth value, or None if the value is none.
    """
    if value is None:
        return False
    if isinstance(value, str) and (text := value.strip().lower()) in _TRUTH:
        return _TRUTH[text]
    number = float(value) if isinstance(value, bool) else parse_number(value)
    return bool(number) if number in (0.0, 1.0) else None


def parse_id(value: object) -> Id | None:
    """Return an id: an integer, a number without fraction such as 3.0, or text.

    Args:
        value: The value of the file.

    Returns:
        The id, or None if the value is none.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, str) and value.strip() else None


def turn_box(box_xywh: Iterable[float], *, degrees: float) -> tuple[float, float, float, float]:
    """Return the upright box around a box that is rotated about its centre.

    Args:
        box_xywh: x, y, width, height.
        degrees: The angle.

    Returns:
        x, y, width, height of the box around it.
    """
    x, y, width, height = box_xywh
    if not degrees % 180:
        return x, y, width, height
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    wide, high = width * cosine + height * sine, width * sine + height * cosine
    return x + (width - wide) / 2, y + (height - high) / 2, wide, high


class IdTable:
    """Find the place of an id in a list."""

    def __init__(self, ids: Iterable[Id]) -> None:
        """Store the ids of a list.

        Args:
            ids: The ids; the first of equal ones counts.
        """
        self._exact: dict[Id, int] = {}
        self._by_number: dict[int, int] = {}
        for place, given in enumerate(ids):
            self._exact.setdefault(given, place)
            if (number := _as_integer(given)) is not None:
                self._by_number.setdefault(number, place)

    def place(self, wanted: object) -> int:
        """Return the place of an id, or -1 if it is not in the list.

        Args:
            wanted: A value of an annotation file that should be an id.
        """
        given = parse_id(wanted)
        return -1 if given is None else self._exact.get(given, -1)

    def place_in_any_form(self, wanted: object) -> int:
        """Return the place of an id, also if one side writes a number as text; -1 if it is not in the list.

        Args:
            wanted: A value of an annotation file that should be an id.
        """
        given = parse_id(wanted)
        number = None if given is None else _as_integer(given)
        near = -1 if number is None else self._by_number.get(number, -1)
        return -1 if given is None else self._exact.get(given, near)


def id_order(given: Id) -> tuple[bool, int, str]:
    """Return a key that sorts ids: numbers first, text that spells a number among them, then other text."""
    number = _as_integer(given)
    return (number is None, number or 0, str(given) if number is None else "")


def _as_integer(given: Id) -> int | None:
    if isinstance(given, int):
        return given
    number = parse_number(given)
    return int(number) if number.is_integer() and abs(number) < 2**53 else None
