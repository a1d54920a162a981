"""Reader of Pascal VOC folders: Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import AnnotatedImage, ImageIndex, Progress, build_index
from yolov7.errors import DataError, one_line
from yolov7.system.files import is_file

_PRESENCE = re.compile(r"\s+-?[01]\s*$")  # lists of a single class say behind each name whether the image has it
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp", ".tif", ".tiff")


def voc_class_names(root: Path) -> tuple[str, ...]:
    """The names in all annotation files, sorted, so that every split has the same classes."""
    files = sorted(_folder(root, "Annotations").glob("*.xml"))
    names = {name for tree in map(_parse, files) if tree is not None for name in _names(tree)}
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
    """The images and boxes of a split.

    VOC counts pixels from 1 and includes the last one, so a box spans xmin - 1 to xmax; where xmax is not above xmin
    it has no area. Objects marked `difficult` count as any other.
    """
    names = class_names or voc_class_names(root)
    flaws: list[Flaw] = []
    images = []
    for stem in _unique(read_split(root, split), root, flaws):
        annotation = root / "Annotations" / f"{stem}.xml"
        tree = _parse(annotation)
        if tree is None:
            reason = "does not parse" if is_file(annotation) else "no such file"
            flaws.append(Flaw(FlawKind.NO_ANNOTATION, str(annotation), reason))
        else:
            images.append(_annotated(tree, _image_path(root, stem, tree), annotation, names, flaws))
    return build_index(images, class_names=names, flaws=flaws, progress=progress)


def read_split(root: Path, split: str) -> tuple[str, ...]:
    """The image names of ImageSets/Main/<split>.txt; DataError names the lists that there are."""
    folder = _folder(root, "ImageSets/Main")
    path = folder / f"{split.removesuffix('.txt')}.txt"
    if not path.is_file():
        present = ", ".join(sorted(file.stem for file in folder.glob("*.txt")))
        raise DataError(f"split {split!r} is not in {folder}; it has: {present or 'no lists'}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"split list {path} is not UTF-8 ({one_line(error)}); save it as UTF-8") from None
    names = tuple(_PRESENCE.sub("", line).strip() for line in lines if line.strip())
    if not names:
        raise DataError(f"split list {path} names no images; fill it or name another split")
    return names


def _folder(root: Path, name: str) -> Path:
    if not root.is_dir():
        raise DataError(f"data.path={str(root)!r} is not a folder; set it to the folder that holds the VOC data")
    if not (root / name).is_dir():
        raise DataError(f"{root} has no folder {name}; VOC data have Annotations, ImageSets/Main and JPEGImages")
    return root / name


def _parse(path: Path) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, ValueError, LookupError):  # the last two: of encodings
        return None


def _names(tree: ElementTree.Element) -> Iterable[str]:
    return (
        (node.findtext("name") or "").strip() for node in tree.iter("object") if (node.findtext("name") or "").strip()
    )


def _unique(stems: Iterable[str], root: Path, flaws: list[Flaw]) -> list[str]:
    unique: dict[str, None] = {}
    for stem in stems:
        if stem in unique:
            flaws.append(Flaw(FlawKind.DUPLICATE_ID, str(root / "ImageSets/Main"), f"{stem} listed again"))
        unique[stem] = None
    return list(unique)


def _image_path(root: Path, stem: str, tree: ElementTree.Element) -> Path:
    """The file with the name of the annotation, else the one that it names."""
    folder = root / "JPEGImages"
    stated = folder / (tree.findtext("filename") or f"{stem}.jpg")
    candidates = [*(folder / f"{stem}{suffix}" for suffix in _SUFFIXES), stated]
    return next((path for path in candidates if is_file(path)), candidates[0])


def _annotated(
    tree: ElementTree.Element, image: Path, annotation: Path, names: tuple[str, ...], flaws: list[Flaw]
) -> AnnotatedImage:
    boxes, labels = [], []
    for node in tree.iter("object"):
        name = (node.findtext("name") or "").strip()
        if name in names:
            boxes.append(_corners(node))
            labels.append(names.index(name))
        else:
            flaws.append(Flaw(FlawKind.UNKNOWN_CATEGORY, str(annotation), repr(name)))
    return AnnotatedImage(
        path=image,
        boxes_xyxy=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        crowd=np.zeros(len(labels), np.bool_),
        declared_wh=_declared(tree),
    )


def _corners(node: ElementTree.Element) -> list[float]:
    try:
        xmin, ymin, xmax, ymax = (
            float(node.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        return [float("nan")] * 4
    if xmax <= xmin or ymax <= ymin:
        return [xmin, ymin, xmax, ymax]
    return [xmin - 1, ymin - 1, xmax, ymax]


def _declared(tree: ElementTree.Element) -> tuple[int, int] | None:
    width, height = (tree.findtext(f"size/{key}") or "" for key in ("width", "height"))
    return (int(width), int(height)) if width.isdecimal() and height.isdecimal() and int(width) else None
