"""Reader of COCO annotation files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import AnnotatedImage, ImageIndex, Progress, build_index
from yolov7.data.outlines import Outline, Points
from yolov7.errors import DataError, one_line, shown
from yolov7.system.files import is_file

_Id = int | float | str
_MAX_COORDINATE = 1e9  # pixels


class _Row(NamedTuple):
    """An annotation of an image."""

    corners: list[float]
    label: int
    crowd: bool
    outline: Outline
    area: float  # NaN where it is not stated


def find_coco_file(root: Path, name: str) -> Path:
    """`root/name`, `root/annotations/name`, with or without `.json`; DataError names the files that there are."""
    if not root.is_dir():
        raise DataError(f"data.path={str(root)!r} is not a folder; set it to the folder that holds the COCO data")
    folders = (root, root / "annotations")
    for candidate in (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".json")):
        if candidate.is_file():
            return candidate
    present = sorted(str(path.relative_to(root)) for folder in folders for path in folder.glob("*.json"))
    raise DataError(f"annotation file {name!r} is not in {root}; it has: {', '.join(present) or 'no json files'}")


def read_coco(
    path: Path,
    *,
    class_names: tuple[str, ...] | None = None,
    root: Path | None = None,
    progress: Progress | None = None,
) -> tuple[ImageIndex, tuple[Flaw, ...]]:
    """The images, boxes and polygons of an annotation file; masks (RLE) are boxes alone.

    Classes come in the order of the category ids; `class_names`, those of another split, fixes them instead. Images
    are looked for beside the file, in `root`, and in their folders `images` and the one named as the split.
    """
    content = _load(path)
    flaws: list[Flaw] = []
    categories = _categories(content, path)
    names = class_names or tuple(categories[key] for key in sorted(categories))
    labels: dict[_Id, int] = {key: names.index(name) for key, name in categories.items() if name in names}
    images = _by_id(content["images"], path, flaws)
    rows = _group(content["annotations"], images, labels, path, flaws)
    folder = _images_folder(path, root, content["images"])
    annotated = [_annotated(image, folder, rows.get(key, [])) for key, image in images.items()]
    return build_index(annotated, class_names=names, flaws=flaws, progress=progress)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"{path} is missing; set data.train and data.val to json files under data.path") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({one_line(error)}); restore the file") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path} has no list {key!r}; a COCO file has images, annotations and categories")
    return content  # type: ignore[no-any-return]


def _categories(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    try:
        categories = {int(row["id"]): str(row["name"]) for row in content["categories"]}
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(f"{path} has a category without id or name; give each category both") from None
    if not categories or len(set(categories.values())) != len(content["categories"]):
        raise DataError(f"{path} has no categories, or ids or names given twice; give each its own")
    for name in categories.values():
        if not _is_text(name):
            raise DataError(f"{path} has a category of the name {shown(name)}; give it one of letters")
    return categories


def _by_id(rows: list[Any], path: Path, flaws: list[Flaw]) -> dict[_Id, dict[str, Any]]:
    images: dict[_Id, dict[str, Any]] = {}
    for row in rows:
        if not (isinstance(row, dict) and isinstance(row.get("id"), _Id) and _is_text(row.get("file_name"))):
            raise DataError(f"{path} has an image without id or file_name: {shown(row)}; give each image both")
        if row["id"] in images:
            flaws.append(Flaw(FlawKind.DUPLICATE_ID, str(path), f"image id {row['id']}, {row['file_name']}"))
        else:
            images[row["id"]] = row
    return images


def _is_text(value: object) -> bool:
    """Whether a name can be written: some characters, none of control, no half of a surrogate pair."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any(sign < " " or "\ud800" <= sign <= "\udfff" for sign in value)


def _group(
    annotations: list[Any], images: Mapping[_Id, Any], labels: Mapping[_Id, int], path: Path, flaws: list[Flaw]
) -> dict[_Id, list[_Row]]:
    """The rows of each image that has any."""
    grouped: dict[_Id, list[_Row]] = defaultdict(list)
    seen: set[_Id] = set()
    for row in annotations:
        if not isinstance(row, dict):
            raise DataError(f"{path} has an annotation that is not an object: {shown(row)}; remove it")
        identity, image, category = (_as_id(row.get(key)) for key in ("id", "image_id", "category_id"))
        if identity is not None and identity in seen:
            flaws.append(Flaw(FlawKind.DUPLICATE_ID, str(path), f"annotation id {identity}"))
        if identity is not None:
            seen.add(identity)
        if image is None or image not in images:
            detail = f"annotation {identity}: image {shown(row.get('image_id'))}"
            flaws.append(Flaw(FlawKind.UNKNOWN_IMAGE, str(path), detail))
        elif category is None or category not in labels:
            detail = f"annotation {identity}: category id {shown(row.get('category_id'))}"
            flaws.append(Flaw(FlawKind.UNKNOWN_CATEGORY, str(path), detail))
        else:
            corners, crowd = _corners(row.get("bbox")), bool(row.get("iscrowd", 0))
            outline, flaw = _outline(row.get("segmentation"))
            if flaw is not None and not crowd:  # COCO's crowds are masks, and no targets
                flaws.append(Flaw(flaw, str(path), f"annotation {identity}"))
            grouped[image].append(_Row(corners, labels[category], crowd, outline, _area(row.get("area"))))
    return grouped


def _as_id(value: object) -> _Id | None:
    return value if isinstance(value, _Id) else None


def _corners(bbox: object) -> list[float]:
    try:
        x, y, width, height = (float(value) for value in bbox if not isinstance(bbox, str))  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        return [float("nan")] * 4
    return [x, y, x + width, y + height]


def _outline(segmentation: object) -> tuple[Outline, FlawKind | None]:
    """The polygons of a segmentation, [[x, y, x, y, ...], ...]; none where one of them is no polygon."""
    if not segmentation:
        return (), None
    if isinstance(segmentation, dict):
        return (), FlawKind.MASK
    parts = [_polygon(part) for part in segmentation] if isinstance(segmentation, list) else [None]
    outline = tuple(part for part in parts if part is not None)
    return (outline, None) if len(outline) == len(parts) else ((), FlawKind.NO_POLYGON)


def _polygon(coordinates: object) -> Points | None:
    """Three points or more, and all of them numbers."""
    if not isinstance(coordinates, list) or len(coordinates) < 6 or len(coordinates) % 2:
        return None
    if not all(isinstance(value, int | float) for value in coordinates):
        return None
    try:
        points = np.array(coordinates, np.float64).reshape(-1, 2)
    except OverflowError:
        return None
    return points.astype(np.float32) if (np.abs(points) < _MAX_COORDINATE).all() else None


def _area(area: object) -> float:
    """NaN where it is none; some tools write 0 for what they do not know."""
    return float(area) if isinstance(area, int | float) and 0 < area < _MAX_COORDINATE**2 else float("nan")


def _images_folder(path: Path, root: Path | None, rows: list[Any]) -> Path:
    split = path.stem.removeprefix("instances_")
    bases = [path.parent, *([root] if root is not None else [])]
    folders = [base / part for base in bases for part in ("", "images", split, f"images/{split}")]
    for row in rows[:20]:
        for folder in folders:
            if is_file(folder / row["file_name"]):
                return folder
    if not rows:
        raise DataError(f"{path} lists no images; name another file in data.train or data.val")
    raise DataError(f"none of the first images of {path} was found, e.g. {rows[0]['file_name']!r} in {folders[-1]}")


def _annotated(image: Mapping[str, Any], folder: Path, rows: Sequence[_Row]) -> AnnotatedImage:
    declared = (image.get("width"), image.get("height"))
    return AnnotatedImage(
        path=folder / image["file_name"],
        boxes_xyxy=np.array([row.corners for row in rows], np.float64).reshape(-1, 4),
        labels=np.array([row.label for row in rows], np.int64),
        crowd=np.array([row.crowd for row in rows], np.bool_),
        outlines=tuple(row.outline for row in rows),
        areas=np.array([row.area for row in rows], np.float64),
        declared_wh=declared if all(isinstance(value, int) for value in declared) else None,  # type: ignore[arg-type]
    )
