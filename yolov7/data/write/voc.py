"""Writer of Pascal VOC folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from yolov7.data.write.sized import Losses, SizedSplit, WrittenFiles
from yolov7.errors import DataError, shown

IMAGE_FOLDER = "JPEGImages"
_FRACTION = 1e-6  # pixels; smaller fractions are rounding errors


def write_voc(folder: Path, splits: Mapping[str, SizedSplit], losses: Losses) -> None:
    """Write `Annotations/*.xml` and a list `ImageSets/Main/SPLIT.txt` for each split.

    VOC counts pixels from 1 and includes the last one, so that a box is written as x + 1, y + 1, x + width,
    y + height. Coordinates with fractions are written with up to nine decimals.

    Args:
        folder: The folder of the data set, in which the images are in `JPEGImages`.
        splits: The splits by name.
        losses: What cannot be expressed is added.

    Raises:
        DataError: If VOC cannot express the name of a class.
    """
    (folder / "ImageSets/Main").mkdir(parents=True)
    files = WrittenFiles()
    class_names: tuple[str, ...] = ()
    used = set[str]()
    for name, split in splits.items():
        class_names = split.class_names
        if odd := [one for one in class_names if not one.isprintable() or one != one.strip()]:
            raise DataError(f"VOC cannot express the class name {shown(odd[0])}; rename the class in the source")
        for image, objects in split.rows():
            text = _annotation(split, image, objects, losses, used)
            files.add(folder / "Annotations" / f"{Path(split.names[image]).stem}.xml", text)
        stems = "".join(f"{Path(image).stem}\n" for image in split.names)
        (folder / "ImageSets/Main" / f"{name}.txt").write_text(stems, encoding="utf-8")
    if files.differing:
        losses["images of several splits with different objects (the first split counts)"] += len(files.differing)
    if unused := [name for name in class_names if name not in used]:
        losses["classes without objects"] += len(unused)
    if (kept := [name for name in class_names if name in used]) != sorted(kept):
        losses["places of classes (VOC has no order of classes; they are sorted by name)"] += len(kept)


def _annotation(split: SizedSplit, image: int, objects: range, losses: Losses, used: set[str]) -> str:
    width, height = split.sizes[image].tolist()
    written = []
    for row in objects:
        name = split.class_names[int(split.annotations.labels[row])]
        if (box := _bndbox(split, row, losses)) is not None:
            used.add(name)
            written.append(f"\n  <object>\n    <name>{escape(name)}</name>\n    {box}\n  </object>")
    return (
        f"<annotation>\n  <folder>{IMAGE_FOLDER}</folder>\n  <filename>{escape(split.names[image])}</filename>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>{''.join(written)}\n"
        "</annotation>\n"
    )


def _bndbox(split: SizedSplit, row: int, losses: Losses) -> str | None:
    """Return the element of a box; None if VOC cannot express the object."""
    source = split.annotations
    x, y, width, height = source.boxes_xywh[row].tolist()
    if source.crowd[row]:
        losses["crowd regions"] += 1
        return None
    if not np.isfinite(source.boxes_xywh[row]).all():
        losses["boxes that are not numbers"] += 1
        return None
    if width <= 1 or height <= 1:
        losses["boxes that are at most one pixel wide or high"] += 1
        return None
    if split.parts_of(row):
        losses["outlines (the boxes are kept)"] += 1
    elif not np.isnan(source.areas[row]) and not np.isclose(source.areas[row], width * height, rtol=1e-6):
        losses["areas that differ from those of the boxes"] += 1
    corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    if any(abs(value - round(value)) > _FRACTION for value in corners.values()):
        losses["boxes with fractions of a pixel (written as such; some tools read whole numbers only)"] += 1
    inner = "".join(f"<{key}>{_number(value)}</{key}>" for key, value in corners.items())
    return f"<bndbox>{inner}</bndbox>"


def _number(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")
