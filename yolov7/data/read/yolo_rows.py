"""The lines of YOLO label files in columns, parsed file by file."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolov7.data.annotations import Annotations
from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import Id
from yolov7.data.outlines import OutlineTable
from yolov7.data.read.values import parse_number
from yolov7.errors import shown

_BOX_VALUES = 4
_TOLERANCE = 0.01  # share of a side by which a value may be outside of 0 to 1; the box is then clipped


class LabelRows:
    """The objects of all label files of a split; m of them.

    Attributes:
        flaws: What was wrong with lines that were left out, with file and line.
    """

    def __init__(self, *, num_classes: int, has_keypoints: bool = False) -> None:
        """Start without objects.

        Args:
            num_classes: The number of classes; a class number must be below it.
            has_keypoints: Whether the values behind the box of a line are keypoints, which are ignored.
        """
        self.flaws: list[Flaw] = []
        self._num_classes, self._has_keypoints = num_classes, has_keypoints
        self._images, self._labels, self._boxes = array("q"), array("q"), array("d")
        self._points, self._sizes, self._counts = array("f"), array("q"), array("q")

    def append_file(self, text: str, *, image: int, file: str) -> None:
        """Parse the lines of a label file.

        Args:
            text: The content of the file.
            image: The place of its image.
            file: The file, for messages.
        """
        seen: dict[tuple[float, ...], int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            fields = line.split()
            if not fields:
                continue
            values = _numbers(fields)
            flaw = self._fault(values, fields)
            if flaw is None and (first := seen.setdefault(values, number)) != number:
                flaw = FlawKind.DUPLICATE_BOX, f"the same as line {first}"
            if flaw is not None:
                kind, detail = flaw
                self.flaws.append(Flaw(kind, file, f"line {number}: {detail}", boxes=1))
                continue
            self._append(values, image)

    def annotations(self, images: Sequence[Path], ids: Sequence[Id]) -> Annotations:
        """Return all objects.

        Args:
            images: The n images.
            ids: The id of each image.
        """
        boxes = np.frombuffer(self._boxes, np.float64).reshape(-1, 4)
        xywh = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
        outlines = None
        if self._points:
            offsets = [np.cumsum([0, *column]) for column in (self._sizes, self._counts)]
            outlines = OutlineTable(np.frombuffer(self._points, np.float32).reshape(-1, 2), *offsets)
        count = len(self._labels)
        return Annotations(
            paths=tuple(images),
            image_ids=tuple(ids),
            declared_wh=np.full((len(images), 2), np.nan),
            image=np.array(self._images, np.int64),
            boxes_xywh=xywh,
            labels=np.array(self._labels, np.int64),
            crowd=np.zeros(count, np.bool_),
            areas=np.full(count, np.nan),
            outlines=outlines,
            in_shares=np.ones(count, np.bool_),
        )

    def _fault(self, values: tuple[float, ...], fields: Sequence[str]) -> tuple[FlawKind, str] | None:
        """Return what is wrong with a line."""
        label, *shares = values
        is_box = len(shares) == _BOX_VALUES or self._has_keypoints
        if len(shares) < _BOX_VALUES or (not is_box and (len(shares) < 6 or len(shares) % 2)):
            return FlawKind.FIELD_COUNT, f"{len(fields)} values; a box has 5, a polygon has 7, 9, 11, ..."
        if any(map(math.isnan, values)):
            wrong = next(field for field, value in zip(fields, values, strict=True) if math.isnan(value))
            return FlawKind.NOT_FINITE, shown(wrong)
        if not label.is_integer() or not 0 <= label < self._num_classes:
            return FlawKind.UNKNOWN_CATEGORY, f"class {shown(fields[0])}; the classes are 0 to {self._num_classes - 1}"
        used = shares[:_BOX_VALUES] if is_box else shares
        if min(used) < -_TOLERANCE or max(used) > 1 + _TOLERANCE:
            return FlawKind.NOT_SHARES, shown(" ".join(fields[1 : 1 + len(used)]))
        if is_box and not (shares[2] > 0 and shares[3] > 0):
            return FlawKind.NO_AREA, shown(" ".join(fields[1:5]))
        return None

    def _append(self, values: tuple[float, ...], image: int) -> None:
        label, *shares = values
        self._images.append(image)
        self._labels.append(int(label))
        if len(shares) == _BOX_VALUES or self._has_keypoints:
            self._boxes.extend(shares[:_BOX_VALUES])
            self._counts.append(0)
            return
        x1, y1, x2, y2 = min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
        self._boxes.extend(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))
        self._points.extend(shares)
        self._sizes.append(len(shares) // 2)
        self._counts.append(1)


def _numbers(fields: Sequence[str]) -> tuple[float, ...]:
    try:
        values = tuple(map(float, fields))
    except ValueError:
        return tuple(map(parse_number, fields))
    return values if all(map(math.isfinite, values)) else tuple(map(parse_number, fields))
