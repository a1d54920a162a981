"""Safe unpacking of zip and tar archives that come from elsewhere.

Nothing is written outside the target folder, links and devices are refused, and the total size is limited by the size
of the archive and by the free disk space.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from yolov7.errors import DataError, one_line

_CHUNK = 1 << 20  # bytes
_RESERVE = 64 << 20  # bytes of the disk that stay free
_MAX_RATIO = 200  # of the unpacked size to the size of the archive, for archives that are not small
_SMALL = 64 << 20  # bytes that any archive may unpack to
_MAX_MEMBERS = 5_000_000
_MAX_PATH = 1000  # characters
_FORBIDDEN = re.compile(r"[\x00-\x1f\\]|^[A-Za-z]:")  # in a path: control characters, backslashes, a drive
_DAMAGE = (
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class _Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Its path within the archive.
        size: Its size in bytes, as the archive states it.
        open: A function that opens it.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, *, progress: Callable[[int], None] = lambda _done: None) -> int:
    """Unpack an archive.

    Files that exist already in the folder with the same size are kept, so that an interrupted unpacking can be
    repeated. Other existing files are never overwritten.

    Args:
        archive: A zip or tar file; a tar file may be compressed with gzip, bzip2 or xz.
        folder: The folder to unpack to.
        progress: It is called after each file, with the number of unpacked bytes.

    Returns:
        The number of files.

    Raises:
        DataError: The file is damaged or not an archive, or it holds paths that lead outside, links, devices, or far
            more than such an archive should; or a file exists already with another size.
        OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = done = 0
    with _telling(archive):
        limit = min(shutil.disk_usage(folder).free - _RESERVE, max(_SMALL, _MAX_RATIO * archive.stat().st_size))
        for member in _members(archive, limit=limit):
            path = folder / _safe_name(member.name)
            if not path.is_file():
                _write(member, path, limit=limit - done)
            elif path.stat().st_size != member.size:
                raise DataError(f"{path} exists already and has another size; move it away, or choose another folder")
            done += member.size
            count += 1
            progress(done)
    return count


@contextmanager
def _telling(archive: Path) -> Iterator[None]:
    """Turn faults of an archive into one line that names it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{archive}: {error}") from None
    except _DAMAGE as error:
        raise DataError(
            f"{archive}: is a damaged archive ({one_line(error, limit=200)}); delete it, then download it again"
        ) from None


def _members(archive: Path, *, limit: int) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield from _zip_members(file, size=archive.stat().st_size, limit=limit)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            yield from _tar_members(file)
    else:
        raise DataError("is neither a zip nor a tar file; check the address that it comes from")


def _zip_members(file: zipfile.ZipFile, *, size: int, limit: int) -> Iterator[_Member]:
    entries = file.infolist()
    _check_count(len(entries))
    total = sum(entry.file_size for entry in entries)
    if total > limit:
        raise DataError(_too_large(total, limit))
    if sum(entry.compress_size for entry in entries) > size:
        raise DataError("its entries overlap, which real archives never do; do not use it")
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _not_a_file(entry.filename)
        if entry.flag_bits & 1:
            raise DataError("is encrypted; unpack it yourself")
        if entry.is_dir():
            _safe_name(entry.filename)
        else:
            yield _Member(entry.filename, entry.file_size, lambda entry=entry: file.open(entry))  # type: ignore[misc]


def _tar_members(file: tarfile.TarFile) -> Iterator[_Member]:
    for number, entry in enumerate(file):
        _check_count(number)
        if not (entry.isfile() or entry.isdir()):
            raise _not_a_file(entry.name)
        if entry.isdir():
            if entry.name.strip("./"):
                _safe_name(entry.name)
            continue
        content = file.extractfile(entry)
        assert content is not None  # which it is for regular files
        yield _Member(entry.name, entry.size, lambda content=content: content)  # type: ignore[misc]


def _check_count(count: int) -> None:
    if count > _MAX_MEMBERS:
        raise DataError(f"has more than {_MAX_MEMBERS:,} files; unpack it yourself if that is right")


def _safe_name(name: str) -> Path:
    """Return a member's path below the target folder."""
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part != "."]
    unsafe = path.is_absolute() or ".." in parts or not parts or _FORBIDDEN.search(name) or len(name) > _MAX_PATH
    if unsafe:
        raise DataError(f"has a file with the unsafe path {one_line(ascii(name), limit=120)}; do not use it")
    return Path(*parts)


def _write(member: _Member, path: Path, *, limit: int) -> None:
    """Write a file under a temporary name, and rename it when it is complete."""
    if member.size > limit:
        raise DataError(_too_large(member.size, limit))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    size = 0
    try:
        with member.open() as source, draft.open("wb") as target:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > member.size:
                    raise DataError(
                        f"its {one_line(member.name, limit=120)} is larger than the archive states; do not use it"
                    )
                target.write(chunk)
        if size != member.size:
            raise EOFError(f"{member.name} ends early")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _too_large(size: int, limit: int) -> str:
    return (
        f"unpacks to more than {size / 1e9:.2f} GB, but {max(limit, 0) / 1e9:.2f} GB are the limit by its own size and "
        "the free disk space; free some space, or unpack it yourself if the size is right"
    )


def _not_a_file(name: str) -> DataError:
    return DataError(
        f"has {one_line(ascii(name), limit=120)}, which is a link or a device and not a file; "
        "unpack it yourself if you trust it"
    )
