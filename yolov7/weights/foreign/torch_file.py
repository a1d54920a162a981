"""The files that torch.save writes: their pickle read without executing anything, their tensors when asked for.

Every size that a file declares is checked against what it has before anything of that size is read or made.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from yolov7.errors import ArtifactError, one_line
from yolov7.weights.foreign.pickle_reader import Pickle, StorageNote, TensorNote, unpickle

_MAX_PICKLE = 4 * 2**20  # bytes; the checkpoints of the largest models have a quarter of it
_MAX_AT_ONCE = 8 * 2**20  # bytes of one reading, that of a zip's directory among them
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_StorageReader = Callable[[StorageNote], bytearray]


class TorchFile(ABC):
    """A checkpoint: `content` is what was pickled, with stand-ins and notes in place of objects and tensors."""

    def __init__(self, path: Path, content: Any) -> None:
        self.path = path
        self.content = content

    def read(self, notes: Mapping[str, TensorNote]) -> dict[str, Tensor]:
        """The tensors of notes of `content`, on the CPU; ArtifactError where the file lacks their numbers."""
        with told_of(self.path), self._open_storages() as read_storage:
            return {key: _view(note, read_storage(note.storage)) for key, note in notes.items()}

    @abstractmethod
    def _open_storages(self) -> AbstractContextManager[_StorageReader]:
        """The file, open for the reading of storages."""


@final
class _ZipFile(TorchFile):
    """Since torch 1.6: a zip, nothing in it compressed, with the pickle as data.pkl and each storage as data/KEY."""

    def __init__(self, path: Path, pickle: Pickle, *, folder: str) -> None:
        super().__init__(path, pickle.value)
        self._folder = folder

    @contextmanager
    def _open_storages(self) -> Iterator[_StorageReader]:
        with _open_archive(self.path) as archive:
            yield lambda storage: _read_entry(archive, f"{self._folder}data/{storage.key}", size=_num_bytes(storage))


@final
class _LegacyFile(TorchFile):
    """Before torch 1.6: pickles one after the other, then the storages, each behind its number of elements."""

    def __init__(self, path: Path, pickle: Pickle, *, places: Mapping[str, int]) -> None:
        super().__init__(path, pickle.value)
        self._places = places  # of each storage's numbers in the file

    @contextmanager
    def _open_storages(self) -> Iterator[_StorageReader]:
        with self.path.open("rb") as file:

            def read_storage(storage: StorageNote) -> bytearray:
                file.seek(self._places[storage.key])
                return bytearray(file.read(_num_bytes(storage)))

            yield read_storage


def open_torch_file(path: str | os.PathLike[str]) -> TorchFile:
    """The checkpoint of a file in torch's zip form or the form before it; ArtifactError, in one line, for any other."""
    path = Path(path)
    with told_of(path):
        with path.open("rb") as file:
            start = file.read(_MAX_PICKLE)
        if start.startswith(b"PK"):
            return _open_zip(path)
        if start.startswith(b"\x80"):
            return _open_legacy(path, io.BytesIO(start))
        raise ArtifactError("is not a file that torch.save wrote")


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Turns whatever a file does to its reader into one line with its path."""
    try:
        yield
    except FileNotFoundError:
        raise ArtifactError(f"{path}: there is no such file; name a .pt file") from None
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {one_line(error)}; give another file") from None
    except (PermissionError, IsADirectoryError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); name a .pt file of yours") from None
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, struct.error) as error:
        fault = one_line(error)
        raise ArtifactError(
            f"{path}: is damaged or cut short ({fault}); fetch it again, or give another file"
        ) from None


def _open_zip(path: Path) -> TorchFile:
    with _open_archive(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ArtifactError("is a zip, but not one that torch.save wrote")
        folder = pickles[0].removesuffix("data.pkl")
        if any(name.startswith(f"{folder}code/") for name in names):
            raise ArtifactError("is a TorchScript program and not the checkpoint that it was made from")
        if f"{folder}byteorder" in names and _read_small(archive, f"{folder}byteorder") != b"little":
            raise ArtifactError("was written on a big-endian machine")
        pickle = unpickle(io.BytesIO(_read_small(archive, pickles[0])))
        for storage in pickle.storages:
            _check_entry(archive, f"{folder}data/{storage.key}", size=_num_bytes(storage))
        return _ZipFile(path, pickle, folder=folder)


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        yield archive


@final
class _BoundedFile(io.FileIO):
    """A file of which a small part is read at once, whatever size a zip declares its directory to have."""

    def read(self, size: int | None = -1, /) -> bytes:
        size = _MAX_AT_ONCE if size is None or size < 0 else size
        if size > _MAX_AT_ONCE:
            raise ValueError(f"its directory has {size} bytes")
        return super().read(size) or b""


def _check_entry(archive: zipfile.ZipFile, name: str, *, size: int) -> None:
    """That the zip holds so many bytes under this name, by what it declares and by its own length."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ArtifactError(f"its {name} is compressed, which torch.save never does")
    assert archive.fp is not None
    if entry.file_size != size or entry.header_offset + size > archive.fp.seek(0, os.SEEK_END):
        raise ValueError(f"{name} has {entry.file_size} bytes, and should have {size}")


def _read_small(archive: zipfile.ZipFile, name: str) -> bytearray:
    size = archive.getinfo(name).file_size
    if size > _MAX_PICKLE:
        raise ArtifactError(f"its {name} has {size} bytes, far more than that of a checkpoint")
    return _read_entry(archive, name, size=size)


def _read_entry(archive: zipfile.ZipFile, name: str, *, size: int) -> bytearray:
    """The bytes of an entry, which must be so many; its checksum is verified."""
    _check_entry(archive, name, size=size)
    content = bytearray()
    with archive.open(name) as entry:
        for part in iter(partial(entry.read, _MAX_AT_ONCE), b""):
            content += part
    return content


def _open_legacy(path: Path, start: io.BytesIO) -> TorchFile:
    """Magic number, version, the writer's machine, the content, the keys of the storages; then the storages."""
    if unpickle(start).value != _LEGACY_MAGIC:
        raise ArtifactError("is a plain pickle, not a file that torch.save wrote")
    unpickle(start)
    match unpickle(start).value:
        case {"little_endian": True}:
            pass
        case _:
            raise ArtifactError("was written on a big-endian machine")
    pickle = unpickle(start)
    storages = {storage.key: storage for storage in pickle.storages}
    places: dict[str, int] = {}
    place, length = start.tell(), path.stat().st_size
    keys = unpickle(start).value
    with path.open("rb") as file:
        place = start.tell()
        for key in keys:
            file.seek(place)
            (num_elements,) = struct.unpack("<q", file.read(8))
            places[key] = place + 8
            place += 8 + _num_bytes(storages[key])
            if num_elements != storages[key].num_elements or place > length:
                raise ValueError(f"storage {key!r} is not all there")
    return _LegacyFile(path, pickle, places=places)


def _num_bytes(storage: StorageNote) -> int:
    if storage.kind not in _DTYPES:
        raise ArtifactError(f"has tensors of {storage.kind}, which weights never are")
    return storage.num_elements * _DTYPES[storage.kind].itemsize


def _view(note: TensorNote, content: bytearray) -> Tensor:
    """The tensor that a note describes, from the bytes of its storage; it may not be larger than they are."""
    size = math.prod(note.shape)
    last = note.offset + sum((n - 1) * stride for n, stride in zip(note.shape, note.strides, strict=True))
    if size and (size > note.storage.num_elements or last >= note.storage.num_elements):
        raise ValueError(f"a tensor of shape {note.shape} is larger than its storage")
    dtype = _DTYPES[note.storage.kind]
    if not size:
        return torch.empty(note.shape, dtype=dtype)
    flat = torch.frombuffer(content, dtype=dtype)
    return flat.as_strided(note.shape, note.strides, note.offset).clone(memory_format=torch.contiguous_format)
