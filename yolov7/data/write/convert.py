"""Conversion of a data set from one annotation format to another, with counts of what the new format cannot express."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from yolov7.data.annotations import AnnotatedSplit, Annotations, is_in_shares, select_objects
from yolov7.data.build_index import merge_images, to_pixels
from yolov7.data.find_data import DataFormat, FoundData, folders_of_data, parse_split
from yolov7.data.flaws import Flaw
from yolov7.data.inspection import ImageFacts, KnownImages, Progress, inspect_images
from yolov7.data.write import coco, voc, yolo
from yolov7.data.write.sized import Losses, SizedSplit
from yolov7.errors import DataError

Placement = Literal["auto", "link", "copy"]
_WRITERS = {"coco": coco.write_coco, "voc": voc.write_voc, "yolo": yolo.write_yolo}
_FOLDERS = {"coco": coco.IMAGE_FOLDER, "voc": voc.IMAGE_FOLDER, "yolo": yolo.IMAGE_FOLDER}
_DIGITS = 6  # decimals to which boxes that are given as shares are rounded in pixels


@dataclass(frozen=True)
class Conversion:
    """What was converted, and what was not.

    Attributes:
        splits: The numbers of images and objects of each split.
        linked: The number of images that are hard links to those of the source; the others were copied.
        copied: The number of images that were copied.
        losses: How many things the new format cannot express, by a phrase that names them.
        flaws: Flaws of the source, because of which images or objects may be missing.
    """

    splits: Mapping[str, tuple[int, int]]
    linked: int
    copied: int
    losses: Losses
    flaws: tuple[Flaw, ...]


def convert_data(
    found: FoundData,
    format: DataFormat,
    folder: Path,
    *,
    placement: Placement = "auto",
    progress: Progress | None = None,
) -> Conversion:
    """Write a data set in another format. The source is only read.

    The folder is complete or does not exist: it is written under another name beside it and then renamed.

    Args:
        found: The source.
        format: The new format.
        folder: A folder that is empty or does not exist.
        placement: Whether images are hard links or copies; `auto`: links where the file system allows it.
        progress: Called with the number of images of a split that were checked, and the number of all its images.

    Returns:
        What was converted, and what was not.

    Raises:
        DataError: If the source cannot be used, or the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100
    _check_target(found, folder)
    losses, flaws, parsed, sizes = Losses(), list[Flaw](), {}, {}
    known = KnownImages()
    for split in found.splits:
        parsed[split], sizes[split] = _read(found, split, flaws, known, progress)
    paths = dict.fromkeys(path for one in parsed.values() for path in one.annotations.paths)
    if not paths:
        raise DataError(f"{found.description} has no image that can be read; restore the images")
    names = _name_images(list(paths), losses)
    splits = {
        name: SizedSplit(
            annotations=one.annotations if found.format == "coco" else _with_numbers(one.annotations),
            sizes=sizes[name],
            names=tuple(names[path] for path in one.annotations.paths),
            class_names=one.class_names,
            category_ids=one.category_ids if found.format == "coco" else (),
        )
        for name, one in parsed.items()
    }
    _count_ids(splits, found.format, format, losses)
    draft = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        linked = _place_images(names, draft / _FOLDERS[format], placement)
        _WRITERS[format](draft, splits, losses)
        draft.rename(folder)  # also onto an empty folder
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    counts = {name: (len(split.names), len(split.annotations.labels)) for name, split in splits.items()}
    return Conversion(counts, linked, len(names) - linked, losses, tuple(flaws))


def _check_target(found: FoundData, folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder; name a new one with -o")
    for place in {found.root, *folders_of_data(found)}:
        if folder.resolve().is_relative_to(place.resolve()):
            raise DataError(f"{folder} is inside the source {place}, which is not changed; name a folder outside of it")


def _read(
    found: FoundData, split: str, flaws: list[Flaw], known: KnownImages, progress: Progress | None
) -> tuple[AnnotatedSplit, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """Return the annotations of a split in pixels, without images that cannot be read, and the sizes of the images."""
    parsed = parse_split(found, split, class_names=found.class_names)
    flaws.extend(parsed.flaws)
    annotations = merge_images(parsed.annotations, flaws)
    facts = inspect_images(annotations.paths, known=known, progress=progress)
    flaws.extend(fact for fact in facts if isinstance(fact, Flaw))
    is_sound = np.array([isinstance(fact, ImageFacts) for fact in facts], np.bool_)
    sizes = np.array([(f.width, f.height) if isinstance(f, ImageFacts) else (0, 0) for f in facts], np.int64)
    sizes = sizes.reshape(-1, 2)
    pixels = to_pixels(annotations, sizes.astype(np.float64))
    in_shares = is_in_shares(pixels)[:, None]
    boxes = np.where(in_shares, pixels.boxes_xywh.round(_DIGITS), pixels.boxes_xywh)
    sound = _select_images(replace(pixels, boxes_xywh=boxes, in_shares=None), is_sound)
    return replace(parsed, annotations=sound), sizes[is_sound]


def _select_images(annotations: Annotations, is_kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Annotations:
    kept = np.flatnonzero(is_kept).tolist()
    objects = select_objects(annotations, np.flatnonzero(is_kept[annotations.image]))
    return replace(
        objects,
        paths=tuple(annotations.paths[i] for i in kept),
        image_ids=tuple(annotations.image_ids[i] for i in kept),
        declared_wh=annotations.declared_wh[kept],
        image=(np.cumsum(is_kept) - 1)[objects.image],
    )


def _with_numbers(annotations: Annotations) -> Annotations:
    """Replace image ids that are names by numbers: those that the names spell, as in COCO, or else 1, 2, 3, ..."""
    stems = [path.stem for path in annotations.paths]
    spelled = tuple(int(stem) for stem in stems if stem.isascii() and stem.isdigit())
    is_usable = len(set(spelled)) == len(stems) and max(spelled, default=0) < 2**53
    return replace(annotations, image_ids=spelled if is_usable else tuple(range(1, len(stems) + 1)))


def _name_images(paths: list[Path], losses: Losses) -> dict[Path, str]:
    """Return a file name for each image; all names differ without their suffix and without regard to case."""
    names: dict[Path, str] = {}
    taken, numbers = set[str](), Counter[str]()
    for path in paths:
        stem = base = re.sub(r"[\x00-\x1f\x7f]", "_", path.stem.encode(errors="replace").decode()).strip() or "image"
        while stem.lower() in taken:
            numbers[base.lower()] += 1
            stem = f"{base}-{numbers[base.lower()] + 1}"
        taken.add(stem.lower())
        names[path] = stem + path.suffix
        losses["names of images that other images have too (renamed)"] += names[path] != path.name
    return names


def _count_ids(splits: Mapping[str, SizedSplit], source: str, format: str, losses: Losses) -> None:
    """Count the ids that are not kept. Only COCO's files state ids that are not names."""
    if source != "coco":
        return
    for split in splits.values():
        losses["annotation ids (objects are numbered anew)" if format == "coco" else "annotation ids"] += len(
            split.annotations.labels
        )
        if format != "coco":
            stems = (Path(name).stem for name in split.names)
            different = sum(str(given) != stem for given, stem in zip(split.annotations.image_ids, stems, strict=True))
            losses["image ids (images are known by the names of their files)"] += different
    if format != "coco":
        losses["category ids"] += len(next(iter(splits.values())).class_names)


def _place_images(names: Mapping[Path, str], folder: Path, placement: Placement) -> int:
    """Link or copy the images, and return how many are linked."""
    folder.mkdir(parents=True)
    linked = 0
    for path, name in names.items():
        source = path.resolve()
        if placement != "copy":
            try:
                os.link(source, folder / name)
                linked += 1
                continue
            except OSError as error:
                if placement == "link":
                    reason = error.strerror or error
                    raise DataError(f"{source} cannot be linked in {folder} ({reason}); use --copy") from None
        shutil.copyfile(source, folder / name)
    return linked
