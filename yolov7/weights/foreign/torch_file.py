"""Read the files that torch.save writes: the pickle without executing anything, the tensors only on demand.

Every size that a file declares is checked against the file's real size before anything of that size is read or made.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
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
_MAX_AT_ONCE = 8 * 2**20  # bytes of one read, also of the read of a zip's directory
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
# what the standard library raises for damaged archives and pickles
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


class TorchFile(ABC):
    """An opened checkpoint.

    Attributes:
        path: The file.
        content: The pickled value, with stand-ins and notes in place of instances and tensors.
    """

    def __init__(self, path: Path, content: Any) -> None:
        """Describe an opened checkpoint.

        Args:
            path: The file.
            content: The pickled value.
        """
        self.path = path
        self.content = content

    def read(self, notes: Mapping[str, TensorNote]) -> dict[str, Tensor]:
        """Read tensors.

        Args:
            notes: Notes from `content`, by any names.

        Returns:
            The tensors on the CPU, contiguous, by the same names.

        Raises:
            ArtifactError: The file does not contain the values of a tensor.
        """
        with naming_file(self.path), self._open_storages() as read_storage:
            return {key: _view(note, read_storage(note.storage)) for key, note in notes.items()}

    @abstractmethod
    def _open_storages(self) -> AbstractContextManager[_StorageReader]:
        """Open the file and return a function that reads a storage."""


@final
class _ZipFile(TorchFile):
    """The form since torch 1.6: an uncompressed zip with the pickle as data.pkl and each storage as data/KEY."""

    def __init__(self, path: Path, pickle: Pickle, *, folder: str) -> None:
        super().__init__(path, pickle.value)
        self._folder = folder

    @contextmanager
    def _open_storages(self) -> Iterator[_StorageReader]:
        with _open_archive(self.path) as archive:
            yield lambda storage: _read_entry(archive, f"{self._folder}data/{storage.key}", size=_num_bytes(storage))


@final
class _LegacyFile(TorchFile):
    """The form before torch 1.6: several pickles, then the storages, each preceded by its number of elements."""

    def __init__(self, path: Path, pickle: Pickle, *, places: Mapping[str, int]) -> None:
        super().__init__(path, pickle.value)
        self._places = places  # the position of each storage's values in the file

    @contextmanager
    def _open_storages(self) -> Iterator[_StorageReader]:
        with self.path.open("rb") as file:

            def read_storage(storage: StorageNote) -> bytearray:
                file.seek(self._places[storage.key])
                return bytearray(file.read(_num_bytes(storage)))

            yield read_storage


def open_torch_file(path: str | os.PathLike[str]) -> TorchFile:
    """Open a file that torch.save wrote, in the zip form or in the form before torch 1.6.

    Args:
        path: The file.

    Returns:
        The checkpoint, whose tensors are not read yet.

    Raises:
        ArtifactError: The file is missing, damaged, of another kind, or requires code to be executed.
    """
    path = Path(path)
    with naming_file(path):
        if path.exists() and not path.is_file() and not path.is_dir():  # reading a device or a pipe might never end
            raise ArtifactError("is not a regular file")
        with path.open("rb") as file:
            start = file.read(_MAX_PICKLE)
        if start.startswith(b"PK"):
            return _open_zip(path)
        if start.startswith(b"\x80"):
            return _open_legacy(path, io.BytesIO(start))
        raise ArtifactError("is none of the kinds of files that are read: torch.save, safetensors, darknet")


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turn errors about the content of a file into one line that starts with its path.

    Args:
        path: The file that is read within the `with` statement.

    Raises:
        ArtifactError: The code within the `with` statement failed because of the file.
    """
    try:
        yield
    except FileNotFoundError:
        raise ArtifactError(f"{path}: there is no such file; name a file of weights") from None
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {one_line(error)}; give another file") from None
    except (PermissionError, IsADirectoryError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); name a readable file") from None
    except _DAMAGE as error:
        raise ArtifactError(
            f"{path}: is damaged or cut short ({one_line(error)}); download it again, or give another file"
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
    """A file that refuses large reads, such as reading a zip's directory whose declared size is wrong."""

    def read(self, size: int | None = -1, /) -> bytes:
        size = _MAX_AT_ONCE if size is None or size < 0 else size
        if size > _MAX_AT_ONCE:
            raise ValueError(f"its directory has {size} bytes")
        return super().read(size) or b""


def _check_entry(archive: zipfile.ZipFile, name: str, *, size: int) -> None:
    """Raise an error unless the zip holds an uncompressed entry of this size, and is itself long enough for it."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ArtifactError(f"its {name} is compressed, which torch.save never does")
    assert archive.fp is not None
    if entry.file_size != size or entry.header_offset + size > archive.fp.seek(0, os.SEEK_END):
        raise ValueError(f"{name} has {entry.file_size} bytes, and should have {size}")


def _read_small(archive: zipfile.ZipFile, name: str) -> bytearray:
    size = archive.getinfo(name).file_size
    if size > _MAX_PICKLE:
        raise ArtifactError(f"its {name} has {size} bytes, far more than in a checkpoint")
    return _read_entry(archive, name, size=size)


def _read_entry(archive: zipfile.ZipFile, name: str, *, size: int) -> bytearray:
    """Read an entry of this size and verify its checksum."""
    _check_entry(archive, name, size=size)
    content = bytearray()
    with archive.open(name) as entry:
        for part in iter(partial(entry.read, _MAX_AT_ONCE), b""):
            content += part
    return content


def _open_legacy(path: Path, start: io.BytesIO) -> TorchFile:
    """Read the five pickles: magic number, version, the writer's machine, the content, the keys of the storages."""
    magic = unpickle(start).value
    if not isinstance(magic, int) or magic != _LEGACY_MAGIC:
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
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise ValueError("its list of storages is not a list of different texts")
    with path.open("rb") as file:
        place = start.tell()
        for key in keys:
            file.seek(place)
            (num_elements,) = struct.unpack("<q", file.read(8))
            places[key] = place + 8
            place += 8 + _num_bytes(storages[key])
            if num_elements != storages[key].num_elements or place > length:
                raise ValueError(f"storage {key!r} is incomplete")
    return _LegacyFile(path, pickle, places=places)


def _num_bytes(storage: StorageNote) -> int:
    if storage.kind not in _DTYPES:
        raise ArtifactError(f"has tensors of the type {storage.kind}, which weights never have")
    return storage.num_elements * _DTYPES[storage.kind].itemsize


def _view(note: TensorNote, content: bytearray) -> Tensor:
    """Make the tensor that a note describes from the bytes of its storage, which must be large enough."""
    size = math.prod(note.shape)
    last = note.offset + sum((n - 1) * stride for n, stride in zip(note.shape, note.strides, strict=True))
    if size and (size > note.storage.num_elements or last >= note.storage.num_elements):
        raise ValueError(f"a tensor of shape {note.shape} is larger than its storage")
    dtype = _DTYPES[note.storage.kind]
    if not size:
        return torch.empty(note.shape, dtype=dtype)
    flat = torch.frombuffer(content, dtype=dtype)
    return flat.as_strided(note.shape, note.strides, note.offset).clone(memory_format=torch.contiguous_format)
