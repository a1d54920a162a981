"""What may be wrong with a data set, and what is treated alike; imports nothing heavy, as params.yaml names it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FlawGroup(StrEnum):
    """Flaws that are treated alike; `data.flaws` in params.yaml says how."""

    BOXES = "boxes"  # the box is left out, or clipped
    IDS = "ids"  # the first of two images with the same id stays, boxes stay
    SIZES = "sizes"  # the image stays as it is
    LEAKS = "leaks"  # the image stays in both splits
    IMAGES = "images"  # the image is left out


class FlawKind(StrEnum):
    """One kind of flaw; the text is what the health report shows."""

    NO_AREA = "box without area"
    NOT_FINITE = "box that is not numbers"
    OUTSIDE = "box outside its image"
    CLIPPED = "box reaching outside its image"
    UNKNOWN_CATEGORY = "unknown category"
    DUPLICATE_BOX = "box given twice"
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
        """How it is treated; None for what is worth telling but no flaw."""
        return _GROUPS.get(self)


_GROUPS = {
    FlawKind.NO_AREA: FlawGroup.BOXES,
    FlawKind.NOT_FINITE: FlawGroup.BOXES,
    FlawKind.OUTSIDE: FlawGroup.BOXES,
    FlawKind.CLIPPED: FlawGroup.BOXES,
    FlawKind.UNKNOWN_CATEGORY: FlawGroup.BOXES,
    FlawKind.DUPLICATE_BOX: FlawGroup.BOXES,
    FlawKind.UNKNOWN_IMAGE: FlawGroup.BOXES,
    FlawKind.DUPLICATE_ID: FlawGroup.IDS,
    FlawKind.SIZE: FlawGroup.SIZES,
    FlawKind.LEAK: FlawGroup.LEAKS,
    FlawKind.MISSING: FlawGroup.IMAGES,
    FlawKind.UNREADABLE: FlawGroup.IMAGES,
    FlawKind.NO_ANNOTATION: FlawGroup.IMAGES,
}


@dataclass(frozen=True)
class Flaw:
    """One thing wrong: its kind, the file it was found in, and the value."""

    kind: FlawKind
    file: str
    detail: str
