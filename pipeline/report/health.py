"""The health of prepared data in figures: what there is of each class and size, and every flaw that was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from yolov7.data.augment.letterbox import letterbox
from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.images import Image, read_image
from yolov7.data.index import ImageIndex
from yolov7.detect.drawing import class_colour, contact_sheet, draw_boxes, draw_outlines
from yolov7.settings import Settings

SMALL, LARGE = 32.0**2, 96.0**2  # pixels, COCO's bounds
MAX_LISTED = 500  # flaws of a split
_SHEET_COLUMNS, _SHEET_ROWS, _SHEET_CELL = 6, 4, 320
_LEGIBLE = 480  # pixels of the longer side of what is drawn on


class ListedFlaw(Settings):
    """One flaw."""

    kind: str
    file: str
    detail: str


class SplitHealth(Settings):
    """The figures of a split; crowd regions count in `crowd_regions` alone."""

    images: int
    boxes: int
    crowd_regions: int
    images_without_boxes: int
    boxes_per_image_mean: float
    boxes_per_image_max: int
    boxes_per_class: dict[str, int]
    boxes_per_size: dict[str, int]  # small: below 32 x 32 pixels of the image, large: above 96 x 96
    image_sizes: dict[str, int]  # "640x480": the most frequent ones
    flaws: dict[str, int]
    listed_flaws: tuple[ListedFlaw, ...]


class HealthReport(Settings):
    """`artifacts/prepare/health.json`."""

    source: str
    class_names: tuple[str, ...]
    splits: dict[str, SplitHealth]


def make_report(splits: Mapping[str, tuple[ImageIndex, tuple[Flaw, ...]]], *, source: str) -> HealthReport:
    """The report of all splits."""
    names = next(iter(splits.values()))[0].class_names
    health = {split: split_health(index, flaws) for split, (index, flaws) in splits.items()}
    return HealthReport(source=source, class_names=names, splits=health)


def split_health(index: ImageIndex, flaws: Sequence[Flaw]) -> SplitHealth:
    """The figures of one split."""
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
        flaws=dict(Counter(str(flaw.kind) for flaw in flaws).most_common()),
        listed_flaws=tuple(
            ListedFlaw(kind=str(flaw.kind), file=flaw.file, detail=flaw.detail) for flaw in flaws[:MAX_LISTED]
        ),
    )


def describe_flaws(flaws: Sequence[Flaw]) -> str:
    """`2 flaws (box without area: 2)`; images without boxes and masks are told apart, as they are none."""
    counts = Counter(flaw.kind for flaw in flaws)
    backgrounds, masks = counts.pop(FlawKind.BACKGROUND, 0), counts.pop(FlawKind.MASK, 0)
    total = sum(counts.values())
    kinds = ", ".join(f"{kind}: {count:,}" for kind, count in counts.most_common(3))
    text = f"{total:,} flaw{'' if total == 1 else 's'}" + (f" ({kinds})" if total else "")
    text += f", {backgrounds:,} images without boxes" if backgrounds else ""
    return f"{text}, {masks:,} objects with masks, taken as boxes" if masks else text


def write_sheet(path: Path, index: ImageIndex) -> None:
    """A contact sheet: images spread over the split, with their boxes and outlines."""
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
    names = [index.class_names[label] for label in labels]
    return draw_boxes(
        image,
        geometry.to_letterbox(index.boxes_of(i)),
        texts=[f"{name} (crowd)" if many else name for name, many in zip(names, crowd, strict=True)],
        colours=colours,
    )
