"""The checks of a data set: their ids, how serious their findings are, and what to do about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from yolov7.data.flaws import FlawKind
from yolov7.errors import SettingError, suggest

Box = tuple[float, float, float, float]  # corners in pixels


class Severity(StrEnum):
    """How serious a finding is."""

    ERROR = "error"  # data are lost or wrong, or a figure is not what it seems
    WARNING = "warning"  # probably a mistake, or harmful to training
    NOTE = "note"  # may be intended


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        id: A name that never changes.
        title: What a finding is.
        severity: How serious a finding is.
        remedy: What to do about it.
        fix: What a cleaned copy of the annotations does about it; None if only a person can decide.
    """

    id: str
    title: str
    severity: Severity
    remedy: str
    fix: str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        split: The split.
        file: The file to look at: an image, or an annotation file.
        detail: The value, and where it is in the file.
        images: Images that show it, the first one with the boxes.
        boxes_xyxy: Boxes in the first image, corners in pixels.
    """

    split: str
    file: str
    detail: str
    images: tuple[Path, ...] = ()
    boxes_xyxy: tuple[Box, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        check: The check.
        findings: All findings, split by split.
        crash: The error because of which the check did not end; None if it ended.
    """

    check: Check
    findings: tuple[Finding, ...]
    crash: str | None = None


def _error(id: str, title: str, remedy: str, fix: str | None = None) -> Check:
    return Check(id, title, Severity.ERROR, remedy, fix)


def _warning(id: str, title: str, remedy: str, fix: str | None = None) -> Check:
    return Check(id, title, Severity.WARNING, remedy, fix)


def _note(id: str, title: str, remedy: str, fix: str | None = None) -> Check:
    return Check(id, title, Severity.NOTE, remedy, fix)


CHECK_OF_FLAW: dict[FlawKind, Check] = {
    FlawKind.MISSING: _error(
        "image-missing", FlawKind.MISSING, "restore the file, or remove its entry", "entry removed"
    ),
    FlawKind.UNREADABLE: _error(
        "image-unreadable", FlawKind.UNREADABLE, "replace the file, or remove its entry", "entry removed"
    ),
    FlawKind.NO_ANNOTATION: _error(
        "annotation-missing", FlawKind.NO_ANNOTATION, "restore the file, or remove its entry", "entry removed"
    ),
    FlawKind.NO_LABEL_FILE: _note(
        "label-file-missing", FlawKind.NO_LABEL_FILE, "add an empty label file if the image shows no object"
    ),
    FlawKind.DUPLICATE_IMAGE: _error(
        "image-twice", FlawKind.DUPLICATE_IMAGE, "keep one entry with all objects", "entries joined"
    ),
    FlawKind.DUPLICATE_ID: _error(
        "id-twice", FlawKind.DUPLICATE_ID, "give each entry an id of its own", "numbered again, or second entry removed"
    ),
    FlawKind.LEAK: _error(
        "image-leak",
        "image that is in another split too",
        "remove it from one of the splits; otherwise AP is too high",
    ),
    FlawKind.SAME_SPLIT: _warning(
        "split-same",
        "split with the same images as another split",
        "name another split, unless nothing is trained on these images; otherwise AP is too high",
    ),
    FlawKind.SIZE: _warning(
        "image-size", FlawKind.SIZE, "correct the size; check whether the boxes fit the image", "size corrected"
    ),
    FlawKind.COPY: _note("image-copy", FlawKind.COPY, "remove one of the two images"),
    FlawKind.LOW_RANGE: _warning(
        "image-dark", FlawKind.LOW_RANGE, "stretch the values of the file, which is almost black in 8 bits"
    ),
    FlawKind.BACKGROUND: _note(
        "image-without-boxes", FlawKind.BACKGROUND, "check that it shows no object; it is then used as background"
    ),
    FlawKind.UNKNOWN_IMAGE: _error(
        "unknown-image", FlawKind.UNKNOWN_IMAGE, "add the image, or remove the annotation", "annotation removed"
    ),
    FlawKind.UNKNOWN_CATEGORY: _error(
        "unknown-category", FlawKind.UNKNOWN_CATEGORY, "add the class, or correct its name or number", "box removed"
    ),
    FlawKind.UNUSED_ROOT: _note("category-unused", FlawKind.UNUSED_ROOT, "nothing; it is no class", "category removed"),
    FlawKind.OTHER_CLASS: _note("class-left-out", FlawKind.OTHER_CLASS, "nothing; the settings leave it out"),
    FlawKind.NO_AREA: _error("box-no-area", FlawKind.NO_AREA, "draw the box again, or remove it", "box removed"),
    FlawKind.NOT_FINITE: _error(
        "box-no-numbers", FlawKind.NOT_FINITE, "write four finite numbers, or remove the box", "box removed"
    ),
    FlawKind.SHARES: _error(
        "box-in-shares",
        FlawKind.SHARES,
        "multiply x by the width and y by the height of the image",
        "converted to pixels",
    ),
    FlawKind.NOT_SHARES: _error(
        "box-in-pixels", FlawKind.NOT_SHARES, "divide x by the width and y by the height of the image", "box removed"
    ),
    FlawKind.FIELD_COUNT: _error(
        "line-values", FlawKind.FIELD_COUNT, "write a class and four numbers, or a polygon", "line removed"
    ),
    FlawKind.OUTSIDE: _error(
        "box-outside", FlawKind.OUTSIDE, "check that the box belongs to this image", "box removed"
    ),
    FlawKind.CLIPPED: _warning("box-clipped", FlawKind.CLIPPED, "clip the box to the image", "clipped"),
    FlawKind.DUPLICATE_BOX: _warning("box-twice", FlawKind.DUPLICATE_BOX, "remove one of them", "second box removed"),
    FlawKind.CROWD_VALUE: _warning(
        "crowd-value", FlawKind.CROWD_VALUE, "write 0 for an object and 1 for a crowd region", "set to 0"
    ),
    FlawKind.TURNED: _note("box-rotated", FlawKind.TURNED, "nothing, if the upright box around it is what you want"),
    FlawKind.NO_POLYGON: _warning(
        "outline-no-polygon", FlawKind.NO_POLYGON, "write three points or more, or no outline", "outline removed"
    ),
    FlawKind.OUTLINE_CLIPPED: _warning(
        "outline-clipped", FlawKind.OUTLINE_CLIPPED, "clip the outline to the image", "clipped"
    ),
    FlawKind.OUTLINE_ELSEWHERE: _warning(
        "outline-elsewhere", FlawKind.OUTLINE_ELSEWHERE, "correct the box or the outline", "outline removed"
    ),
    FlawKind.MASK: _note("outline-mask", FlawKind.MASK, "write polygons if training shall use the outline"),
    FlawKind.AREA: _warning("area-value", FlawKind.AREA, "write the area in square pixels, or none", "area removed"),
}
"""The check of each kind of flaw that reading finds."""

BOX_OVERLAP = _warning(
    "box-overlap",
    "two boxes of one class with an IoU above 0.95",
    "remove one of them if both mean the same object",
    "second box removed",
)
BOX_WHOLE_IMAGE = _warning(
    "box-whole-image", "box that covers the whole image", "draw the box around the object, or crop the image less"
)
BOX_TOO_SMALL = _warning(
    "box-too-small",
    "box of at most 2 pixels at the training size, which is never learned",
    "train at a larger size or on tiles, or remove the box",
)
BOX_BELOW_STRIDE = _note(
    "box-below-stride",
    "box smaller than one cell of the finest map at the training size",
    "train at a larger size or on tiles if such objects matter",
)
NEAR_COPY = _note(
    "image-near-copy",
    "image that looks like another image of the split",
    "remove one of the two if they show the same scene",
)
NEAR_LEAK = _warning(
    "image-near-leak",
    "image that looks like an image of another split",
    "put both into one split; otherwise AP may be too high",
)
ASPECT = _note(
    "image-aspect",
    "image whose longer side is more than 4 times the shorter one",
    "cut it into tiles; most of the square that the model sees is padding",
)
CHANNELS = _note(
    "image-channels",
    "image with other channels than most: grey, alpha or CMYK",
    "convert it to RGB yourself if the conversion matters",
)
DEPTH = _note(
    "image-depth",
    "image with more than 8 bits per sample, unlike most",
    "convert it to 8 bits yourself if the conversion matters",
)
CLASS_ABSENT = _warning(
    "class-absent", "class without objects in a split", "annotate objects of the class, or remove it from the classes"
)
CLASS_SKEW = _warning(
    "class-skew",
    "class that is far more frequent in one split than in another",
    "divide the images again, stratified by class",
)
SIZE_SKEW = _warning(
    "size-skew",
    "objects that are far larger in one split than in another",
    "divide the images again, or state the difference beside AP",
)
ANCHORS = _warning(
    "anchors",
    "anchors that do not fit enough boxes",
    "train with anchors that are fitted to the boxes, or at another size",
)
LABEL_MISSING = _note(
    "label-missing", "confident detection without a label", "add the label if the detection shows an object"
)
LABEL_CLASS = _note(
    "label-class", "confident detection of another class than the label", "correct the class if the model is right"
)
LABEL_UNFOUND = _note(
    "label-unfound", "label that the model never finds", "remove or correct the label if there is no such object"
)

SPLIT_CHECKS = (CHECK_OF_FLAW[FlawKind.SAME_SPLIT], CLASS_ABSENT, CLASS_SKEW, SIZE_SKEW, ANCHORS)  # of whole splits
MODEL_CHECKS = (LABEL_MISSING, LABEL_CLASS, LABEL_UNFOUND)
CHECKS: tuple[Check, ...] = (
    *CHECK_OF_FLAW.values(),
    BOX_OVERLAP, BOX_WHOLE_IMAGE, BOX_TOO_SMALL, BOX_BELOW_STRIDE,
    NEAR_COPY, NEAR_LEAK, ASPECT, CHANNELS, DEPTH,
    CLASS_ABSENT, CLASS_SKEW, SIZE_SKEW, ANCHORS,
    *MODEL_CHECKS,
)  # fmt: skip


def select_checks(only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[Check, ...]:
    """Select checks by their ids.

    Args:
        only: The checks to run; none means all.
        skip: Checks to leave out.

    Returns:
        The checks in their usual order.

    Raises:
        SettingError: If an id is unknown, or no check is left.
    """
    known = [check.id for check in CHECKS]
    for id in (*only, *skip):
        if id not in known:
            raise SettingError(f"there is no check {id!r}{suggest(id, known) or '; there are: ' + ', '.join(known)}")
    chosen = tuple(check for check in CHECKS if (not only or check.id in only) and check.id not in skip)
    if not chosen:
        raise SettingError("no check is left; name other checks in --only or fewer in --skip")
    return chosen
