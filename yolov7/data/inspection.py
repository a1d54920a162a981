"""Inspection of image files. A file is decoded again only after its size or its time of change has changed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2

from yolov7.data.flaws import Flaw, FlawKind
from yolov7.data.image_headers import Header, read_header
from yolov7.data.images import JPEG_START, Image, decode_content, largest_deep_value, read_content
from yolov7.data.near_duplicates import perceptual_hash
from yolov7.errors import DataError
from yolov7.system.files import is_file, write_whole

Progress = Callable[[int, int], None]  # images checked so far, images in all
_CODE = ("inspection.py", "images.py", "image_headers.py", "near_duplicates.py")  # what facts depend on
_HASHED_SIDE = 48  # pixels of the shorter side that an image has at least if it is decoded at a fraction of its size
_BATCH = 32  # images of a task of a thread
_SETTLED = 2.0  # seconds since the last change of a file after which the clock can tell a further change


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image file after it was decoded once.

    Attributes:
        width: Columns in pixels, after the EXIF rotation.
        height: Rows in pixels, after the EXIF rotation.
        content_hash: Hash of the bytes of the file.
        largest_value: The largest sample of a 16-bit image that uses only a small part of its range, so that it is
            almost black in 8 bits; None for all other images.
        perceptual_hash: Hash of what the image shows; see `yolov7.data.near_duplicates`.
    """

    width: int
    height: int
    content_hash: str
    largest_value: int | None = None
    perceptual_hash: int = 0


class KnownImages:
    """What this code found out about image files, by their path, size and time of change."""

    def __init__(self, file: Path | None = None) -> None:
        """Read what an earlier process saved.

        Args:
            file: The file that `save` wrote. A missing or damaged file counts as empty.
        """
        self._facts: dict[str, list[Any]] = {}
        self._used: set[str] = set()
        try:
            content = json.loads(file.read_bytes()) if file is not None else {}
            if content.get("code") == _code_digest() and isinstance(content["images"], dict):
                self._facts = content["images"]
        except (OSError, ValueError, AttributeError, KeyError):
            pass

    def find(self, path: Path) -> ImageFacts | None:
        """Return what is known of an image file; None if it changed or was never added.

        Args:
            path: The image file.
        """
        row = self._facts.get(str(path))
        try:
            if row is None or row[0] != _stamp(path):
                return None
        except OSError:
            return None
        self._used.add(str(path))
        return ImageFacts(*row[1:])

    def add(self, path: Path, facts: ImageFacts, *, stamp: list[int]) -> None:
        """Remember an image file, unless it was changed less than a few seconds ago.

        Args:
            path: The image file.
            facts: What is known of it.
            stamp: Its size in bytes and its time of change in nanoseconds, from before it was read.
        """
        if time.time_ns() - stamp[1] < _SETTLED * 1e9:
            return
        self._facts[str(path)] = [
            stamp,
            facts.width,
            facts.height,
            facts.content_hash,
            facts.largest_value,
            facts.perceptual_hash,
        ]
        self._used.add(str(path))

    def keep(self, paths: Iterable[Path]) -> None:
        """Keep what is known of files that are not looked up.

        Args:
            paths: The image files.
        """
        self._used.update(name for name in map(str, paths) if name in self._facts)

    def save(self, file: Path) -> None:
        """Write all images that were found, added or kept.

        Args:
            file: The file.
        """
        images = {path: self._facts[path] for path in sorted(self._used)}
        write_whole(file, json.dumps({"code": _code_digest(), "images": images}, separators=(",", ":")).encode())


def inspect_image(path: Path) -> ImageFacts:
    """Read a whole image file, so that a file that passes can be trained on.

    All data of a JPEG file are read, but only the brightness is computed, at a fraction of the size of the image.

    Args:
        path: The image file.

    Returns:
        The size, the hashes and the range of the image.

    Raises:
        DataError: As `read_image`.
    """
    content = read_content(path)
    digest = hashlib.sha256(content).hexdigest()[:32]  # processors have instructions for it
    header = read_header(content) or Header(0, 0)
    is_jpeg = content.startswith(JPEG_START)
    shorter = min(header.width, header.height) if is_jpeg else 0
    reduce = next((step for step in (8, 4, 2) if shorter >= step * _HASHED_SIDE), 1)
    image = decode_content(path, content, reduce=reduce, grey=is_jpeg)
    size = _upright_size(header, image, reduce=reduce)
    if size is None:
        image = decode_content(path, content)
        size = image.shape[1], image.shape[0]
    largest = largest_deep_value(content, image) if header.bits > 8 else None
    return ImageFacts(*size, digest, largest_value=largest, perceptual_hash=perceptual_hash(image))


def _upright_size(header: Header, image: Image, *, reduce: int) -> tuple[int, int] | None:
    """Return width and height after the EXIF rotation of an image that was decoded at a fraction of its size.

    Returns None if the sides are too similar to tell whether the image was rotated.
    """
    if reduce == 1:
        return image.shape[1], image.shape[0]
    height, width = image.shape[:2]
    across, down = -(-header.width // reduce), -(-header.height // reduce)
    if (header.width == header.height or across != down) and (width, height) == (across, down):
        return header.width, header.height
    return (header.height, header.width) if across != down and (width, height) == (down, across) else None


def inspect_images(
    paths: Sequence[Path], *, known: KnownImages | None = None, progress: Progress | None = None
) -> list[ImageFacts | Flaw]:
    """Inspect image files in threads.

    Args:
        paths: The image files.
        known: Images that were inspected before; the images that are inspected now are added.
        progress: Called with the number of images that were inspected, and the number of all images.

    Returns:
        For each file what is known of it, or the flaw because of which it cannot be used.
    """
    found: list[ImageFacts | Flaw] = []
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for inspected in pool.map(_inspect_batch, batches, itertools.repeat(known)):
            for facts in inspected:
                found.append(facts)
                if progress is not None:
                    progress(len(found), len(paths))
    return found


def _inspect_batch(paths: Sequence[Path], known: KnownImages | None) -> list[ImageFacts | Flaw]:
    return [_inspect(path, known) for path in paths]


def _inspect(path: Path, known: KnownImages | None) -> ImageFacts | Flaw:
    if known is not None and (facts := known.find(path)) is not None:
        return facts
    if not is_file(path):
        reason = "not a regular file" if os.path.lexists(path) else "no such file"
        return Flaw(FlawKind.MISSING, str(path), reason)
    try:
        stamp = _stamp(path)
        facts = inspect_image(path)
    except OSError as error:
        return Flaw(FlawKind.UNREADABLE, str(path), error.strerror or "cannot be read")
    except DataError as error:
        reason = str(error).removeprefix(f"image {path} ").split(";")[0]
        return Flaw(FlawKind.UNREADABLE, str(path), reason)
    if known is not None:
        known.add(path, facts, stamp=stamp)
    return facts


def _stamp(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


@cache
def _code_digest() -> str:
    digest = hashlib.blake2b(cv2.__version__.encode(), digest_size=16)
    for name in _CODE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()
