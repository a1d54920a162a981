"""What may be wrong with a data set, and what is treated alike; imports nothing heavy, as params.yaml names it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FlawGroup(StrEnum):
    """Flaws that are treated alike; `data.flaws` in params.yaml says how."""

    BOXES = "boxes"
    OUTLINES = "outlines"
    IDS = "ids"
    SIZES = "sizes"
    LEAKS = "leaks"
    IMAGES = "images"  # allowed up to a share of them


class FlawKind(StrEnum):
    """One kind of flaw; the text is what the health report shows."""

    NO_AREA = "box without area"
    NOT_FINITE = "box that is not numbers"
    OUTSIDE = "box outside its image"
    CLIPPED = "box reaching outside its image"
    UNKNOWN_CATEGORY = "unknown category"
    DUPLICATE_BOX = "box given twice"
    NO_POLYGON = "outline that is no polygon"
    OUTLINE_CLIPPED = "outline reaching outside its image"
    OUTLINE_ELSEWHERE = "outline that is not its box's"
    MASK = "mask in place of an outline"
    UNKNOWN_IMAGE = "annotation of an unknown image"
    DUPLICATE_ID = "id given twice"
    SIZE = "image of another size than annotated"
    LEAK = "image that is in train too"
    MISSING = "missing image"
    UNREADABLE = "unreadable image"
    NO_ANNOTATION = "missing or damaged annotation"
    BACKGROUND = "image without boxes"

    @property
    def group(self) -> FlawGroup | None:
        """What it is treated alike with; None for what is worth telling but no flaw."""
        return _TREATED[self][0]

    @property
    def outcome(self) -> str:
        """What becomes of it where it is not fatal."""
        return _TREATED[self][1]


_TREATED: dict[FlawKind, tuple[FlawGroup | None, str]] = {
    FlawKind.NO_AREA: (FlawGroup.BOXES, "left out"),
    FlawKind.NOT_FINITE: (FlawGroup.BOXES, "left out"),
    FlawKind.OUTSIDE: (FlawGroup.BOXES, "left out"),
    FlawKind.CLIPPED: (FlawGroup.BOXES, "clipped"),
    FlawKind.UNKNOWN_CATEGORY: (FlawGroup.BOXES, "left out"),
    FlawKind.DUPLICATE_BOX: (FlawGroup.BOXES, "the first is kept"),
    FlawKind.NO_POLYGON: (FlawGroup.OUTLINES, "the box is kept"),
    FlawKind.OUTLINE_CLIPPED: (FlawGroup.OUTLINES, "clipped"),
    FlawKind.OUTLINE_ELSEWHERE: (FlawGroup.OUTLINES, "the box is kept"),
    FlawKind.MASK: (None, "the box is kept"),
    FlawKind.UNKNOWN_IMAGE: (FlawGroup.BOXES, "left out"),
    FlawKind.DUPLICATE_ID: (FlawGroup.IDS, "of images, the first is kept; boxes all"),
    FlawKind.SIZE: (FlawGroup.SIZES, "kept"),
    FlawKind.LEAK: (FlawGroup.LEAKS, "kept"),
    FlawKind.MISSING: (FlawGroup.IMAGES, "left out"),
    FlawKind.UNREADABLE: (FlawGroup.IMAGES, "left out"),
    FlawKind.NO_ANNOTATION: (FlawGroup.IMAGES, "left out"),
    FlawKind.BACKGROUND: (None, "kept, as background"),
}


@dataclass(frozen=True)
class Flaw:
    """One thing wrong: its kind, the file it was found in, and the value."""

    kind: FlawKind
    file: str
    detail: str
