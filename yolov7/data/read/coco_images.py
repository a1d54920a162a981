"""Reader of COCO's lists of images without annotations, such as image_info_test-dev2017.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolov7.data.index import Id, ImageIndex
from yolov7.data.read.image_names import resolve_name
from yolov7.errors import DataError, one_line, shown
from yolov7.system.files import is_file
from yolov7.system.text_files import decode_text, read_bytes


def read_image_list(path: Path, *, root: Path, class_names: tuple[str, ...]) -> ImageIndex:
    """Read the images and categories of a file; annotations are ignored.

    Args:
        path: The file.
        root: The folder of the data set. Images are looked for in it, in its folder `images`, and below both in folders
            with the name of the split: `test-dev2017` and `test2017` for `image_info_test-dev2017.json`.
        class_names: The classes, by label. The file states their ids.

    Returns:
        An index without boxes. The sizes of images are those that the file states.

    Raises:
        DataError: If the file or its images cannot be used, or if it does not have one of the classes.
    """
    content = _load(path)
    paths = _find_images(path, root, content["images"])
    count = len(paths)
    return ImageIndex(
        class_names=class_names,
        paths=paths,
        widths=np.array([image.get("width") or 0 for image in content["images"]], np.int32),
        heights=np.array([image.get("height") or 0 for image in content["images"]], np.int32),
        hashes=("",) * count,
        box_offsets=np.zeros(count + 1, np.int64),
        boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, np.bool_),
        image_ids=tuple(image["id"] for image in content["images"]),
        category_ids=_category_ids(path, content["categories"], class_names),
    )


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(decode_text(read_bytes(path), path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({one_line(error)}); restore the file") from None
    for name, keys in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{path} has no {name}; name a file with images and categories, such as COCO's image_info")
        for row in rows:
            if not isinstance(row, dict) or not all(isinstance(row.get(key), int | str) for key in keys):
                raise DataError(f"{path} has an entry in {name} without {' or '.join(keys)}: {shown(row)}")
    return dict(content)


def _find_images(path: Path, root: Path, images: list[dict[str, Any]]) -> tuple[Path, ...]:
    split = path.stem.removeprefix("image_info_").removeprefix("instances_")
    parts = ("", split, split.replace("-dev", ""))
    folders = [base / part for base in (root, root / "images") for part in parts]
    first = images[0]["file_name"]
    folder = next((folder for folder in folders if is_file(resolve_name(folder, first))), None)
    if folder is None:
        raise DataError(
            f"{first}, the first image of {path}, is not in {', '.join(map(str, dict.fromkeys(folders)))}; put the "
            "images into one of these folders"
        )
    paths = tuple(resolve_name(folder, image["file_name"]) for image in images)
    missing = [file for file in paths if not is_file(file)]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} images of {path} are missing, e.g. {missing[0]}; restore them")
    return paths


def _category_ids(path: Path, categories: list[dict[str, Any]], class_names: tuple[str, ...]) -> tuple[Id, ...]:
    known: Mapping[str, Id] = {row["name"]: row["id"] for row in categories}
    missing = [name for name in class_names if name not in known]
    if missing:
        raise DataError(f"{path} does not have the class {shown(missing[0])} of the model; name a file that has it")
    return tuple(known[name] for name in class_names)
