"""A cleaned copy of the annotations of a data set: the same files in a new folder, with links to the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from yolov7.data.find_data import FoundData, find_split
from yolov7.data.fix.changes import Changes
from yolov7.data.fix.fix_coco import fix_coco
from yolov7.data.fix.fix_voc import fix_voc
from yolov7.data.fix.fix_yolo import fix_yolo
from yolov7.data.health.checks import CHECKS
from yolov7.data.index import ImageIndex
from yolov7.data.read.coco import find_coco_file
from yolov7.errors import SettingError
from yolov7.system.files import write_whole

_COPIED = frozenset({".json", ".xml", ".txt", ".yaml", ".yml", ".names", ".csv", ".md"})


def check_target(folder: Path, found: FoundData) -> None:
    """Raise an error if a folder cannot take a copy.

    Args:
        folder: The folder.
        found: The original.

    Raises:
        SettingError: If the folder is not empty, is a file, or is inside the original.
    """
    if folder.resolve().is_relative_to(found.root.resolve()):
        raise SettingError(f"fix={folder} is inside the original {found.root}; name a new folder outside of it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"fix={folder} exists and is not an empty folder; name a new folder")


def write_fixed_copy(
    folder: Path, found: FoundData, indices: Mapping[str, ImageIndex], *, wanted: Collection[str]
) -> dict[tuple[str, str, str], int]:
    """Write a cleaned copy of the annotations. The original stays as it is.

    Args:
        folder: The new folder.
        found: The original.
        indices: The splits to clean, as they were read.
        wanted: The ids of the checks whose findings are corrected.

    Returns:
        The number of changes by split, id of the check, and what was done.

    Raises:
        SettingError: As `check_target`.
        DataError: If the original has files outside of its folder that would have to be copied too.
    """
    check_target(folder, found)
    contents, removed = dict[Path, bytes](), set[Path]()
    counts: dict[tuple[str, str, str], int] = {}
    texts = {check.id: check.fix or "" for check in CHECKS}
    for split, index in indices.items():
        changes = Changes(wanted=frozenset(wanted), counts=Counter())
        match found.format:
            case "coco":
                file = found.file or find_coco_file(found.root, find_split(found, split))
                contents[file] = fix_coco(file, found.root, index, changes)
            case "voc":
                contents |= fix_voc(found.root, find_split(found, split), index, changes, contents)
            case "yolo":
                files, images = fix_yolo(found, split, index, changes)
                contents |= files
                removed |= images
        counts |= {(split, id, texts[id]): count for id, count in sorted(changes.counts.items())}
    inside = {path.relative_to(found.root): content for path, content in contents.items()}
    folder.mkdir(parents=True, exist_ok=True)
    _mirror(found.root.absolute(), folder, Path(), inside, {path.relative_to(found.root) for path in removed})
    return counts


def _mirror(root: Path, target: Path, place: Path, contents: Mapping[Path, bytes], removed: Collection[Path]) -> None:
    """Write new files, copy other annotation files beside them, and link everything else."""
    touched = {
        Path(*path.parts[: len(place.parts) + 1]) for path in (*contents, *removed) if path.is_relative_to(place)
    }
    for entry in sorted((root / place).iterdir()):
        here = place / entry.name
        if here in removed:
            continue
        if here in contents:
            write_whole(target / here, contents[here], durable=False)
        elif here in touched and entry.is_dir():
            (target / here).mkdir(exist_ok=True)
            _mirror(root, target, here, contents, removed)
        elif entry.suffix.lower() in _COPIED and entry.is_file():
            write_whole(target / here, entry.read_bytes(), durable=False)
        elif entry.resolve() != target.resolve():
            (target / here).symlink_to(entry)
