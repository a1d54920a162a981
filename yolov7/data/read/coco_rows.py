"""The annotations of a COCO file in columns, parsed one by one while the file is read."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolov7.data.flaws import FlawKind
from yolov7.data.outlines import OutlineTable
from yolov7.data.read.values import MAX_COORDINATE, IdTable, parse_id, parse_number, parse_truth, turn_box
from yolov7.errors import DataError, shown

_NUMBERS = frozenset({int, float})
_NO_ID = -(2**63)
_NO_BOX = array("d", [math.nan] * 4)


class RowFlaw(NamedTuple):
    """A flaw of an annotation.

    Attributes:
        kind: What is wrong.
        row: The place of the annotation in the file.
        value: The value that is wrong, as text; empty if it says nothing.
    """

    kind: FlawKind
    row: int
    value: str = ""


class AnnotationRows:
    """The annotations of a COCO file; m of them."""

    def __init__(self) -> None:
        """Start without annotations."""
        self.flaws: list[RowFlaw] = []
        self._ids, self._other_ids = array("q"), dict[int, Any]()
        self._images, self._categories = _Codes(), _Codes()
        self._boxes, self._areas, self._crowd = array("d"), array("d"), bytearray()
        self._points, self._part_sizes, self._part_counts = array("f"), array("q"), array("q")
        self._rows_without_box: list[int] = []

    def __len__(self) -> int:
        """Return the number of annotations."""
        return len(self._crowd)

    def append(self, row: object, *, file: object) -> None:
        """Parse an annotation.

        Args:
            row: An element of the list `annotations`.
            file: The file, for messages.

        Raises:
            DataError: If the element is no object.
        """
        if not isinstance(row, dict):
            raise DataError(f"{file} has an annotation that is not an object: {shown(row)}; remove it")
        get = row.get
        self._append_id(get("id"))
        self._images.append(get("image_id"))
        self._categories.append(get("category_id"))
        is_crowd = self._append_crowd(get("iscrowd"))
        has_outline = self._append_outline(get("segmentation"), is_crowd=is_crowd)
        self._append_box(get("bbox"), row, has_outline=has_outline)
        self._append_area(row)

    def name_of(self, row: int) -> str:
        """Return how a message names an annotation: `annotation 7`."""
        given = self._other_ids.get(row) if self._ids[row] == _NO_ID else self._ids[row]
        return f"annotation {given}" if given is not None else f"annotation at place {row + 1}"

    def repeated_ids(self) -> Iterable[int]:
        """Return the annotations whose id an earlier one has."""
        ids = np.frombuffer(self._ids, np.int64)
        order = np.argsort(ids, kind="stable")
        same = ids[order[1:]] == ids[order[:-1]]
        yield from (row for row in order[1:][same].tolist() if self._ids[row] != _NO_ID)
        seen: set[object] = set()
        for row, given in self._other_ids.items():
            if given is not None and given in seen:
                yield row
            seen.add(given)

    def places_of_images(self, table: IdTable) -> NDArray[np.int64]:
        """Return the place (m,) of the image of each annotation in a table; -1 for images that it does not have."""
        return self._images.places(table.place)

    def places_of_categories(self, table: IdTable) -> NDArray[np.int64]:
        """Return the place (m,) of the category of each annotation in a table; -1 for those that it does not have."""
        return self._categories.places(table.place_in_any_form)

    def image_of(self, row: int) -> str:
        """Return the image id of an annotation as a message shows it."""
        return self._images.text(row)

    def category_of(self, row: int) -> str:
        """Return the category id of an annotation as a message shows it."""
        return self._categories.text(row)

    def boxes_xywh(self, outlines: OutlineTable | None) -> NDArray[np.float64]:
        """Return the boxes (m, 4): x, y, width, height in pixels.

        Args:
            outlines: The outlines; an object without a box gets the box around its outline.

        Returns:
            The boxes; NaN for a box that is not four numbers.
        """
        boxes = np.frombuffer(self._boxes, np.float64).reshape(-1, 4).copy()
        if outlines is not None and self._rows_without_box:
            around = outlines.bounds()[self._rows_without_box]
            around[:, 2:] -= around[:, :2]
            boxes[self._rows_without_box] = around
        return boxes

    def crowd(self) -> NDArray[np.bool_]:
        """Return for each annotation (m,) whether it is a crowd region."""
        return np.frombuffer(self._crowd, np.bool_).copy()

    def areas(self) -> NDArray[np.float64]:
        """Return the areas (m,) in square pixels; NaN for an area that is not stated."""
        return np.frombuffer(self._areas, np.float64).copy()

    def outlines(self) -> OutlineTable | None:
        """Return the outlines of the annotations; None if there are none. Those with odd coordinates are flaws."""
        if not self._points:
            return None
        points = np.frombuffer(self._points, np.float32).reshape(-1, 2)
        table = OutlineTable(points, _offsets(self._part_sizes), _offsets(self._part_counts))
        is_odd = ~(np.abs(points) < MAX_COORDINATE).all(axis=1)
        if not is_odd.any():
            return table
        parts = np.searchsorted(table.part_offsets, np.flatnonzero(is_odd), side="right") - 1
        rows = np.unique(np.searchsorted(table.object_offsets, parts, side="right") - 1)
        self.flaws.extend(RowFlaw(FlawKind.NO_POLYGON, row) for row in rows.tolist())
        return table.select(np.arange(len(self)), has_outline=~np.isin(np.arange(len(self)), rows))

    def _append_id(self, value: object) -> None:
        given = value if type(value) is int else parse_id(value)
        if isinstance(given, int) and -(2**63) < given < 2**63:
            self._ids.append(given)
        else:
            self._other_ids[len(self._ids)] = given
            self._ids.append(_NO_ID)

    def _append_crowd(self, value: object) -> bool:
        is_crowd = bool(value) if type(value) is int and 0 <= value <= 1 else parse_truth(value)
        if is_crowd is None:
            self.flaws.append(RowFlaw(FlawKind.CROWD_VALUE, len(self), shown(value)))
        self._crowd.append(is_crowd or False)
        return is_crowd or False

    def _append_outline(self, segmentation: object, *, is_crowd: bool) -> bool:
        """Append the polygons of a segmentation, [[x, y, x, y, ...], ...]; none if one of them is no polygon."""
        parts: list[array[float] | None] = []
        kind = None
        if isinstance(segmentation, dict) and segmentation:
            kind = FlawKind.MASK
        elif segmentation:
            parts = [_polygon(part) for part in segmentation] if isinstance(segmentation, list) else [None]
            kind = FlawKind.NO_POLYGON if any(part is None for part in parts) else None
        sound = [part for part in parts if part is not None] if kind is None else []
        for part in sound:
            self._points += part
            self._part_sizes.append(len(part) // 2)
        self._part_counts.append(len(sound))
        if kind is not None and not is_crowd:  # the crowd regions of COCO are masks, and are no targets
            self.flaws.append(RowFlaw(kind, len(self) - 1))
        return bool(sound)

    def _append_box(self, bbox: object, row: Mapping[str, Any], *, has_outline: bool) -> None:
        box = _NO_BOX
        if isinstance(bbox, list) and len(bbox) == 4:
            with suppress(OverflowError):
                box = array("d", bbox if _NUMBERS.issuperset(map(type, bbox)) else map(parse_number, bbox))
        elif not bbox and has_outline:
            self._rows_without_box.append(len(self) - 1)
        attributes = row.get("attributes")
        if isinstance(attributes, dict) and attributes.get("rotation"):
            angle = parse_number(attributes["rotation"])
            if not math.isfinite(angle) or angle % 360:
                self.flaws.append(
                    RowFlaw(FlawKind.TURNED, len(self) - 1, f"by {shown(attributes['rotation'])} degrees")
                )
            if math.isfinite(angle):
                box = array("d", turn_box(box, degrees=angle))
        self._boxes += box

    def _append_area(self, row: Mapping[str, Any]) -> None:
        """Append a positive number; some tools write 0 for an area that they do not know."""
        value = row.get("area")
        area = value if type(value) is float else parse_number(value)
        is_area = 0 < area < MAX_COORDINATE**2
        if not is_area and value is not None:
            self.flaws.append(RowFlaw(FlawKind.AREA, len(self) - 1, shown(value)))
        self._areas.append(area if is_area else math.nan)


class _Codes:
    """A column of ids, of which each different one is stored once."""

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}
        self._column, self._values = array("q"), list[object]()

    def append(self, value: object) -> None:
        """Append an id, or whatever value was given instead."""
        key = value if type(value) is int or type(value) is str else (type(value).__name__, shown(value))
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = len(self._values)
            self._values.append(value)
        self._column.append(code)

    def places(self, find: Callable[[object], int]) -> NDArray[np.int64]:
        """Return the place of each id, as a function finds it."""
        places = np.array([find(value) for value in self._values], np.int64)
        column = np.frombuffer(self._column, np.int64)
        return places[column] if len(column) else column

    def text(self, row: int) -> str:
        """Return an id as a message shows it."""
        return shown(self._values[self._column[row]])


def _polygon(coordinates: object) -> array[float] | None:
    """Return the coordinates of a polygon of three points or more, or None if it is none."""
    if not isinstance(coordinates, list) or len(coordinates) < 6 or len(coordinates) % 2:
        return None
    try:
        if _NUMBERS.issuperset(map(type, coordinates)):
            return array("f", coordinates)
        values = [parse_number(value) for value in coordinates]
        return None if any(map(math.isnan, values)) else array("f", values)
    except OverflowError:
        return None


def _offsets(counts: array[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.frombuffer(counts, np.int64))])
