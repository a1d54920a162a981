"""Decoded images, kept in memory or in a file."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from yolov7.data.augment.letterbox import Size
from yolov7.data.images import Image
from yolov7.data.index import ImageIndex
from yolov7.errors import SettingError

CacheMode = Literal["auto", "memory", "disk", "none"]
Gather = Callable[[Any], list[Any]]
MEMORY_SHARE = 0.25  # of the available memory, which the caches of `auto` on one machine may take together
DISK_SHARE = 0.5  # of the free space and of what older cache files occupy, which the files of `disk` may take
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@final
class ImageCache:
    """Images of given sizes in one memory mapping.

    Processes that are forked later, or that map the same file, share the content: each reads what any of them wrote.
    """

    def __init__(self, sizes: Sequence[Size], *, file: Path | int | None = None) -> None:
        """Reserve the space for all images; none is filled unless an earlier process filled the file.

        Args:
            sizes: Width and height of each image, pixels.
            file: The file to keep them in, by its path or as an open descriptor; None for memory.

        Raises:
            OSError: If the file cannot be written or the disk has not enough space.
        """
        self._sizes = sizes
        lengths = np.array([width * height * 3 for width, height in sizes], np.int64)
        self._offsets = len(sizes) + np.concatenate([[0], np.cumsum(lengths)])
        content = np.frombuffer(_map(file, length=int(self._offsets[-1])), np.uint8)
        self._filled, self._content = content[: len(sizes)], content

    def get(self, i: int) -> Image | None:
        """Return an image.

        Args:
            i: Number of the image.

        Returns:
            The image (H, W, 3), uint8, which must not be written to; None if it was not stored yet.
        """
        return self._view(i) if self._filled[i] else None

    def put(self, i: int, image: Image) -> None:
        """Store an image.

        Args:
            i: Number of the image.
            image: The image (H, W, 3), uint8, of the size that was given for it.
        """
        self._view(i)[:] = image  # two processes may write the same bytes at the same time
        self._filled[i] = 1

    def _view(self, i: int) -> Image:
        width, height = self._sizes[i]
        flat: NDArray[np.uint8] = self._content[self._offsets[i] : self._offsets[i + 1]]
        return flat.reshape(height, width, 3)


def make_cache(
    index: ImageIndex,
    sizes: Sequence[Size],
    *,
    mode: CacheMode,
    folder: Path | None = None,
    processes: int = 1,
    gather: Gather = lambda mine: [mine],
) -> ImageCache | None:
    """Make the cache of the images of a split.

    Args:
        index: The images.
        sizes: Width and height at which each image is kept, pixels.
        mode: `auto`: in memory if the caches of this machine take at most a quarter of what is available. `memory`: in
            memory. `disk`: in a file of `folder`, which all processes share and which later runs with the same images
            and sizes find filled; older files are deleted to make space. `none`: no cache.
        folder: Folder of the cache files; needed for `disk`.
        processes: Number of processes of this machine that call this function at about the same time.
        gather: Collects a value from every process of the run. The processes that it reaches on this machine share one
            cache in memory. All of them must call this function with the same images, sizes and mode.

    Returns:
        The cache; None for no cache.

    Raises:
        SettingError: If the mode is `memory` or `disk` and there is not enough memory or disk space.
        OSError: If the folder cannot be written.
    """
    if mode == "none" or not sizes:
        return None
    needed = sum(width * height * 3 + 1 for width, height in sizes)
    if mode == "disk":
        if folder is None:
            raise ValueError("cache='disk' needs a folder")
        file = folder / f"{_key(index, sizes)}.images"
        if not file.is_file():
            _make_space(folder, needed)
        return ImageCache(sizes, file=file)
    return _share_memory(sizes, needed, mode=mode, processes=processes, gather=gather)


def _share_memory(
    sizes: Sequence[Size], needed: int, *, mode: CacheMode, processes: int, gather: Gather
) -> ImageCache | None:
    """Make one cache in memory for the processes of this machine that `gather` reaches; see `make_cache`.

    The first of them creates a file in memory that has no name, and the others open its descriptor. The system frees
    the memory when the last process ends, in whatever way it ends.
    """
    here, process = _place(), os.getpid()
    told = gather((here, process, available_memory()))
    members = [(number, available) for place, number, available in told if place == here]
    owner, available = members[0]  # all members apply the same limit
    copies = -(-processes // len(members))
    allowed = MEMORY_SHARE * available if mode == "auto" else available
    is_shared = len(members) > 1 and copies * needed <= allowed
    own = _memory_file(needed) if is_shared and process == owner else None
    descriptors = {(place, number): file for place, number, file in gather((here, process, own))}
    if copies * needed > allowed:
        if mode == "auto":
            return None
        raise _too_large(needed, available, copies=copies)
    if own is not None or not is_shared:
        return ImageCache(sizes, file=own)
    try:
        with Path(f"/proc/{owner}/fd/{descriptors[here, owner]}").open("r+b") as file:
            return ImageCache(sizes, file=file.fileno())
    except OSError:  # the system does not allow it: a copy for each process, if there is room
        return ImageCache(sizes) if processes * needed <= allowed else None


def _place() -> str:
    """Return what is equal in two processes if each can open the files of the other by its number."""
    if sys.platform != "linux":
        return f"{platform.node()} {os.getpid()}"
    return f"{_boot()} {Path('/proc/self/ns/pid').stat().st_ino}"


def _memory_file(length: int) -> int:
    """Return the descriptor of a file in memory, which stays open so that other processes find it."""
    assert sys.platform == "linux"
    descriptor = os.memfd_create("decoded images")
    os.truncate(descriptor, length)
    return descriptor


def _too_large(needed: int, available: int, *, copies: int) -> SettingError:
    each = f" for each of {copies} trainings on this machine" if copies > 1 else ""
    return SettingError(
        f"cache_images='memory' needs {needed / 1e9:.1f} GB for decoded images{each}, but only "
        f"{available / 1e9:.1f} GB of memory are available; use cache_images: disk, which trainings share, or none"
    )


def available_memory() -> int:
    """Return how many bytes this process may still use: of the machine, and of its control group if that is limited.

    Returns:
        Bytes; half of the machine's memory if the system does not say how much is available.
    """
    try:
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available
    return min(available, max(limit - used, 0))


def _map(file: Path | int | None, *, length: int) -> mmap.mmap:
    if not isinstance(file, Path):
        return mmap.mmap(-1 if file is None else file, length)
    file.touch()
    with file.open("r+b") as opened:
        opened.truncate(length)
        if sys.platform == "linux":
            _reserve(opened.fileno(), length, file=file)
        return mmap.mmap(opened.fileno(), length)


def _reserve(descriptor: int, length: int, *, file: Path) -> None:
    """Reserve the disk space now: if it ran out while an image is written, the process would be killed."""
    try:
        os.posix_fallocate(descriptor, 0, length)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None


def _key(index: ImageIndex, sizes: Sequence[Size]) -> str:
    """Return a hash of images, sizes and boot: after a crash, pixels may be missing that are marked as filled."""
    digest = hashlib.blake2b("\n".join((*index.hashes, _boot())).encode(), digest_size=12)
    digest.update(np.array(sizes, np.int64).tobytes())
    return digest.hexdigest()


def _boot() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.is_file() else ""


def _make_space(folder: Path, needed: int) -> None:
    """Delete the cache files that were opened longest ago until another one of `needed` bytes is allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("*.images"), key=lambda path: path.stat().st_mtime)
    taken = {path: path.stat().st_blocks * 512 for path in files}
    allowed = DISK_SHARE * (shutil.disk_usage(folder).free + sum(taken.values()))
    if needed > allowed:
        raise SettingError(
            f"cache_images='disk' needs {needed / 1e9:.1f} GB for decoded images but may take only "
            f"{allowed / 1e9:.1f} GB of {folder}; use cache_images: none, a smaller image_size or a larger disk"
        )
    for path in files:
        if sum(taken.values()) + needed <= allowed:
            return
        path.unlink(missing_ok=True)  # a run that has it open keeps it until its end
        del taken[path]
