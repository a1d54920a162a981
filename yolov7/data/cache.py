"""Decoded images, kept in memory or in a file, filled and read by all processes that share it."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from yolov7.data.augment.geometry import Size
from yolov7.data.images import Image
from yolov7.data.index import ImageIndex
from yolov7.errors import DataError

CacheMode = Literal["auto", "memory", "disk", "none"]
MEMORY_SHARE = 0.25  # of the available memory, up to which `auto` keeps images
DISK_SHARE = 0.5  # of what is free and of what older caches hold, up to which `disk` does
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@final
class ImageCache:
    """Images (H, W, 3) of given sizes in one mapping; processes forked later, or that map the same file, share it."""

    def __init__(self, sizes: Sequence[Size], *, file: Path | None = None) -> None:
        self._sizes = sizes
        lengths = np.array([width * height * 3 for width, height in sizes], np.int64)
        self._offsets = len(sizes) + np.concatenate([[0], np.cumsum(lengths)])
        content = np.frombuffer(_map(file, length=int(self._offsets[-1])), np.uint8)
        self._filled, self._content = content[: len(sizes)], content

    def get(self, i: int) -> Image | None:
        """Image i, not to be written to; None where nobody has put it there yet."""
        return self._view(i) if self._filled[i] else None

    def put(self, i: int, image: Image) -> None:
        """Keeps image i."""
        self._view(i)[:] = image  # two processes may write the same bytes
        self._filled[i] = 1

    def _view(self, i: int) -> Image:
        width, height = self._sizes[i]
        flat: NDArray[np.uint8] = self._content[self._offsets[i] : self._offsets[i + 1]]
        return flat.reshape(height, width, 3)


def make_cache(
    index: ImageIndex, sizes: Sequence[Size], *, mode: CacheMode, folder: Path | None = None
) -> ImageCache | None:
    """The cache of a split's images at these sizes; None for no cache.

    `auto`: in memory where that is little of what is available. `disk`: in a file of `folder`, which later runs on the
    same images and sizes find filled; older files give way to it. DataError where the disk has no room.
    """
    needed = sum(width * height * 3 + 1 for width, height in sizes)
    match mode:
        case "memory":
            return ImageCache(sizes) if sizes else None
        case "auto":
            return ImageCache(sizes) if sizes and needed <= MEMORY_SHARE * _available_memory() else None
        case "disk" if folder is not None and sizes:
            file = folder / f"{_key(index, sizes)}.images"
            if not file.is_file():
                _make_room(folder, needed)
            return ImageCache(sizes, file=file)
        case _:
            return None


def _map(file: Path | None, *, length: int) -> mmap.mmap:
    if file is None:
        return mmap.mmap(-1, length)
    file.touch()
    with file.open("r+b") as opened:
        opened.truncate(length)
        if sys.platform == "linux":
            _reserve(opened.fileno(), length, file=file)
        return mmap.mmap(opened.fileno(), length)


def _reserve(descriptor: int, length: int, *, file: Path) -> None:
    """Takes the room now: a disk that is full only when an image is put there would end the process."""
    try:
        os.posix_fallocate(descriptor, 0, length)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None


def _key(index: ImageIndex, sizes: Sequence[Size]) -> str:
    """Of images and sizes; of the boot too, since a crash may lose pixels that are marked as there."""
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.is_file() else ""
    digest = hashlib.blake2b("\n".join((*index.hashes, boot)).encode(), digest_size=12)
    digest.update(np.array(sizes, np.int64).tobytes())
    return digest.hexdigest()


def _make_room(folder: Path, needed: int) -> None:
    """Deletes the caches that were opened longest ago until one more may be made."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("*.images"), key=lambda path: path.stat().st_mtime)
    taken = {path: path.stat().st_blocks * 512 for path in files}
    allowed = DISK_SHARE * (shutil.disk_usage(folder).free + sum(taken.values()))
    if needed > allowed:
        raise DataError(
            f"cache_images=disk needs {needed / 1e9:.1f} GB for decoded images and may take {allowed / 1e9:.1f} GB "
            f"of {folder}; use cache_images: none, a smaller image_size or a larger disk"
        )
    for path in files:
        if sum(taken.values()) + needed <= allowed:
            return
        path.unlink(missing_ok=True)  # a run that has it open keeps it until its end
        del taken[path]


def _available_memory() -> int:
    """Bytes that this process may still use: of the machine, and of its control group where that has a limit."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available
    return min(available, max(limit - used, 0))
