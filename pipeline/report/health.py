"""The health of prepared data in figures: the objects of each class and size, and all flaws that were found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.report.check_report import CheckReport
from yolov7.data.augment.letterbox import letterbox
from yolov7.data.flaws import Flaw, FlawGroup, FlawKind
from yolov7.data.images import Image, read_image
from yolov7.data.index import ImageIndex
from yolov7.detect.drawing import class_colour, contact_sheet, draw_boxes, draw_outlines
from yolov7.detect.text import drawable_names
from yolov7.errors import counted
from yolov7.system.settings_base import Settings

SMALL, LARGE = 32.0**2, 96.0**2  # square pixels, COCO's bounds
MAX_LISTED = 500  # flaws of a split, and findings of a check in the files of `prepare`
REPORT_VERSION = 1
_SHEET_COLUMNS, _SHEET_ROWS, _SHEET_CELL = 6, 4, 320
_LEGIBLE = 480  # pixels of the longer side of an image that boxes are drawn on
_REMARKS = {
    FlawKind.BACKGROUND: ("image without boxes", "images without boxes"),
    FlawKind.MASK: ("object with a mask, taken as a box", "objects with masks, taken as boxes"),
    FlawKind.TURNED: ("rotated rectangle", "rotated rectangles"),
    FlawKind.COPY: ("copy of another image", "copies of other images"),
    FlawKind.LOW_RANGE: ("16-bit image that is dark in 8 bits", "16-bit images that are dark in 8 bits"),
    FlawKind.NO_LABEL_FILE: ("image without a label file", "images without label files"),
    FlawKind.OTHER_CLASS: ("class left out", "classes left out"),
    FlawKind.UNUSED_ROOT: ("unused supercategory left out", "unused supercategories left out"),
}


class ListedFlaw(Settings):
    """A flaw of the data.

    Attributes:
        kind: The text of its `FlawKind`.
        file: The file that has it.
        detail: The value, and where it is.
    """

    kind: str
    file: str
    detail: str


class SplitHealth(Settings):
    """The figures of a split.

    Attributes:
        images: The number of images.
        boxes: The number of objects, without crowd regions.
        crowd_regions: The number of crowd regions.
        images_without_boxes: The number of images without objects and crowd regions.
        boxes_per_image_mean: Mean number of boxes of an image, crowd regions included.
        boxes_per_image_max: Largest number of boxes of an image.
        boxes_per_class: The number of objects of each class.
        boxes_per_size: The number of objects that are small (below 32 x 32 pixels), medium, and large (above 96 x 96).
        image_sizes: The number of images of the most frequent sizes, such as "640x480".
        images_left_out: The number of images that cannot be used.
        boxes_left_out: The number of boxes that cannot be used, or belong to images that cannot be used.
        flaws: The number of flaws of each kind.
        listed_flaws: The first flaws.
    """

    images: int
    boxes: int
    crowd_regions: int
    images_without_boxes: int
    boxes_per_image_mean: float
    boxes_per_image_max: int
    boxes_per_class: dict[str, int]
    boxes_per_size: dict[str, int]
    image_sizes: dict[str, int]
    images_left_out: int
    boxes_left_out: int
    flaws: dict[str, int]
    listed_flaws: tuple[ListedFlaw, ...]


class HealthReport(Settings):
    """The health of data: the content of `artifacts/prepare/health.json` and of the output of `yolov7 data check`.

    Attributes:
        version: The version of this form. It grows if a key changes its meaning or is removed.
        source: Where the data come from.
        class_names: The names of the classes.
        image_size: The training size in pixels for which boxes were checked; None if they were not.
        splits: The figures of each split.
        checks: The result of each check that ran.
    """

    version: int = REPORT_VERSION
    source: str
    class_names: tuple[str, ...]
    image_size: int | None = None
    splits: dict[str, SplitHealth]
    checks: tuple[CheckReport, ...] = ()


def make_report(
    splits: Mapping[str, tuple[ImageIndex, tuple[Flaw, ...]]],
    *,
    source: str,
    checks: tuple[CheckReport, ...] = (),
    image_size: int | None = None,
) -> HealthReport:
    """Return the report of all splits.

    Args:
        splits: The index and the flaws of each split.
        source: Where the data come from.
        checks: The results of the checks.
        image_size: The training size in pixels for which boxes were checked.

    Returns:
        The report.
    """
    names = next(iter(splits.values()))[0].class_names
    health = {split: split_health(index, flaws) for split, (index, flaws) in splits.items()}
    return HealthReport(source=source, class_names=names, image_size=image_size, splits=health, checks=checks)


def split_health(index: ImageIndex, flaws: Sequence[Flaw]) -> SplitHealth:
    """Return the figures of a split.

    Args:
        index: The split.
        flaws: Its flaws.

    Returns:
        The figures.
    """
    areas, labels = index.object_areas[~index.crowd], index.labels[~index.crowd]
    per_class = np.bincount(labels, minlength=len(index.class_names))
    per_image = np.diff(index.box_offsets)
    sizes = Counter(f"{width}x{height}" for width, height in zip(index.widths, index.heights, strict=True))
    small, large = int((areas < SMALL).sum()), int((areas > LARGE).sum())
    return SplitHealth(
        images=len(index),
        boxes=len(labels),
        crowd_regions=int(index.crowd.sum()),
        images_without_boxes=int((per_image == 0).sum()),
        boxes_per_image_mean=round(float(per_image.mean()), 2) if len(index) else 0.0,
        boxes_per_image_max=int(per_image.max(initial=0)),
        boxes_per_class={name: int(count) for name, count in zip(index.class_names, per_class, strict=True)},
        boxes_per_size={"small": small, "medium": len(labels) - small - large, "large": large},
        image_sizes=dict(sizes.most_common(8)),
        images_left_out=sum(flaw.kind.group is FlawGroup.IMAGES for flaw in flaws),
        boxes_left_out=sum(flaw.boxes for flaw in flaws),
        flaws=dict(Counter(str(flaw.kind) for flaw in flaws).most_common()),
        listed_flaws=tuple(
            ListedFlaw(kind=str(flaw.kind), file=flaw.file, detail=flaw.detail) for flaw in flaws[:MAX_LISTED]
        ),
    )


def describe_flaws(flaws: Sequence[Flaw]) -> str:
    """Return a line such as `2 flaws (box without area: 2), 1 image without boxes`.

    Args:
        flaws: The flaws of all splits.

    Returns:
        The number of flaws with the most frequent kinds, then the remarks that are no flaws.
    """
    counts = Counter(flaw.kind for flaw in flaws)
    remarks = {kind: counts.pop(kind) for kind in list(counts) if kind.group is None}
    total = sum(counts.values())
    kinds = ", ".join(f"{kind}: {count:,}" for kind, count in counts.most_common(3))
    texts = [counted(total, "flaw") + (f" ({kinds})" if total else "")]
    texts.extend(f"{count:,} {_REMARKS[kind][count != 1]}" for kind, count in remarks.items())
    return ", ".join(texts)


def write_sheet(path: Path, index: ImageIndex) -> None:
    """Write a contact sheet: images spread over the split, with their boxes and outlines.

    Args:
        path: The JPEG file.
        index: The split.
    """
    count = min(len(index), _SHEET_COLUMNS * _SHEET_ROWS)
    chosen = np.linspace(0, len(index) - 1, count).astype(int)
    sheet = contact_sheet([_draw_objects(index, int(i)) for i in chosen], _SHEET_COLUMNS, cell=_SHEET_CELL, margin=4)
    content = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    path.write_bytes(content.tobytes())


def _draw_objects(index: ImageIndex, i: int) -> Image:
    image, geometry = letterbox(read_image(index.paths[i]), size=_LEGIBLE, stride=1)
    labels, crowd = index.labels_of(i).tolist(), index.crowd_of(i)
    colours = [class_colour(label) for label in labels]
    if outlines := geometry.outlines_to_letterbox(index.outlines_of(i)):
        image = draw_outlines(image, outlines, colours=colours)
    class_names = drawable_names(index.class_names)
    names = [class_names[label] for label in labels]
    return draw_boxes(
        image,
        geometry.to_letterbox(index.boxes_of(i)),
        texts=[f"{name} (crowd)" if many else name for name, many in zip(names, crowd, strict=True)],
        colours=colours,
    )
