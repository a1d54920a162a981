"""Running of checks: each on its own, so that an error in one of them stops no other one and is reported."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.health import checks
from yolov7.data.health.box_checks import (
    find_boxes_below_stride,
    find_overlaps,
    find_small_boxes,
    find_whole_images,
)
from yolov7.data.health.checks import CHECK_OF_FLAW, Check, CheckResult, Finding
from yolov7.data.health.image_checks import (
    find_leaks,
    find_near_copies,
    find_near_leaks,
    find_odd_aspects,
    find_odd_channels,
    find_odd_depths,
    find_same_splits,
    read_headers,
)
from yolov7.data.health.skew import find_absent_classes, find_class_skew, find_size_skew
from yolov7.data.image_headers import Header
from yolov7.data.index import ImageIndex
from yolov7.errors import one_line

Find = Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class ReadData:
    """Splits that were read.

    Attributes:
        splits: The index and the flaws of each split, in the order in which splits are compared.
        image_size: Side of the square that the model sees, pixels; None if it is not known.
        stride: Side of a cell of the finest map of the model, pixels.
    """

    splits: Mapping[str, tuple[ImageIndex, tuple[Flaw, ...]]]
    image_size: int | None = None
    stride: int = 8

    @cached_property
    def indices(self) -> dict[str, ImageIndex]:
        """The index of each split that has images."""
        return {split: index for split, (index, _) in self.splits.items() if len(index)}

    @cached_property
    def headers(self) -> dict[str, list[Header | None]]:
        """The headers of the images of each split. They are read on first use."""
        return {split: read_headers(index) for split, index in self.indices.items()}


def quick_checks(data: ReadData) -> dict[str, Find]:
    """Return the checks that need neither a training size nor the image files.

    Args:
        data: The splits.

    Returns:
        For the id of each check what finds its findings.
    """
    indices = data.indices
    found: dict[str, Find] = {check.id: _flaws_of_kind(data, kind) for kind, check in CHECK_OF_FLAW.items()}
    return found | {
        CHECK_OF_FLAW[FlawKind.LEAK].id: lambda: find_leaks(indices),
        CHECK_OF_FLAW[FlawKind.SAME_SPLIT].id: lambda: find_same_splits(indices),
        checks.BOX_OVERLAP.id: lambda: _each(indices, find_overlaps),
        checks.BOX_WHOLE_IMAGE.id: lambda: _each(indices, find_whole_images),
        checks.NEAR_COPY.id: lambda: _each(indices, find_near_copies),
        checks.NEAR_LEAK.id: lambda: find_near_leaks(indices),
        checks.ASPECT.id: lambda: _each(indices, find_odd_aspects),
        checks.CLASS_ABSENT.id: lambda: find_absent_classes(indices),
        checks.CLASS_SKEW.id: lambda: find_class_skew(indices),
        checks.SIZE_SKEW.id: lambda: find_size_skew(indices),
    }


def all_checks(data: ReadData) -> dict[str, Find]:
    """Return the checks that need no model.

    Args:
        data: The splits and the training size.

    Returns:
        For the id of each check what finds its findings.
    """
    indices, image_size, stride = data.indices, data.image_size, data.stride
    if image_size is None:
        raise ValueError("the checks of small boxes need a training size")
    return quick_checks(data) | {
        checks.BOX_TOO_SMALL.id: lambda: _each(
            indices, lambda split, index: find_small_boxes(split, index, image_size=image_size)
        ),
        checks.BOX_BELOW_STRIDE.id: lambda: _each(
            indices,
            lambda split, index: find_boxes_below_stride(split, index, image_size=image_size, stride=stride),
        ),
        checks.CHANNELS.id: lambda: find_odd_channels(indices, data.headers),
        checks.DEPTH.id: lambda: find_odd_depths(indices, data.headers),
    }


def run_checks(chosen: Sequence[Check], finders: Mapping[str, Find]) -> tuple[CheckResult, ...]:
    """Run checks.

    Args:
        chosen: The checks; those without a finder are left out.
        finders: For the id of each check what finds its findings.

    Returns:
        The result of each check. An error in a check is part of its result; the other checks run nevertheless.
    """
    return tuple(_run(check, finders[check.id]) for check in chosen if check.id in finders)


def _run(check: Check, find: Find) -> CheckResult:
    findings: list[Finding] = []
    try:
        findings.extend(find())
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        crash = f"{type(error).__name__}: {one_line(error)} ({where.name}, line {where.lineno} of {where.filename})"
        return CheckResult(check, tuple(findings), crash)
    return CheckResult(check, tuple(findings))


def _each(indices: Mapping[str, ImageIndex], find: Callable[[str, ImageIndex], Iterable[Finding]]) -> Iterable[Finding]:
    for split, index in indices.items():
        yield from find(split, index)


def _flaws_of_kind(data: ReadData, kind: FlawKind) -> Find:
    def find() -> Iterable[Finding]:
        paths = {split: {str(path): path for path in index.paths} for split, (index, _) in data.splits.items()}
        for split, (_, flaws) in data.splits.items():
            for flaw in flaws:
                if flaw.kind is kind:
                    image = paths[split].get(flaw.file)
                    yield Finding(
                        split,
                        flaw.file,
                        flaw.detail,
                        images=() if image is None else (image,),
                        boxes_xyxy=() if flaw.box_xyxy is None else (flaw.box_xyxy,),
                    )

    return find
