"""Reader of Pascal VOC folders: Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from yolov7.data.annotations import AnnotatedImage, AnnotatedSplit, gather_images
from yolov7.data.build_index import index_split
from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import ImageIndex
from yolov7.data.inspection import Progress
from yolov7.data.read.image_names import resolve_name
from yolov7.data.read.values import parse_number, turn_box
from yolov7.errors import DataError, one_line, shown
from yolov7.system.files import is_file
from yolov7.system.text_files import decode_text, read_bytes

ALL = "all"  # the split of all annotation files
MAX_XML_BYTES = 16 * 2**20  # an annotation of ten thousand objects has about 3 MB
MAX_LIST_BYTES = 64 * 2**20
_MAX_DEPTH = 50  # elements within elements
_PRESENCE = re.compile(r"\s+-?[01]$")  # the list of a class states after each name whether the image has the class
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp", ".tif", ".tiff")
_UNKNOWN = [math.nan] * 4


class UnreadableError(Exception):
    """An annotation file that cannot be used; the message says why."""


def voc_class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the objects in all annotation files, so that every split has the same classes.

    Args:
        root: The folder of the data set.

    Returns:
        The names, sorted.

    Raises:
        DataError: If there is no such folder, or no file names an object.
    """
    files = sorted(annotation_files(_folder(root, "Annotations")))
    names, damaged = set[str](), dict[Path, UnreadableError]()
    for path in files:
        try:
            names.update(name for node in parse_annotation(path).iter("object") if (name := _text(node, "name")))
        except UnreadableError as error:
            damaged[path] = error  # counted if a split lists the file
    if not names and damaged:
        first, reason = next(iter(damaged.items()))
        raise DataError(
            f"{len(damaged)} of the {len(files)} annotation files of {root / 'Annotations'} cannot be read, and the "
            f"others have no objects, e.g. {first.name}: {reason}; restore the files"
        )
    if not names:
        raise DataError(f"no objects in the {len(files)} annotation files of {root / 'Annotations'}; annotate some")
    return tuple(sorted(names))


def read_voc(
    root: Path,
    split: str,
    *,
    class_names: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> tuple[ImageIndex, tuple[Flaw, ...]]:
    """Read the images and boxes of a split.

    VOC counts pixels from 1 and includes the last one, so that a box spans xmin - 1 to xmax; if xmax is not above xmin,
    the box has no area. Objects that are marked as `difficult` or `truncated` are read like all others. The id of an
    image is its entry in the list.

    Args:
        root: The folder of the data set.
        split: The name of a list in ImageSets/Main, or `all` for all annotation files.
        class_names: The classes. If they are left out: `voc_class_names`.
        progress: Called after each image that was checked.

    Returns:
        The index of the split, and the flaws that were found.

    Raises:
        DataError: If the folder or the list cannot be used.
    """
    return index_split(parse_voc(root, split, class_names=class_names), progress=progress)


def parse_voc(root: Path, split: str, *, class_names: tuple[str, ...] | None = None) -> AnnotatedSplit:
    """Parse the annotations of a split; the images are found and not read.

    Args:
        root: As in `read_voc`.
        split: As in `read_voc`.
        class_names: As in `read_voc`.

    Returns:
        The annotations.

    Raises:
        DataError: If the folder or the list cannot be used.
    """
    names = class_names or voc_class_names(root)
    label_of = {name: label for label, name in enumerate(names)}
    flaws: list[Flaw] = []
    images = []
    for stem in _unique(read_voc_list(root, split), root, flaws):
        path = root / "Annotations" / f"{stem}.xml"
        try:
            tree = parse_annotation(path)
        except UnreadableError as error:
            flaws.append(Flaw(FlawKind.NO_ANNOTATION, str(path), str(error)))
        else:
            images.append(_annotated(tree, root, stem, label_of, flaws))
    ids = tuple(range(1, len(names) + 1))
    return AnnotatedSplit(gather_images(images), names, ids, tuple(flaws))


def read_voc_list(root: Path, split: str) -> tuple[str, ...]:
    """Read a list of images, in UTF-8, UTF-16 or cp1252.

    A trailing 0, 1 or -1 is the mark of a class unless there is an annotation with the whole name.

    Args:
        root: The folder of the data set.
        split: The name of a list in ImageSets/Main, with or without `.txt`; or `all`, unless there is a list of this
            name, for all files in Annotations.

    Returns:
        The names of the images without a suffix.

    Raises:
        DataError: If there is no such list, or it names no images. The message names the lists that exist.
    """
    path = root / "ImageSets/Main" / f"{split.removesuffix('.txt')}.txt"
    if split == ALL and not is_file(path):
        annotations = _folder(root, "Annotations")
        files = sorted(annotation_files(annotations))
        return tuple(file.relative_to(annotations).with_suffix("").as_posix() for file in files)
    folder = _folder(root, "ImageSets/Main")
    if not is_file(path):
        present = ", ".join(sorted(file.stem for file in folder.glob("*.txt")))
        raise DataError(f"split {split!r} is not in {folder}; it has: {present or 'no lists'}")
    try:
        lines = decode_text(read_bytes(path, limit=MAX_LIST_BYTES), path).splitlines()
    except OSError as error:
        raise DataError(f"split list {path} cannot be read ({error.strerror or error}); restore the file") from None
    names = tuple(entry_name(line.strip(), root / "Annotations") for line in lines if line.strip())
    if not names:
        raise DataError(f"split list {path} names no images; fill it or name another split")
    return names


def entry_name(line: str, annotations: Path) -> str:
    """Return the name of the annotation that an entry of a list means, without `.xml`.

    Args:
        line: The entry.
        annotations: The folder of the annotations.
    """
    unmarked = _PRESENCE.sub("", line)
    for name in (line, unmarked, unmarked.replace("\\", "/"), re.sub(r"\.\w{3,4}$", "", unmarked)):
        if is_file(annotations / f"{name}.xml"):
            return name
    return unmarked


def _folder(root: Path, name: str) -> Path:
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is not a folder; name the folder that holds the VOC data")
    if not (root / name).is_dir():
        raise DataError(f"{root} has no folder {name}; VOC data have Annotations, ImageSets/Main and JPEGImages")
    return root / name


def image_folder(root: Path) -> Path:
    """Return the folder of the images: `JPEGImages`, or `images` if only this exists.

    Args:
        root: The folder of the data set.
    """
    other = root / "images"
    return other if other.is_dir() and not (root / "JPEGImages").is_dir() else root / "JPEGImages"


def annotation_files(folder: Path) -> Iterator[Path]:
    """Yield the XML files of a folder and of its subfolders; a link to a folder is followed once.

    Args:
        folder: The folder.
    """
    visited = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(here))
        folders[:] = [name for name in folders if os.path.realpath(Path(here, name)) not in visited]
        yield from (Path(here, name) for name in files if name.endswith(".xml"))


def parse_annotation(path: Path) -> Element:
    """Return the root of an annotation, with tags in lower case and without namespaces.

    Args:
        path: The file.

    Raises:
        UnreadableError: If the file cannot be used.
    """
    try:
        content = read_bytes(path, limit=MAX_XML_BYTES)
        tree = _parse_bytes(content)
    except OSError as error:
        raise UnreadableError("no such file" if not path.exists() else str(error.strerror or error)) from None
    except DataError:
        raise UnreadableError(f"larger than {MAX_XML_BYTES / 2**20:g} MiB") from None
    except (ElementTree.ParseError, ValueError, LookupError, MemoryError) as error:  # also errors of encodings
        raise UnreadableError(f"does not parse: {one_line(error, limit=100)}") from None
    if tree.tag != "annotation":
        raise UnreadableError(f"the root element is <{one_line(tree.tag, limit=40)}> instead of <annotation>")
    return tree


def _parse_bytes(content: bytes) -> Element:
    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=_Builder()))
    except ElementTree.ParseError:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:  # older Windows tools write cp1252 and declare nothing, or UTF-8
            return ElementTree.fromstring(content, ElementTree.XMLParser(target=_Builder(), encoding="cp1252"))
        raise


class _Builder(ElementTree.TreeBuilder):
    """A builder of trees of limited depth, with tags in lower case and without namespaces."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: str, attrs: dict[Any, Any], /) -> Element:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        return super().start(tag.rpartition("}")[2].lower(), attrs)

    def end(self, tag: str, /) -> Element:
        self._depth -= 1
        return super().end(tag.rpartition("}")[2].lower())


def _text(node: Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _unique(stems: Iterable[str], root: Path, flaws: list[Flaw]) -> list[str]:
    unique: dict[str, None] = {}
    for stem in stems:
        if stem in unique:
            flaws.append(Flaw(FlawKind.DUPLICATE_ID, str(root / "ImageSets/Main"), f"{stem} listed again"))
        unique[stem] = None
    return list(unique)


def find_image(root: Path, stem: str, tree: Element) -> Path:
    """Return the image with the name of the annotation, or else the one that the annotation names.

    Args:
        root: The folder of the data set.
        stem: The name of the annotation, without `.xml`.
        tree: The annotation.

    Returns:
        The path. If no such image exists, where it should be.
    """
    folder = image_folder(root)
    stated = resolve_name(folder, _text(tree, "filename") or f"{stem}.jpg")
    candidates = [*(folder / f"{stem}{suffix}" for suffix in _SUFFIXES), stated]
    return next((path for path in candidates if is_file(path)), candidates[0])


def _annotated(tree: Element, root: Path, stem: str, label_of: dict[str, int], flaws: list[Flaw]) -> AnnotatedImage:
    annotation = str(root / "Annotations" / f"{stem}.xml")
    boxes, labels = [], []
    for node in tree.iter("object"):
        name = _text(node, "name")
        if name not in label_of:
            flaws.append(Flaw(FlawKind.UNKNOWN_CATEGORY, annotation, repr(name), boxes=1))
            continue
        corners, turned = box_of_object(node)
        if turned:
            flaws.append(Flaw(FlawKind.TURNED, annotation, f"{name!r} {turned}"))
        boxes.append(corners)
        labels.append(label_of[name])
    width, height = (_declared(tree, side, annotation, flaws) for side in ("width", "height"))
    return AnnotatedImage(
        path=find_image(root, stem, tree),
        boxes_xyxy=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        crowd=np.zeros(len(labels), np.bool_),
        declared_wh=(width, height),
        image_id=stem,
    )


def box_of_object(node: Element) -> tuple[list[float], str]:
    """Return the box of an object and by how much it is rotated.

    Args:
        node: The element `object`.

    Returns:
        The corners in pixels, NaN where they are not numbers; and the rotation as text, empty for none.
    """
    if node.find("bndbox") is None and node.find("robndbox") is not None:  # as roLabelImg writes it, in radians
        cx, cy, w, h, angle = (parse_number(_text(node, f"robndbox/{key}")) for key in ("cx", "cy", "w", "h", "angle"))
        return _turned([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], math.degrees(angle))
    xmin, ymin, xmax, ymax = (parse_number(_text(node, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
    is_box = xmax > xmin and ymax > ymin
    corners = [xmin - 1, ymin - 1, xmax, ymax] if is_box else [xmin, ymin, xmax, ymax]
    for attribute in node.iterfind("attributes/attribute"):  # as CVAT writes it, in degrees
        if _text(attribute, "name") == "rotation":
            return _turned(corners, parse_number(_text(attribute, "value")))
    return corners, ""


def _turned(corners: list[float], degrees: float) -> tuple[list[float], str]:
    if not math.isfinite(degrees):
        return corners, "by an angle that is not a number"
    if not degrees % 360:
        return corners, ""
    x1, y1, x2, y2 = corners
    x, y, width, height = turn_box((x1, y1, x2 - x1, y2 - y1), degrees=degrees)
    return [x, y, x + width, y + height], f"by {degrees:g} degrees"


def _declared(tree: Element, side: str, annotation: str, flaws: list[Flaw]) -> float:
    """Return a side of the image as stated; NaN if it is missing or 0, which means unknown."""
    text = _text(tree, f"size/{side}")
    number = parse_number(text)
    if text and not number >= 0:
        flaws.append(Flaw(FlawKind.SIZE, annotation, f"{side} {shown(text)}"))
    return number if number > 0 else math.nan
