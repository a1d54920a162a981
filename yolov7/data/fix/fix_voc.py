"""Cleaning of Pascal VOC lists and annotations. Elements that are not read stay as they are."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from yolov7.data.fix.boxes import FixedBox, fix_boxes
from yolov7.data.fix.changes import Changes
from yolov7.data.flaws import FlawKind
from yolov7.data.health.checks import CHECK_OF_FLAW
from yolov7.data.index import ImageIndex
from yolov7.data.read.values import parse_number
from yolov7.data.read.voc import (
    UnreadableError,
    box_of_object,
    entry_name,
    find_image,
    parse_annotation,
)
from yolov7.system.files import is_file
from yolov7.system.text_files import decode_text, read_bytes

_ID = {kind: check.id for kind, check in CHECK_OF_FLAW.items()}


def fix_voc(root: Path, split: str, index: ImageIndex, changes: Changes, done: dict[Path, bytes]) -> dict[Path, bytes]:
    """Clean the list and the annotations of a split.

    Args:
        root: The folder of the data set.
        split: The name of the list.
        index: The split, as it was read.
        changes: What to correct; the corrections are counted.
        done: New contents of files that another split has too.

    Returns:
        The new content of each file of the split that changes, and of its list.
    """
    file = root / "ImageSets" / "Main" / f"{split.removesuffix('.txt')}.txt"
    sizes = {path: (int(w), int(h)) for path, w, h in zip(index.paths, index.widths, index.heights, strict=True)}
    files: dict[Path, bytes] = {}
    seen, kept = set[str](), []
    for line in filter(None, map(str.strip, decode_text(read_bytes(file), file).splitlines())):
        stem = entry_name(line, root / "Annotations")
        if stem in seen and changes.apply(_ID[FlawKind.DUPLICATE_ID]):
            continue
        is_first = stem not in seen
        seen.add(stem)
        path = root / "Annotations" / f"{stem}.xml"
        try:
            tree = parse_annotation(path)
        except UnreadableError:
            if not changes.apply(_ID[FlawKind.NO_ANNOTATION]):
                kept.append(line)
            continue
        image = find_image(root, stem, tree).absolute()
        if image not in sizes:
            lost = FlawKind.UNREADABLE if is_file(image) else FlawKind.MISSING
            if not changes.apply(_ID[lost]):
                kept.append(line)
            continue
        kept.append(line)
        if is_first and path not in done and _fix_tree(tree, sizes[image], index.class_names, changes):
            files[path] = ElementTree.tostring(tree, encoding="utf-8")
    return files | {file: "".join(f"{line}\n" for line in kept).encode()}


def _fix_tree(tree: Element, size: tuple[int, int], class_names: tuple[str, ...], changes: Changes) -> bool:
    """Clean an annotation; return whether it changed."""
    before = changes.counts.total()
    for name, true in zip(("width", "height"), size, strict=True):
        node = tree.find(f"size/{name}")
        text = (node.text or "").strip() if node is not None else ""
        stated = parse_number(text)
        if node is not None and text and stated not in (0, true) and changes.apply(_ID[FlawKind.SIZE]):
            node.text = str(true)
    parents = {child: parent for parent in tree.iter() for child in parent}
    objects = list(tree.iter("object"))
    names = [(node.findtext("name") or "").strip() for node in objects]
    for node, name in zip(objects, names, strict=True):
        if name not in class_names and changes.apply(_ID[FlawKind.UNKNOWN_CATEGORY]):
            parents[node].remove(node)
    known = [(node, name) for node, name in zip(objects, names, strict=True) if name in class_names]
    boxes = np.array([box_of_object(node)[0] for node, _ in known], np.float64).reshape(-1, 4)
    labels = np.array([class_names.index(name) for _, name in known], np.int64)
    crowd = np.zeros(len(known), np.bool_)
    for (node, _), fixed in zip(known, fix_boxes(boxes, labels, crowd, size, wanted=changes.wanted), strict=True):
        if fixed.check is not None:
            changes.counts[fixed.check] += 1
            _apply(fixed, node, parents[node])
    return changes.counts.total() > before


def _apply(fixed: FixedBox, node: Element, parent: Element) -> None:
    """Remove an object, or write its new box. VOC counts pixels from 1 and includes the last one."""
    if fixed.box_xyxy is None:
        parent.remove(node)
        return
    for name in ("robndbox", "attributes"):  # the new box is upright
        if (old := node.find(name)) is not None:
            node.remove(old)
    box = node.find("bndbox")
    if box is None:
        box = ElementTree.SubElement(node, "bndbox")
    x1, y1, x2, y2 = fixed.box_xyxy.tolist()
    for name, value in {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}.items():
        side = box.find(name)
        if side is None:
            side = ElementTree.SubElement(box, name)
        side.text = f"{value:.10g}"
