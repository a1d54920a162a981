"""Recognition of a data set by its files: which format it has, which splits, and how to read them.

found = find_data(Path("bccd"))
print(found.description)
index, flaws = read_split(found, "val")
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from yolov7.data.annotations import AnnotatedSplit, match_classes
from yolov7.data.build_index import index_split
from yolov7.data.flaws import Flaw
from yolov7.data.images import IMAGE_SUFFIXES
from yolov7.data.index import ImageIndex
from yolov7.data.inspection import KnownImages, Progress
from yolov7.data.other_tools import tell_other_tool
from yolov7.data.read.coco import coco_folders, find_coco_file, parse_coco
from yolov7.data.read.voc import ALL, annotation_files, image_folder, parse_voc, voc_class_names
from yolov7.data.read.yolo import find_images, find_yolo_file, label_path, load_yolo, parse_yolo
from yolov7.errors import DataError, counted
from yolov7.system.files import is_file

DataFormat = Literal["coco", "voc", "yolo"]
FORMATS: tuple[DataFormat, ...] = ("coco", "voc", "yolo")
_KNOWN = (
    "the formats are coco (a JSON file per split), voc (Annotations, ImageSets/Main, JPEGImages) and yolo (data.yaml)"
)
_SPLIT_NAME = re.compile(r"(?:^|[^a-z])(train(?!val)|val(?:id(?:ation)?)?|test)(?![a-z])")
_COCO_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_OTHER_COCO_FILES = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_SNIFFED_BYTES, _SNIFFED_FILES = 1 << 20, 20
_DEPTH = 2  # levels of subfolders in which data are looked for if the folder itself has none


@dataclass(frozen=True)
class FoundData:
    """A data set that was recognised.

    Attributes:
        format: The format of its annotations.
        root: Its folder.
        file: The file that describes the whole data set: a data.yaml, or a single COCO file; None if there is none.
        splits: The name of each split (`train`, `val`, `test` where files have such names) and the name of its source,
            as `data.train`, `data.val` and `data.test` state it: a COCO file, a list in ImageSets/Main, or a key of the
            data.yaml.
    """

    format: DataFormat
    root: Path
    file: Path | None
    splits: Mapping[str, str]

    @property
    def description(self) -> str:
        """One line that says what was found."""
        listed = ", ".join(key if key == source else f"{key} ({source})" for key, source in self.splits.items())
        place = self.root if self.file is None else self.file
        return f"{self.format} data in {place} with the splits {listed}" if listed else f"{self.format} data in {place}"

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by label.

        For yolo, data.yaml states them. For voc, all annotation files are read. For coco, the file of the training
        split is read, or that of the first split.

        Raises:
            DataError: If a file that names classes cannot be used.
        """
        match self.format:
            case "yolo":
                return load_yolo(self._described).class_names
            case "voc":
                return voc_class_names(self.root)
            case "coco":
                split = "train" if "train" in self.splits else next(iter(self.splits), "train")
                return parse_split(self, split).class_names

    @property
    def _described(self) -> Path:
        assert self.file is not None  # `find_data` finds no yolo data without it
        return self.file


def find_data(path: Path, *, format: DataFormat | Literal["auto"] = "auto") -> FoundData:
    """Recognise a data set.

    Args:
        path: The folder of a data set, a data.yaml, or a COCO file.
        format: The format to look for; `auto` recognises it.

    Returns:
        What was found.

    Raises:
        DataError: If no data are found, or data of several formats. The message names the candidates.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; name the folder of a data set, a data.yaml or a COCO file")
    if path.is_file():
        return _find_in_file(path, format)
    found = [data for name in FORMATS if format in ("auto", name) if (data := _find_in_folder(path, name))]
    if not found:
        found = list(_find_below(path, format, depth=_DEPTH))
    if len(found) > 1:
        several = "; ".join(data.description for data in found)
        raise DataError(f"{path} has several data sets: {several}; state the format, or name one of them")
    if not found:
        reason = tell_other_tool(path) or _KNOWN
        raise DataError(f"no {_sought(format)}annotations were found in {path}{_contents(path)}; {reason}")
    return found[0]


def find_split(found: FoundData, split: str) -> str:
    """Return the name of the source of a split.

    Args:
        found: The data set.
        split: A key of `found.splits`, or what a source is called.

    Returns:
        The name that the reader of the format knows. A name that is not in `found.splits` is returned as it is.
    """
    return found.splits.get(split, split)


def parse_split(found: FoundData, split: str, *, class_names: tuple[str, ...] | None = None) -> AnnotatedSplit:
    """Parse the annotations of a split; the images are found and not read.

    Args:
        found: The data set.
        split: As in `find_split`.
        class_names: The classes by label; objects of other classes are left out and counted as flaws. If they are left
            out: for coco the classes of this split, otherwise those of the data set.

    Returns:
        The annotations.

    Raises:
        DataError: If the split does not exist or cannot be used.
    """
    source = find_split(found, split)
    match found.format:
        case "coco":
            return parse_coco(_coco_file(found, split), class_names=class_names, root=found.root)
        case "voc":
            return parse_voc(found.root, source, class_names=class_names or found.class_names)
        case "yolo":
            data = load_yolo(found._described)
            parsed = parse_yolo(data, source)
            return match_classes(parsed, class_names or data.class_names, file=str(data.file))


def folders_of_data(found: FoundData) -> Iterator[Path]:
    """Yield the folders and files that hold the data; a data.yaml may name some that are not in its own folder.

    Args:
        found: The data set.

    Raises:
        DataError: If a source of a data.yaml does not exist.
    """
    yield found.root
    if found.format == "yolo":
        yield found._described
        data = load_yolo(found._described)
        for split in data.splits:
            yield from dict.fromkeys(
                folder for image in find_images(data, split) for folder in (image.parent, label_path(image).parent)
            )


def files_of_split(found: FoundData, split: str) -> Iterator[Path]:
    """Yield the files and folders whose change can change the annotations of a split.

    Args:
        found: The data set.
        split: As in `find_split`.

    Raises:
        DataError: If the split does not exist.
    """
    source = find_split(found, split)
    match found.format:
        case "coco":
            file = _coco_file(found, split)
            yield file
            yield from coco_folders(file, found.root)
        case "voc":
            yield found.root / "ImageSets" / "Main" / f"{source.removesuffix('.txt')}.txt"
            yield image_folder(found.root)
            yield from sorted(annotation_files(found.root / "Annotations"))
        case "yolo":
            data = load_yolo(found._described)
            yield data.file
            for image in find_images(data, source):
                yield image
                yield label_path(image)


def read_split(
    found: FoundData,
    split: str,
    *,
    class_names: tuple[str, ...] | None = None,
    known: KnownImages | None = None,
    progress: Progress | None = None,
) -> tuple[ImageIndex, tuple[Flaw, ...]]:
    """Read a split: parse the annotations, decode every image once, and check all boxes.

    Args:
        found: The data set.
        split: As in `find_split`.
        class_names: The classes by label, such as those of a model; objects of other classes are left out and counted
            as flaws. If they are left out: `found.class_names`.
        known: Images that were decoded before; the images of this split are added.
        progress: Called with the number of images that were checked, and the number of all images.

    Returns:
        The index of the split, and the flaws that were found.

    Raises:
        DataError: If the split does not exist or cannot be used.
    """
    parsed = parse_split(found, split, class_names=class_names or found.class_names)
    return index_split(parsed, known=known, progress=progress)


def _coco_file(found: FoundData, split: str) -> Path:
    is_single = found.file is not None and split in found.splits
    return found._described if is_single else find_coco_file(found.root, find_split(found, split))


def _find_in_file(path: Path, format: str) -> FoundData:
    suffix = path.suffix.lower()
    if suffix in {".yaml", ".yml"} and format in ("auto", "yolo"):
        return _yolo(path)
    if suffix == ".json" and format in ("auto", "coco"):
        if not _is_coco(path):
            reason = tell_other_tool(path) or _KNOWN
            raise DataError(f"{path} is not a COCO file: it has no lists images, annotations and categories; {reason}")
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return FoundData("coco", root, path, {_split_of(path) or path.stem: path.name})
    if (other := tell_other_tool(path)) is not None:
        raise DataError(other)
    raise DataError(f"{path} is not {_sought(format)}data; name the folder of a data set, a data.yaml or a COCO file")


def _find_in_folder(folder: Path, format: DataFormat) -> FoundData | None:
    match format:
        case "coco":
            return _coco(folder)
        case "voc":
            lists = sorted((folder / "ImageSets" / "Main").glob("*.txt"))
            is_voc = next(annotation_files(folder / "Annotations"), None) is not None
            return FoundData("voc", folder, None, _voc_splits(lists) or {ALL: ALL}) if is_voc else None
        case "yolo":
            file = find_yolo_file(folder)
            return _yolo(file) if file is not None else None


def _find_below(folder: Path, format: str, *, depth: int) -> Iterator[FoundData]:
    """Yield the data sets in the subfolders of a folder; the subfolders of a data set are not looked at."""
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = [data for name in FORMATS if format in ("auto", name) if (data := _find_in_folder(inner, name))]
        yield from found
        if not found and depth > 1:
            yield from _find_below(inner, format, depth=depth - 1)


def _yolo(file: Path) -> FoundData:
    data = load_yolo(file)
    return FoundData("yolo", data.root, file, {split: split for split in data.splits})


def _voc_splits(lists: list[Path]) -> dict[str, str]:
    """Return the lists; those of a single class, `cat_train`, are left out if there is a list `train`."""
    stems = [path.stem for path in lists]
    return _ordered({stem: stem for stem in stems if "_" not in stem or stem.rpartition("_")[2] not in stems})


def _coco(folder: Path) -> FoundData | None:
    files = [path for path in _json_files(folder) if _is_coco(path)]
    main = [path for path in files if not path.name.startswith(_OTHER_COCO_FILES)] or files
    names = [_split_of(path) for path in main]
    splits = {}
    for path, name in zip(main, names, strict=True):
        is_inner = path.parent not in (folder, folder / "annotations")
        source = path.relative_to(folder).as_posix() if is_inner else path.stem
        splits[name if name is not None and names.count(name) == 1 else source] = source
    return FoundData("coco", folder, None, _ordered(splits)) if splits else None


def _ordered(splits: Mapping[str, str]) -> dict[str, str]:
    """Return the splits with train, val and test first."""
    order = {name: place for place, name in enumerate(("train", "val", "test"))}
    return dict(sorted(splits.items(), key=lambda item: order.get(item[0], len(order))))


def _json_files(folder: Path) -> Iterator[Path]:
    """Yield the largest JSON files of a folder, of its folder annotations, and of its folders of splits."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    for place in (folder, *(path for path in inner if path.name == "annotations" or _split_of(path) is not None)):
        files = sorted(filter(is_file, place.glob("*.json")), key=lambda path: (-path.stat().st_size, path.name))
        yield from sorted(files[:_SNIFFED_FILES])


def _is_coco(path: Path) -> bool:
    """Return whether the first and the last megabyte of a file name two of the lists of a COCO file."""
    try:
        with path.open("rb") as file:
            start = file.read(_SNIFFED_BYTES)
            file.seek(max(0, path.stat().st_size - _SNIFFED_BYTES))
            end = file.read(_SNIFFED_BYTES)
    except OSError:
        return False
    text = (start + end).replace(b"\0", b"")  # also UTF-16
    return sum(key in text for key in _COCO_KEYS) >= 2


def _split_of(path: Path) -> str | None:
    """Return `train`, `val` or `test` if the name of a file says so, or else if its folder has such a name."""
    stem = re.sub(r"\d+$", "", (path.stem if path.suffix else path.name).lower())
    folder = re.sub(r"\d+$", "", path.parent.name.lower())
    match = _SPLIT_NAME.search(stem) or (_SPLIT_NAME.fullmatch(folder) if path.suffix else None)
    return None if match is None else "val" if match[1].startswith("val") else match[1]


def _sought(format: str) -> str:
    return "" if format == "auto" else f"{format} "


def _contents(folder: Path) -> str:
    """Return a part of a sentence about what a folder has instead of annotations."""
    names = sorted(path.name for path in folder.iterdir())
    images = sum(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names)
    if images:
        return f", which has {counted(images, 'image')}"
    return f", which has: {', '.join(names[:8]) or 'nothing'}"
