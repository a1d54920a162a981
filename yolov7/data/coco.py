"""Reader of COCO annotation files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolov7.data.labels import AnnotatedImage, Flaw, FlawKind, ImageIndex, Progress, build_index
from yolov7.errors import DataError


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
    """The images and boxes of an annotation file.

    Classes come in the order of the category ids; `class_names`, those of another split, fixes them instead. Images
    are looked for beside the file, in `root`, and in their folders `images` and the one named as the split.
    """
    content = _load(path)
    flaws: list[Flaw] = []
    categories = _categories(content, path)
    names = class_names or tuple(categories[key] for key in sorted(categories))
    labels = {key: names.index(name) for key, name in categories.items() if name in names}
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
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); restore the file") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path} has no list {key!r}; a COCO file has images, annotations and categories")
    return content  # type: ignore[no-any-return]


def _categories(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    try:
        categories = {int(row["id"]): str(row["name"]) for row in content["categories"]}
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} has a category without id or name; give each category both") from None
    if not categories or len(set(categories.values())) != len(content["categories"]):
        raise DataError(f"{path} has no categories, or ids or names given twice; give each its own")
    return categories


def _by_id(rows: list[Any], path: Path, flaws: list[Flaw]) -> dict[Any, dict[str, Any]]:
    images: dict[Any, dict[str, Any]] = {}
    for row in rows:
        if not isinstance(row, dict) or "id" not in row or "file_name" not in row:
            raise DataError(f"{path} has an image without id or file_name; give each image both")
        if row["id"] in images:
            flaws.append(Flaw(FlawKind.DUPLICATE_ID, str(path), f"image id {row['id']}, {row['file_name']} left out"))
        else:
            images[row["id"]] = row
    return images


def _group(
    annotations: list[Any], images: Mapping[Any, Any], labels: Mapping[int, int], path: Path, flaws: list[Flaw]
) -> dict[Any, list[tuple[list[float], int, bool]]]:
    """Rows (box as corners, label, crowd) by image id."""
    grouped: dict[Any, list[tuple[list[float], int, bool]]] = defaultdict(list)
    seen = set()
    for row in annotations:
        if not isinstance(row, dict):
            raise DataError(f"{path} has an annotation that is not an object: {row!r:.60}; remove it")
        identity = row.get("id")
        if identity is not None and identity in seen:
            flaws.append(Flaw(FlawKind.DUPLICATE_ID, str(path), f"annotation id {identity}, kept"))
        seen.add(identity)
        if row.get("image_id") not in images:
            flaws.append(Flaw(FlawKind.UNKNOWN_IMAGE, str(path), f"annotation {identity}: image {row.get('image_id')}"))
        elif row.get("category_id") not in labels:
            detail = f"annotation {identity}: category id {row.get('category_id')}"
            flaws.append(Flaw(FlawKind.UNKNOWN_CATEGORY, str(path), detail))
        else:
            label = labels[row["category_id"]]
            grouped[row["image_id"]].append((_corners(row.get("bbox")), label, bool(row.get("iscrowd", 0))))
    return grouped


def _corners(bbox: object) -> list[float]:
    try:
        x, y, width, height = (float(value) for value in bbox)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return [float("nan")] * 4
    return [x, y, x + width, y + height]


def _images_folder(path: Path, root: Path | None, rows: list[Any]) -> Path:
    split = path.stem.removeprefix("instances_")
    bases = [path.parent, *([root] if root is not None else [])]
    folders = [base / part for base in bases for part in ("", "images", split, f"images/{split}")]
    for row in rows[:20]:
        for folder in folders:
            if (folder / row["file_name"]).is_file():
                return folder
    if not rows:
        raise DataError(f"{path} lists no images; name another file in data.train or data.val")
    raise DataError(f"none of the first images of {path} was found, e.g. {rows[0]['file_name']!r} in {folders[-1]}")


def _annotated(image: Mapping[str, Any], folder: Path, rows: list[tuple[list[float], int, bool]]) -> AnnotatedImage:
    declared = (image.get("width"), image.get("height"))
    return AnnotatedImage(
        path=folder / image["file_name"],
        boxes_xyxy=np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4),
        labels=np.array([label for _, label, _ in rows], np.int64),
        crowd=np.array([crowd for _, _, crowd in rows], np.bool_),
        declared_wh=declared if all(isinstance(value, int) for value in declared) else None,  # type: ignore[arg-type]
    )
