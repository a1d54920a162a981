"""Cleaning of COCO files. Keys that are not read stay as they are."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolov7.data.build_index import CLIP_TOLERANCE, OUTLINE_TOLERANCE
from yolov7.data.fix.boxes import FixedBox, fix_boxes
from yolov7.data.fix.changes import Changes
from yolov7.data.flaws import FlawKind
from yolov7.data.health.checks import CHECK_OF_FLAW
from yolov7.data.index import Id, ImageIndex
from yolov7.data.outlines import bounds, clip_polygon, frame_planes
from yolov7.data.read.coco import parse_coco
from yolov7.data.read.values import IdTable, parse_id, parse_number, parse_truth
from yolov7.system.files import is_file
from yolov7.system.text_files import decode_text, read_bytes

_Row = dict[str, Any]
_ID = {kind: check.id for kind, check in CHECK_OF_FLAW.items()}


def fix_coco(file: Path, root: Path, index: ImageIndex, changes: Changes) -> bytes:
    """Clean a COCO file.

    Args:
        file: The file.
        root: The folder of the data set.
        index: The split, as it was read from the file.
        changes: What to correct; the corrections are counted.

    Returns:
        The new content of the file.
    """
    content: _Row = json.loads(decode_text(read_bytes(file), file))
    paths = parse_coco(file, class_names=index.class_names, root=root).annotations
    path_of = dict(zip(paths.image_ids, paths.paths, strict=True))
    moved = _fix_images(content, path_of, index, changes)
    _fix_categories(content, changes)
    _fix_rows(content, moved, path_of, changes)
    size_of = {
        given: (int(w), int(h)) for given, w, h in zip(index.image_ids, index.widths, index.heights, strict=True)
    }
    _fix_all_boxes(content, size_of, changes)
    return (json.dumps(content, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def _fix_images(content: _Row, path_of: dict[Id, Path], index: ImageIndex, changes: Changes) -> dict[Id, Id | None]:
    """Clean the images; return the image that takes the objects of each one that is left out, or None for none."""
    sizes = {str(path): (int(w), int(h)) for path, w, h in zip(index.paths, index.widths, index.heights, strict=True)}
    moved: dict[Id, Id | None] = {}
    first: dict[str, Id] = {}
    seen, kept = set[Id](), []
    for row in content["images"]:
        given = parse_id(row["id"])
        assert given is not None  # the reader refuses such files
        if given in seen and changes.apply(_ID[FlawKind.DUPLICATE_ID]):
            continue
        seen.add(given)
        path = path_of[given]
        place = os.path.normpath(path)
        size = sizes.get(str(path.absolute()))
        earlier = first.setdefault(place, given)
        if earlier != given and changes.apply(_ID[FlawKind.DUPLICATE_IMAGE]):
            moved[given] = earlier
        elif size is None and earlier == given and changes.apply(_ID[_loss(path)]):
            moved[given] = None
        else:
            kept.append(row)
            _fix_size(row, size, changes)
    content["images"] = kept
    return moved


def _loss(path: Path) -> FlawKind:
    return FlawKind.UNREADABLE if is_file(path) else FlawKind.MISSING


def _fix_size(row: _Row, size: tuple[int, int] | None, changes: Changes) -> None:
    stated = [parse_number(row.get(side)) for side in ("width", "height")]
    is_stated = [
        row.get(side) is not None and number != 0 for side, number in zip(("width", "height"), stated, strict=True)
    ]
    if size is None or not any(s and n != true for s, n, true in zip(is_stated, stated, size, strict=True)):
        return
    if changes.apply(_ID[FlawKind.SIZE]):
        row["width"], row["height"] = size


def _fix_categories(content: _Row, changes: Changes) -> None:
    """Remove categories without annotations that other categories name as their supercategory."""
    rows = content["categories"]
    table = IdTable(parse_id(row["id"]) or 0 for row in rows)
    used = {table.place_in_any_form(row.get("category_id")) for row in content["annotations"]}
    parents = Counter(row.get("supercategory") for row in rows if isinstance(row.get("supercategory"), str))
    content["categories"] = [
        row
        for place, row in enumerate(rows)
        if place in used
        or parents[row["name"]] <= (row.get("supercategory") == row["name"])
        or not changes.apply(_ID[FlawKind.UNUSED_ROOT])
    ]


def _fix_rows(content: _Row, moved: dict[Id, Id | None], path_of: dict[Id, Path], changes: Changes) -> None:
    """Clean all values of the annotations but their boxes."""
    categories = IdTable(parse_id(row["id"]) or 0 for row in content["categories"])
    given = [parse_id(row.get("id")) for row in content["annotations"]]
    free = count(1 + max((number for number in given if isinstance(number, int)), default=0))
    seen, kept = set[Id](), []
    for row, own in zip(content["annotations"], given, strict=True):
        image = parse_id(row.get("image_id"))
        if image in moved:
            if moved[image] is None:
                continue
            row["image_id"] = moved[image]
        elif image not in path_of and changes.apply(_ID[FlawKind.UNKNOWN_IMAGE]):
            continue
        is_known = categories.place_in_any_form(row.get("category_id")) >= 0
        if not is_known and changes.apply(_ID[FlawKind.UNKNOWN_CATEGORY]):
            continue
        if own is not None and own in seen and changes.apply(_ID[FlawKind.DUPLICATE_ID]):
            row["id"] = next(free)
        if own is not None:
            seen.add(own)
        _fix_values(row, changes)
        kept.append(row)
    content["annotations"] = kept


def _fix_values(row: _Row, changes: Changes) -> None:
    if parse_truth(row.get("iscrowd")) is None and changes.apply(_ID[FlawKind.CROWD_VALUE]):
        row["iscrowd"] = 0
    outline = row.get("segmentation")
    is_wrong = bool(outline) and not isinstance(outline, dict) and _polygons(outline) is None
    if is_wrong and not parse_truth(row.get("iscrowd")) and changes.apply(_ID[FlawKind.NO_POLYGON]):
        del row["segmentation"]
    if row.get("area") is not None and not parse_number(row["area"]) > 0 and changes.apply(_ID[FlawKind.AREA]):
        del row["area"]


def _polygons(outline: object) -> list[NDArray[np.float32]] | None:
    """Return the polygons of a segmentation, each (k, 2); None if it is none."""
    if not isinstance(outline, list) or not outline:
        return None
    parts = []
    for part in outline:
        if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
            return None
        points = np.array([parse_number(value) for value in part], np.float64).reshape(-1, 2)
        if not (np.abs(points) < 1e9).all():
            return None
        parts.append(points.astype(np.float32))
    return parts


def _fix_all_boxes(content: _Row, size_of: dict[Id, tuple[int, int]], changes: Changes) -> None:
    of_image: dict[Id, list[_Row]] = {}
    for row in content["annotations"]:
        of_image.setdefault(parse_id(row.get("image_id")) or 0, []).append(row)
    removed: set[int] = set()
    for image, rows in of_image.items():
        if image in size_of:
            removed |= _fix_image(rows, size_of[image], changes)
    content["annotations"] = [row for row in content["annotations"] if id(row) not in removed]


def _fix_image(rows: Sequence[_Row], size: tuple[int, int], changes: Changes) -> set[int]:
    """Clean the boxes and outlines of an image; return the identities of the rows to remove."""
    boxes = np.array([_box(row) for row in rows], np.float64).reshape(-1, 4)
    labels = np.unique([str(row.get("category_id")) for row in rows], return_inverse=True)[1].reshape(-1)
    crowd = np.array([bool(parse_truth(row.get("iscrowd"))) for row in rows], np.bool_)
    removed = set()
    for row, old, fixed in zip(rows, boxes, fix_boxes(boxes, labels, crowd, size, wanted=changes.wanted), strict=True):
        if fixed.check is not None:
            changes.counts[fixed.check] += 1
        if fixed.box_xyxy is None:
            removed.add(id(row))
            continue
        outline = _fix_outline(row, old, fixed, size, changes)
        if fixed.check is not None:
            box = fixed.box_xyxy if outline is None else outline
            width, height = (box[2:] - box[:2]).tolist()
            row["bbox"] = [box[0], box[1], width, height]
            if "area" in row and not row.get("segmentation"):
                row["area"] = width * height
    return removed


def _box(row: _Row) -> list[float]:
    """Return the corners of a box; NaN for one that is not numbers, and the box around the outline if it has none."""
    bbox = row.get("bbox")
    polygons = _polygons(row.get("segmentation"))
    if not bbox and polygons is not None:
        return list(bounds(tuple(polygons)).tolist())
    if not isinstance(bbox, list) or len(bbox) != 4:
        return [np.nan] * 4
    x, y, width, height = map(parse_number, bbox)
    if width <= 0 or height <= 0:
        return [x, y, x, y]
    return [x, y, x + width, y + height]


def _fix_outline(
    row: _Row, old: NDArray[np.float64], fixed: FixedBox, size: tuple[int, int], changes: Changes
) -> NDArray[np.float64] | None:
    """Clip or remove the outline of an object; return the box around a clipped one that fits the box."""
    polygons = _polygons(row.get("segmentation"))
    box = fixed.box_xyxy
    if polygons is None or box is None or not np.isfinite(box).all():
        return None
    around = bounds(tuple(polygons)).astype(np.float64)
    if np.abs(around - np.clip(around, 0.0, np.tile(np.array(size, np.float64), 2))).max() > CLIP_TOLERANCE:
        planes = frame_planes(*size)
        clipped = [part.astype(np.float32) for polygon in polygons if len(part := clip_polygon(polygon, planes))]
        fits = bool(clipped) and _is_near(bounds(tuple(clipped)), np.clip(box, 0.0, np.tile(size, 2)))
        if fits and changes.apply(_ID[FlawKind.OUTLINE_CLIPPED]):
            row["segmentation"] = [part.ravel().tolist() for part in clipped]
            return bounds(tuple(clipped)).astype(np.float64)
    elif _is_near(around, box):
        return around if fixed.check == _ID[FlawKind.CLIPPED] else None
    else:
        fits = _is_near(around, old)
    if not fits and changes.apply(_ID[FlawKind.OUTLINE_ELSEWHERE]):
        del row["segmentation"]
    return None


def _is_near(around: NDArray[np.floating], box: NDArray[np.floating]) -> bool:
    """Return whether the box around an outline is about the box of the object."""
    pixels, share = OUTLINE_TOLERANCE
    return bool(np.abs(around - box).max() <= max(pixels, share * (box[2:] - box[:2]).max()))
