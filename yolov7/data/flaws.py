"""The kinds of flaws that a data set may have, and how each is treated. Imports nothing that takes long."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FlawGroup(StrEnum):
    """Flaws that a setting makes fatal together."""

    BOXES = "boxes"
    OUTLINES = "outlines"
    IDS = "ids"
    SIZES = "sizes"
    LEAKS = "leaks"
    IMAGES = "images"  # allowed up to a share of the images


class FlawKind(StrEnum):
    """One kind of flaw; the text is shown in reports and messages."""

    NO_AREA = "box without area"
    NOT_FINITE = "box that is not numbers"
    SHARES = "box in shares of its image (0 to 1)"
    OUTSIDE = "box outside its image"
    CLIPPED = "box reaching outside its image"
    UNKNOWN_CATEGORY = "unknown category"
    DUPLICATE_BOX = "box given twice"
    CROWD_VALUE = "iscrowd that is neither 0 nor 1"
    NO_POLYGON = "outline that is no polygon"
    OUTLINE_CLIPPED = "outline reaching outside its image"
    OUTLINE_ELSEWHERE = "outline that does not fit its box"
    AREA = "area that is not a positive number"
    MASK = "mask in place of an outline"
    TURNED = "rotated rectangle"
    UNKNOWN_IMAGE = "annotation of an unknown image"
    DUPLICATE_ID = "id given twice"
    DUPLICATE_IMAGE = "image given twice"
    COPY = "copy of another image of the split"
    SIZE = "image of another size than annotated"
    LEAK = "image that is in train too"
    SAME_SPLIT = "split with the same images as train"
    MISSING = "missing image"
    UNREADABLE = "unreadable image"
    LOW_RANGE = "16-bit image of low range"
    NO_ANNOTATION = "missing or damaged annotation"
    UNUSED_ROOT = "category without annotations that is only a supercategory"
    NO_LABEL_FILE = "image without a label file"
    FIELD_COUNT = "line with a wrong number of values"
    NOT_SHARES = "values that are not shares of the image (0 to 1)"
    OTHER_CLASS = "objects of a class that is left out"
    BACKGROUND = "image without boxes"

    @property
    def group(self) -> FlawGroup | None:
        """The group that it belongs to; None for a remark that is no flaw."""
        return _TREATED[self][0]

    @property
    def outcome(self) -> str:
        """How data with this flaw are treated, unless it is fatal."""
        return _TREATED[self][1]


_TREATED: dict[FlawKind, tuple[FlawGroup | None, str]] = {
    FlawKind.NO_AREA: (FlawGroup.BOXES, "left out"),
    FlawKind.NOT_FINITE: (FlawGroup.BOXES, "left out"),
    FlawKind.SHARES: (FlawGroup.BOXES, "left out; multiply x by the width and y by the height of the image"),
    FlawKind.OUTSIDE: (FlawGroup.BOXES, "left out"),
    FlawKind.CLIPPED: (FlawGroup.BOXES, "clipped"),
    FlawKind.UNKNOWN_CATEGORY: (FlawGroup.BOXES, "left out"),
    FlawKind.DUPLICATE_BOX: (FlawGroup.BOXES, "the first is kept"),
    FlawKind.CROWD_VALUE: (FlawGroup.BOXES, "kept, as a single object"),
    FlawKind.NO_POLYGON: (FlawGroup.OUTLINES, "the box is kept"),
    FlawKind.OUTLINE_CLIPPED: (FlawGroup.OUTLINES, "clipped"),
    FlawKind.OUTLINE_ELSEWHERE: (FlawGroup.OUTLINES, "the box is kept"),
    FlawKind.AREA: (FlawGroup.OUTLINES, "the area of the outline or the box is used"),
    FlawKind.MASK: (None, "the box is kept"),
    FlawKind.TURNED: (None, "the upright box around it is used"),
    FlawKind.UNKNOWN_IMAGE: (FlawGroup.BOXES, "left out"),
    FlawKind.DUPLICATE_ID: (FlawGroup.IDS, "the first image is kept; all boxes are kept"),
    FlawKind.DUPLICATE_IMAGE: (FlawGroup.IDS, "one image with the objects of all entries"),
    FlawKind.COPY: (None, "kept"),
    FlawKind.SIZE: (FlawGroup.SIZES, "kept"),
    FlawKind.LEAK: (FlawGroup.LEAKS, "kept"),
    FlawKind.SAME_SPLIT: (FlawGroup.LEAKS, "kept; AP is too high if a model is trained on these images"),
    FlawKind.MISSING: (FlawGroup.IMAGES, "left out"),
    FlawKind.UNREADABLE: (FlawGroup.IMAGES, "left out"),
    FlawKind.LOW_RANGE: (None, "kept, but dark in 8 bits; stretch the values of the files"),
    FlawKind.NO_ANNOTATION: (FlawGroup.IMAGES, "left out"),
    FlawKind.UNUSED_ROOT: (None, "left out"),
    FlawKind.NO_LABEL_FILE: (None, "kept, as background"),
    FlawKind.FIELD_COUNT: (FlawGroup.BOXES, "left out"),
    FlawKind.NOT_SHARES: (FlawGroup.BOXES, "left out; divide x by the width and y by the height of the image"),
    FlawKind.OTHER_CLASS: (None, "left out, as `classes` states"),
    FlawKind.BACKGROUND: (None, "kept, as background"),
}


@dataclass(frozen=True)
class Flaw:
    """One flaw that was found.

    Attributes:
        kind: What is wrong.
        file: The file that has the flaw.
        detail: The value, and where it is in the file.
        boxes: How many boxes are left out because of it.
        box_xyxy: The box that has the flaw as it is stated, corners in pixels; None if the flaw is not that of a box.
    """

    kind: FlawKind
    file: str
    detail: str
    boxes: int = 0
    box_xyxy: tuple[float, float, float, float] | None = None
