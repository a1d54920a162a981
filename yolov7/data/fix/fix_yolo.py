"""Cleaning of YOLO label files, list files and the data.yaml. Lines without flaws stay as they are."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolov7.data.find_data import FoundData, find_split
from yolov7.data.fix.boxes import fix_boxes
from yolov7.data.fix.changes import Changes
from yolov7.data.flaws import FlawKind
from yolov7.data.health.checks import CHECK_OF_FLAW
from yolov7.data.images import IMAGE_SUFFIXES
from yolov7.data.index import ImageIndex
from yolov7.data.outlines import clip_polygon, frame_planes
from yolov7.data.read.yolo import YoloData, find_images, label_path, load_yolo, source_path
from yolov7.data.read.yolo_rows import LabelRows
from yolov7.errors import DataError
from yolov7.system.files import is_file
from yolov7.system.text_files import decode_text, read_bytes

_ID = {kind: check.id for kind, check in CHECK_OF_FLAW.items()}
_BOX_FIELDS = 5


def fix_yolo(found: FoundData, split: str, index: ImageIndex, changes: Changes) -> tuple[dict[Path, bytes], set[Path]]:
    """Clean the label files and lists of a split.

    Args:
        found: The data set.
        split: The name of the split.
        index: The split, as it was read.
        changes: What to correct; the corrections are counted.

    Returns:
        The new content of the data.yaml, of the lists and of all label files of the split; the images that the copy
        leaves out.

    Raises:
        DataError: If a label file or list is outside of the folder of the data set.
    """
    assert found.file is not None  # all yolo data have it
    data = load_yolo(found.file)
    source = find_split(found, split)
    sizes = {path: (int(w), int(h)) for path, w, h in zip(index.paths, index.widths, index.heights, strict=True)}
    files, removed = {found.file: _described(data)}, set[Path]()
    for image in dict.fromkeys(find_images(data, source)):
        label, size = label_path(image), sizes.get(image.absolute())
        if size is None:
            if changes.apply(_ID[FlawKind.UNREADABLE if is_file(image) else FlawKind.MISSING]):
                removed.add(image)
            continue
        try:
            text = decode_text(read_bytes(label), label)
        except FileNotFoundError:
            continue
        except (OSError, DataError):
            if changes.apply(_ID[FlawKind.NO_ANNOTATION]):
                removed.add(image)
            continue
        files[label] = _fix_labels(text, size, data, changes).encode()
    for list_file in _list_files(data, source):
        files[list_file] = _fix_list(list_file, data.root, removed)
    for path in files:
        if not path.absolute().is_relative_to(data.root.absolute()):
            raise DataError(f"{path} is outside of {data.root}, so that it cannot be copied; move it there")
    return files, {image for image in removed if is_file(image) and image.is_relative_to(data.root)}


def _described(data: YoloData) -> bytes:
    """Return the data.yaml with paths that are relative to the copy."""
    text = decode_text(read_bytes(data.file), data.file)
    if data.file.suffix.lower() not in {".yaml", ".yml"}:
        return text.encode()
    root = os.path.relpath(data.root, data.file.parent)
    text = text.replace(f"{data.root.absolute()}{os.sep}", "")
    return re.sub(r"(?m)^path\s*:.*$", f"path: {root}", text).encode()


def _list_files(data: YoloData, source: str) -> list[Path]:
    paths = [source_path(data, name, source) for name in data.splits.get(source, (source,))]
    return [path for path in paths if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES]


def _fix_list(file: Path, root: Path, removed: set[Path]) -> bytes:
    """Return the lines of images that stay; absolute paths in the data set become relative."""
    kept = []
    for line in filter(None, map(str.strip, decode_text(read_bytes(file), file).splitlines())):
        candidates = [Path(os.path.normpath(base / line.replace("\\", "/"))) for base in (root, file.parent)]
        if not removed.intersection(candidates):
            path = Path(line)
            is_inside = path.is_absolute() and path.is_relative_to(root)
            kept.append(path.relative_to(root).as_posix() if is_inside else line)
    return "".join(f"{line}\n" for line in kept).encode()


def _fix_labels(text: str, size: tuple[int, int], data: YoloData, changes: Changes) -> str:
    """Return the lines of a label file without flaws."""
    lines = [line for line in text.splitlines() if line.strip()]
    rows = LabelRows(num_classes=len(data.class_names), has_keypoints=data.has_keypoints)
    kept, sound = dict[int, str](), list[int]()
    seen: set[tuple[float, ...]] = set()
    for place, line in enumerate(lines):
        known = len(rows.flaws)
        rows.append_file(line, image=0, file="")
        kind = rows.flaws[-1].kind if len(rows.flaws) > known else None
        if kind is None:
            values = tuple(map(float, line.split()))
            kind = FlawKind.DUPLICATE_BOX if values in seen else None
            seen.add(values)
        if kind is None or not changes.apply(_ID[kind]):
            kept[place] = line
            if kind is None:
                sound.append(place)
    frame = np.tile(np.array(size, np.float64), 2)
    boxes = np.array([_corners(lines[place], data) for place in sound], np.float64).reshape(-1, 4) * frame
    labels = np.array([int(float(lines[place].split()[0])) for place in sound], np.int64)
    crowd = np.zeros(len(sound), np.bool_)
    fixed = fix_boxes(boxes, labels, crowd, size, wanted=changes.wanted, in_shares=True)
    for place, one in zip(sound, fixed, strict=True):
        if one.check is not None:
            changes.counts[one.check] += 1
            if one.box_xyxy is None:
                del kept[place]
            else:
                kept[place] = _with_box(lines[place], one.box_xyxy / frame, size, data)
    return "".join(f"{line}\n" for line in kept.values())


def _corners(line: str, data: YoloData) -> list[float]:
    """Return the box of a line as corners in shares."""
    fields = line.split()
    values = np.array([float(field) for field in fields[1:]], np.float64)
    if len(fields) == _BOX_FIELDS or data.has_keypoints:
        x, y, width, height = values[:4]
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    points = values.reshape(-1, 2)
    return [*points.min(axis=0), *points.max(axis=0)]


def _with_box(line: str, box: NDArray[np.float64], size: tuple[int, int], data: YoloData) -> str:
    """Return a line with another box, corners in shares, or with its polygon clipped to the image."""
    fields = line.split()
    if len(fields) == _BOX_FIELDS or data.has_keypoints:
        x1, y1, x2, y2 = box.tolist()
        values = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        rest = fields[_BOX_FIELDS:]
    else:
        points = np.array(fields[1:], np.float64).reshape(-1, 2) * size
        values, rest = (clip_polygon(points.astype(np.float32), frame_planes(*size)) / size).ravel().tolist(), []
    return " ".join([fields[0], *(f"{value:.9g}" for value in values), *rest])
