"""Indices of splits that were read before. A split is read again if its annotations, images or this code changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2

from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.index import ImageIndex, load_index, save_index
from yolov7.errors import ArtifactError
from yolov7.system.files import write_whole

READING_CODE = (
    "annotations",
    "build_index",
    "find_data",
    "flaws",
    "image_headers",
    "images",
    "index",
    "inspection",
    "near_duplicates",
    "other_tools",
    "outlines",
    "read/coco",
    "read/coco_rows",
    "read/image_names",
    "read/json_lists",
    "read/values",
    "read/voc",
    "read/yolo",
    "read/yolo_rows",
    "sources",
    "split_store",
    "../system/text_files",
    "../system/yaml_files",
)  # the modules that `yolov7.data.sources` imports and that affect an index


class SplitStore:
    """A folder with the index and the flaws of each split, and what decided them."""

    def __init__(self, folder: Path, *, root: Path) -> None:
        """Name the folder.

        Args:
            folder: The folder; it may be missing.
            root: As in `save_index`.
        """
        self._folder, self._root = folder, root

    def index_file(self, split: str) -> Path:
        """Return the file of the index of a split.

        Args:
            split: The name of the split.
        """
        return self._folder / f"{split}.npz"

    def find(self, split: str, key: str) -> tuple[ImageIndex, tuple[Flaw, ...], dict[str, Any]] | None:
        """Return what was saved for a split, or None if it is missing, damaged or outdated.

        Args:
            split: The name of the split.
            key: What decides the split, apart from its images.

        Returns:
            The index, the flaws and the notes.
        """
        try:
            content = json.loads((self._folder / f"{split}.json").read_bytes())
            paths = [Path(path) for path in content["images"]]
            if content["key"] != key or content["stamp"] != stamp_files(paths):
                return None
            flaws = tuple(
                Flaw(FlawKind(kind), file, detail, boxes, None if box is None else tuple(box))
                for kind, file, detail, boxes, box in content["flaws"]
            )
            return load_index(self.index_file(split)), flaws, content["notes"]
        except (OSError, ValueError, LookupError, TypeError, ArtifactError):
            return None

    def save(
        self,
        split: str,
        key: str,
        result: tuple[ImageIndex, tuple[Flaw, ...]],
        *,
        images: Sequence[Path],
        stamp: str,
        notes: dict[str, Any],
    ) -> None:
        """Save the index and the flaws of a split.

        Args:
            split: The name of the split.
            key: What decides the split, apart from its images.
            result: The index and the flaws.
            images: All images that the annotations name, missing ones included.
            stamp: The state of these images before they were read, from `stamp_files`.
            notes: Plain values that `find` returns too.
        """
        index, flaws = result
        manifest = self._folder / f"{split}.json"
        manifest.unlink(missing_ok=True)  # it must never describe another index
        self._folder.mkdir(parents=True, exist_ok=True)
        save_index(self.index_file(split), index, root=self._root)
        content = {
            "key": key,
            "stamp": stamp,
            "notes": notes,
            "flaws": [[flaw.kind, flaw.file, flaw.detail, flaw.boxes, flaw.box_xyxy] for flaw in flaws],
            "images": [str(path) for path in images],
        }
        write_whole(manifest, json.dumps(content).encode())


def stamp_files(paths: Iterable[Path]) -> str:
    """Return a digest of the paths, sizes and times of change of files and folders; they may be missing.

    Args:
        paths: The files.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            state = path.stat()
        except (OSError, ValueError):
            digest.update(f"{path} missing\n".encode(errors="surrogateescape"))
        else:
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """Return a digest of the code that decides an index, and of the version of the library that decodes images."""
    digest = hashlib.blake2b(cv2.__version__.encode(), digest_size=16)
    for name in READING_CODE:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()
