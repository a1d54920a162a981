"""Reader of COCO annotation files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolov7.data.annotations import AnnotatedSplit, Annotations
from yolov7.data.build_index import index_split
from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import Id, ImageIndex
from yolov7.data.inspection import Progress
from yolov7.data.read.coco_rows import AnnotationRows
from yolov7.data.read.image_names import resolve_name
from yolov7.data.read.json_lists import iterate_lists
from yolov7.data.read.values import IdTable, id_order, parse_id, parse_number
from yolov7.errors import DataError, one_line, shown
from yolov7.system.files import is_file
from yolov7.system.text_files import decode_text, read_bytes

_PREFIX = re.compile(r"^(instances|person_keypoints|image_info)_")
_LISTS = ("images", "annotations", "categories")


@dataclass
class _CocoContent:
    """What a file holds that is used."""

    images: dict[Id, dict[str, Any]] = field(default_factory=dict)
    categories: list[Any] = field(default_factory=list)
    annotations: AnnotationRows = field(default_factory=AnnotationRows)
    flaws: list[Flaw] = field(default_factory=list)


@dataclass(frozen=True)
class _Category:
    id: Id
    name: str
    parent: str | None


def find_coco_file(root: Path, name: str) -> Path:
    """Find an annotation file of a data set.

    Args:
        root: The folder of the data set.
        name: The name of the file, with or without `.json`, in `root` or in `root/annotations`.

    Returns:
        The path of the file.

    Raises:
        DataError: If there is no such folder or file. The message names the files that exist.
    """
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is not a folder; name the folder that holds the COCO data")
    folders = (root, root / "annotations")
    for candidate in (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".json")):
        if is_file(candidate):
            return candidate
    present = sorted(str(path.relative_to(root)) for folder in folders for path in folder.glob("*.json"))
    remedy = "" if present else "; the formats that are read are COCO (a json file per split) and Pascal VOC"
    raise DataError(
        f"annotation file {name!r} is not in {root}; it has: {', '.join(present) or 'no json files'}{remedy}"
    )


def read_coco(
    path: Path,
    *,
    class_names: tuple[str, ...] | None = None,
    root: Path | None = None,
    progress: Progress | None = None,
) -> tuple[ImageIndex, tuple[Flaw, ...]]:
    """Read the images, boxes and polygons of an annotation file.

    An object whose segmentation is a mask (RLE) is read as its box alone. `docs/data-formats.md` states what is read.

    Args:
        path: The annotation file.
        class_names: The classes of another split. If they are left out, the classes are the categories of the file in
            the order of their ids.
        root: A folder in which images are looked for too. They may lie beside the file, in `root`, in their folders
            `images`, and in a folder with the name of the file.
        progress: Called after each image that was checked.

    Returns:
        The index of the split, and the flaws that were found.

    Raises:
        DataError: If the file or its images cannot be used.
    """
    return index_split(parse_coco(path, class_names=class_names, root=root), progress=progress)


def parse_coco(path: Path, *, class_names: tuple[str, ...] | None = None, root: Path | None = None) -> AnnotatedSplit:
    """Parse an annotation file; the images are found and not read.

    Args:
        path: As in `read_coco`.
        class_names: As in `read_coco`.
        root: As in `read_coco`.

    Returns:
        The annotations.

    Raises:
        DataError: If the file cannot be used, or none of its first images is found.
    """
    content = _load(path)
    rows, flaws = content.annotations, content.flaws
    categories = _categories(content, path, keep_roots=class_names is not None)
    names = class_names or tuple(category.name for category in categories)
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of.get(category.name, -1) for category in categories], np.int64)
    of_category = rows.places_of_categories(IdTable(category.id for category in categories))
    of_label = np.where(of_category >= 0, labels[of_category], -1)
    of_image = rows.places_of_images(IdTable(content.images))
    outlines = rows.outlines()
    flaws.extend(_row_flaws(rows, of_image, of_label, path))
    known = np.flatnonzero((of_image >= 0) & (of_label >= 0))
    order = known[np.argsort(of_image[known], kind="stable")]
    boxes = rows.boxes_xywh(outlines)
    images = list(content.images.values())
    annotations = Annotations(
        paths=_find_images(path, root, images),
        image_ids=tuple(content.images),
        declared_wh=_declared_sizes(images, path, flaws),
        image=of_image[order],
        boxes_xywh=boxes[order],
        labels=of_label[order],
        crowd=rows.crowd()[order],
        areas=rows.areas()[order],
        outlines=outlines and outlines.select(order, has_outline=np.ones(len(order), np.bool_)),
    )
    return AnnotatedSplit(annotations, names, _category_ids(names, categories), tuple(flaws))


def _load(path: Path) -> _CocoContent:
    try:
        content, lists = _read_content(path)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); name another annotation file") from None
    except MemoryError:
        raise DataError(f"{path} does not fit into the memory of this machine; split it into several files") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({one_line(error)}); restore the file") from None
    for name in _LISTS:
        if name not in lists:
            raise DataError(f"{path} has no list {name!r}; a COCO file has images, annotations and categories")
    if not content.images:
        raise DataError(f"{path} lists no images; name another annotation file")
    return content


def _read_content(path: Path) -> tuple[_CocoContent, set[str]]:
    """Return the content of a file and the names of the lists that it has."""
    content, lists = _CocoContent(), set[str]()
    text = decode_text(read_bytes(path), path)
    for name, elements in iterate_lists(text, _LISTS):
        lists.add(name)
        for element in elements:
            match name:
                case "images":
                    _add_image(element, content, path)
                case "annotations":
                    content.annotations.append(element, file=path)
                case _:
                    content.categories.append(element)
    return content, lists


def _add_image(row: object, content: _CocoContent, path: Path) -> None:
    if isinstance(row, dict) and "file_name" not in row and isinstance(row.get("coco_url"), str):  # as LVIS has it
        row = row | {"file_name": "/".join(row["coco_url"].split("/")[-2:])}
    given = parse_id(row.get("id")) if isinstance(row, dict) else None
    if given is None or not isinstance(row, dict) or not _is_name(row.get("file_name")) or "\0" in row["file_name"]:
        raise DataError(f"{path} has an image without id or file_name: {shown(row)}; give each image both")
    if given in content.images:
        content.flaws.append(Flaw(FlawKind.DUPLICATE_ID, str(path), f"image id {given}, {row['file_name']}"))
    else:
        content.images[given] = {key: row.get(key) for key in ("file_name", "width", "height")}


def _is_name(value: object) -> bool:
    """Return whether a value is text with at least one visible character and without halves of surrogate pairs."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _categories(content: _CocoContent, path: Path, *, keep_roots: bool) -> list[_Category]:
    """Return the categories by id.

    Some tools add a category that no annotation uses and that is the supercategory of the others. It is left out.
    """
    categories = [_parse_category(row, path) for row in content.categories]
    used = set(content.annotations.places_of_categories(IdTable(category.id for category in categories)).tolist())
    names, parents = Counter(c.name for c in categories), Counter(c.parent for c in categories)
    kept = []
    for place, category in enumerate(categories):
        has_children = parents[category.name] > (category.parent == category.name)  # itself is no child
        is_root = has_children and place not in used
        if is_root and (not keep_roots or names[category.name] > 1):
            detail = f"category id {category.id}, {category.name!r}"
            content.flaws.append(Flaw(FlawKind.UNUSED_ROOT, str(path), detail))
        else:
            kept.append(category)
    if not kept:
        raise DataError(f"{path} has no categories; a COCO file lists the classes in categories")
    for what, values in (("id", [c.id for c in kept]), ("name", [c.name for c in kept])):
        first: dict[Id, _Category] = {}
        for value, category in zip(values, kept, strict=True):
            if (other := first.setdefault(value, category)) is not category:
                both = f"{other.id!r} ({shown(other.name)}) and {category.id!r} ({shown(category.name)})"
                raise DataError(f"{path} has the category {what} {shown(value)} twice: ids {both}; give each its own")
    return sorted(kept, key=lambda category: id_order(category.id))


def _parse_category(row: object, path: Path) -> _Category:
    given = parse_id(row.get("id")) if isinstance(row, dict) else None
    name = row.get("name") if isinstance(row, dict) else None
    if isinstance(name, int | float) and not isinstance(name, bool):
        name = str(name)
    if given is None or not isinstance(row, dict) or not isinstance(name, str):
        raise DataError(f"{path} has a category without id or name: {shown(row)}; give each category both")
    if not _is_name(name):
        raise DataError(f"{path} has a category of the name {shown(name)}; give it a name that can be written")
    parent = row.get("supercategory")
    return _Category(given, name, parent if isinstance(parent, str) else None)


def _category_ids(names: Sequence[str], categories: Sequence[_Category]) -> tuple[Id, ...]:
    """Return the id of each class; classes that the file does not have get numbers that it does not use."""
    known = {category.name: category.id for category in categories}
    free = 1 + max((given for given in known.values() if isinstance(given, int)), default=0)
    ids: list[Id] = []
    for name in names:
        ids.append(known.get(name, free))
        free += name not in known
    return tuple(ids)


def _row_flaws(rows: AnnotationRows, of_image: Any, of_label: Any, path: Path) -> list[Flaw]:
    flaws = [Flaw(FlawKind.DUPLICATE_ID, str(path), rows.name_of(row)) for row in rows.repeated_ids()]
    for row in np.flatnonzero((of_image < 0) | (of_label < 0)).tolist():
        if of_image[row] < 0:
            detail = f"{rows.name_of(row)}: image id {rows.image_of(row)}"
            flaws.append(Flaw(FlawKind.UNKNOWN_IMAGE, str(path), detail, boxes=1))
        else:
            detail = f"{rows.name_of(row)}: category id {rows.category_of(row)}"
            flaws.append(Flaw(FlawKind.UNKNOWN_CATEGORY, str(path), detail, boxes=1))
    for flaw in rows.flaws:
        if of_image[flaw.row] >= 0 and of_label[flaw.row] >= 0:
            value = f": {flaw.value}" if flaw.value else ""
            flaws.append(Flaw(flaw.kind, str(path), rows.name_of(flaw.row) + value))
    return flaws


def _declared_sizes(images: Sequence[Mapping[str, Any]], path: Path, flaws: list[Flaw]) -> Any:
    """Return widths and heights (n, 2) as stated; NaN for one that is missing, null or 0, which means unknown."""
    sizes = np.full((len(images), 2), np.nan)
    for place, image in enumerate(images):
        for side, name in enumerate(("width", "height")):
            value = image[name]
            number = parse_number(value)
            if number > 0:
                sizes[place, side] = number
            elif value is not None and number != 0:
                flaws.append(Flaw(FlawKind.SIZE, str(path), f"{image['file_name']}: {name} {shown(value)}"))
    return sizes


def coco_folders(path: Path, root: Path | None) -> list[Path]:
    """Return the folders in which images are looked for.

    Args:
        path: The annotation file.
        root: The folder of the data set, if it is known.
    """
    split = _PREFIX.sub("", path.stem)
    bases = [path.parent, *([root] if root is not None else [])]
    return [base / part for base in bases for part in ("", "images", split, f"images/{split}", "data")]


def _find_images(path: Path, root: Path | None, images: Sequence[Mapping[str, Any]]) -> tuple[Path, ...]:
    """Return the path of each image; of one that is not found, the place where it should be."""
    folders = coco_folders(path, root)
    names = [image["file_name"] for image in images]
    main = next((f for name in names[:20] for f in folders if is_file(resolve_name(f, name))), None)
    if main is None:
        reason = "" if "\\" not in names[0] else " (neither with backslashes nor with slashes)"
        raise DataError(
            f"none of the first images of {path} was found{reason}, e.g. {shown(names[0])} in {folders[-2]}; "
            "put the images beside the file or into a folder images"
        )
    paths = []
    for name in names:
        here = resolve_name(main, name)
        if not is_file(here):
            others = (resolve_name(folder, name) for folder in folders)
            here = next((other for other in others if is_file(other)), here)
        paths.append(here)
    return tuple(paths)
