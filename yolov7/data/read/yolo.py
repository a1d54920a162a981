"""Reader of YOLO data: a data.yaml that names classes and splits, and one text file of labels for each image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from yolov7.data.annotations import AnnotatedSplit
from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.images import IMAGE_SUFFIXES
from yolov7.data.read.image_names import resolve_name
from yolov7.data.read.values import parse_id, parse_number
from yolov7.data.read.yolo_rows import LabelRows
from yolov7.errors import DataError, SettingError, shown
from yolov7.system.files import is_file
from yolov7.system.text_files import decode_text, read_bytes
from yolov7.system.yaml_files import read_yaml

MAX_LABEL_BYTES = 16 * 2**20
MAX_LIST_BYTES = 256 * 2**20
SPLIT_KEYS = ("train", "val", "test")
_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")


@dataclass(frozen=True)
class YoloData:
    """The content of a data.yaml, or what takes its place.

    Attributes:
        file: The file that states the classes.
        root: The folder that sources are relative to.
        class_names: The names of the classes, by number.
        splits: The sources of each split: folders of images, files that list images, or single images.
        has_keypoints: Whether the values behind the box of a line are keypoints.
    """

    file: Path
    root: Path
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    has_keypoints: bool = False


def load_yolo(file: Path) -> YoloData:
    """Read a data.yaml, or a file of class names (`classes.txt`, `obj.names`) beside the images.

    Args:
        file: The file.

    Returns:
        Its content. Without a data.yaml, the splits are the folders of images that are named train, val and test, or
        else the folder of the file as `train`.

    Raises:
        DataError: If the file cannot be used.
    """
    if file.suffix.lower() not in {".yaml", ".yml"}:
        return _from_names(file)
    try:
        content = read_yaml(file)
    except SettingError as error:
        raise DataError(str(error)) from None
    root = file.parent
    stated = content.get("path")
    if isinstance(stated, str) and (root / stated).is_dir():
        root = root / stated
    splits = {
        "val" if key == "valid" else key: _sources(content[key], key, file)
        for key in (*SPLIT_KEYS, "valid")
        if content.get(key)
    }
    if not splits:
        raise DataError(f"{file} names no split; a data.yaml has the keys train, val and test")
    return YoloData(file, root, _class_names(content, file), splits, has_keypoints="kpt_shape" in content)


def find_yolo_file(folder: Path) -> Path | None:
    """Return the data.yaml of a folder, or its file of class names; None if it has neither.

    Args:
        folder: The folder.

    Raises:
        DataError: If several YAML files describe data.
    """
    found = []
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
        try:
            content = read_yaml(path)
        except SettingError:
            continue
        if ("names" in content or "nc" in content) and any(content.get(key) for key in (*SPLIT_KEYS, "valid")):
            found.append(path)
    if len(found) > 1:
        raise DataError(f"{folder} has several files of YOLO data: {_listed(found)}; name one of them")
    return found[0] if found else next((folder / name for name in _NAME_FILES if is_file(folder / name)), None)


def parse_yolo(data: YoloData, split: str) -> AnnotatedSplit:
    """Parse the labels of a split; the images are found and not read.

    A line is `class x y width height` with the centre of the box, or `class x y x y ...` with a polygon of three points
    or more, in shares of the sides of the image. The id of an image is its name without suffix, or its path without
    suffix if names are not unique. The id of a class is its number.

    Args:
        data: From `load_yolo`.
        split: The name of a split of `data`, or a folder or list of images relative to its root.

    Returns:
        The annotations.

    Raises:
        DataError: If there is no such split, or it has no images or no label files.
    """
    flaws: list[Flaw] = []
    images = list(dict.fromkeys(find_images(data, split)))
    if not images:
        raise DataError(f"split {split!r} of {data.file} has no images; put images there or name another split")
    rows = LabelRows(num_classes=len(data.class_names), has_keypoints=data.has_keypoints)
    unlabelled = []
    for place, image in enumerate(images):
        label = label_path(image)
        try:
            text = decode_text(read_bytes(label, limit=MAX_LABEL_BYTES), label)
        except FileNotFoundError:
            unlabelled.append(Flaw(FlawKind.NO_LABEL_FILE, str(image), f"{label} does not exist"))
        except OSError as error:
            flaws.append(Flaw(FlawKind.NO_ANNOTATION, str(label), error.strerror or "cannot be read"))
        except DataError as error:
            flaws.append(Flaw(FlawKind.NO_ANNOTATION, str(label), str(error).removeprefix(f"{label} ")))
        else:
            rows.append_file(text, image=place, file=str(label))
    if len(unlabelled) == len(images):
        raise DataError(
            f"none of the {len(images):,} images of split {split!r} of {data.file} has a label file, e.g. "
            f"{unlabelled[0].detail}; put labels beside the images or into a folder `labels` beside `images`"
        )
    annotations = rows.annotations(images, _image_ids(images, data.root))
    ids = tuple(range(len(data.class_names)))
    return AnnotatedSplit(annotations, data.class_names, ids, (*flaws, *rows.flaws, *unlabelled))


def find_images(data: YoloData, split: str) -> Iterator[Path]:
    """Yield the image files of a split.

    Args:
        data: From `load_yolo`.
        split: As in `parse_yolo`.

    Raises:
        DataError: If a source does not exist.
    """
    for source in data.splits.get(split, (split,)):
        path = source_path(data, source, split)
        if path.is_dir():
            yield from _images_in(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path
        else:
            yield from _listed_images(path, data.root)


def label_path(image: Path) -> Path:
    """Return the label file of an image: in the parallel tree `labels`, or else beside the image.

    Args:
        image: A path such as `images/train/a.jpg`, `train/images/a.jpg` or `a.jpg`.

    Returns:
        `labels/train/a.txt`, `train/labels/a.txt` or `a.txt`. If neither file exists, where it should be.
    """
    parts = image.parts
    parallel = [
        Path(*parts[:k], "labels", *parts[k + 1 :]).with_suffix(".txt")
        for k in range(len(parts) - 2, -1, -1)
        if parts[k] in {"images", "JPEGImages"}
    ]
    candidates = [*parallel, image.with_suffix(".txt")]
    return next((path for path in candidates if is_file(path)), candidates[0])


def _sources(value: Any, key: str, file: Path) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    for source in values:
        if not isinstance(source, str) or not source.strip():
            raise DataError(f"{file}: {key} must be a folder, a list file or a list of those, got {shown(source)}")
    return tuple(values)


def _class_names(content: Mapping[Any, Any], file: Path) -> tuple[str, ...]:
    names, stated = content.get("names"), content.get("nc")
    count = parse_id(stated) if stated is not None else None
    if stated is not None and not (isinstance(count, int) and count > 0):
        raise DataError(f"{file}: nc must be the number of classes, got {shown(stated)}")
    if names is None:
        if count is None:
            raise DataError(f"{file} names no classes; add `names`, a list of the classes")
        return tuple(f"class {number}" for number in range(int(count)))
    if isinstance(names, dict):
        numbers = {
            parse_id(key) if not isinstance(key, str) else parse_number(key): name for key, name in names.items()
        }
        if sorted(numbers, key=str) != sorted(range(len(numbers)), key=str):
            raise DataError(f"{file}: the keys of names must be 0 to {len(names) - 1}, got {shown(list(names))}")
        names = [numbers[number] for number in range(len(numbers))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names must be a list or a map of class names, got {shown(names)}")
    texts = tuple(str(name).strip() for name in names)
    if twice := {name for name in texts if not name or texts.count(name) > 1}:
        raise DataError(f"{file}: names has {shown(min(twice))} twice or blank; give each class a name of its own")
    if count is not None and count != len(texts):
        raise DataError(f"{file} has nc={count} and {len(texts)} names; correct one of them")
    return texts


def _from_names(file: Path) -> YoloData:
    try:
        lines = decode_text(read_bytes(file, limit=MAX_LABEL_BYTES), file).splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}); restore the file") from None
    root = file.parent.parent if file.parent.name == "labels" else file.parent
    names = _class_names({"names": [line.strip() for line in lines if line.strip()]}, file)
    splits = {}
    for split, folders in {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}.items():
        candidates = chain.from_iterable((f"images/{name}", f"{name}/images", name, f"{name}.txt") for name in folders)
        found = next((name for name in candidates if (root / name).exists()), None)
        if found is not None:
            splits[split] = (found,)
    return YoloData(file, root, names, splits or {"train": ("images" if (root / "images").is_dir() else ".",)})


def source_path(data: YoloData, source: str, split: str) -> Path:
    """Return the file or folder of a source.

    Roboflow writes `../train/images` for the folder `train/images` beside the data.yaml.

    Args:
        data: From `load_yolo`.
        source: The source as data.yaml states it.
        split: The split, for messages.

    Raises:
        DataError: If it does not exist.
    """
    inner = source.replace("\\", "/")
    while inner.startswith("../"):
        inner = inner[3:]
    bases = [data.root, data.file.parent]
    candidates = [resolve_name(base, name) for name in (source, inner) for base in bases]
    for path in candidates:
        if path.exists():
            return Path(os.path.normpath(path))
    known = ", ".join(data.splits)
    raise DataError(
        f"split {split!r} of {data.file}: {candidates[0]} does not exist; the splits of the file are: {known}"
    )


def _images_in(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder and of its subfolders, sorted; a link to a folder is followed once."""
    visited = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(here))
        folders[:] = sorted(name for name in folders if os.path.realpath(Path(here, name)) not in visited)
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(here, name)


def _listed_images(file: Path, root: Path) -> Iterator[Path]:
    """Yield the images that a file lists, one a line, relative to the root, to the file, or absolute."""
    try:
        lines = decode_text(read_bytes(file, limit=MAX_LIST_BYTES), file).splitlines()
    except OSError as error:
        raise DataError(f"list of images {file} cannot be read ({error.strerror or error}); restore it") from None
    for line in filter(None, map(str.strip, lines)):
        candidates = [resolve_name(base, line) for base in (root, file.parent)]
        yield Path(os.path.normpath(next((path for path in candidates if is_file(path)), candidates[0])))


def _image_ids(images: Sequence[Path], root: Path) -> tuple[str, ...]:
    names = tuple(image.stem for image in images)
    if len(set(names)) == len(names):
        return names
    return tuple(Path(os.path.relpath(image, root)).with_suffix("").as_posix() for image in images)


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)
