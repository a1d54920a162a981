"""A copy of a run's folder in an object store, for machines that come and go: another one goes on from there.

Training itself writes to the folder alone; the copy is made beside it, and while the store is away training goes on.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from yolov7.errors import one_line
from yolov7.system.files import write_whole

log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.pt")
_KEPT = {".jsonl", ".pt", ".safetensors"}  # what a run goes on from; the rest is of this start alone
OWNER = "fingerprint"  # the file that says of which data and settings a run folder holds the state
_Mark = tuple[int, int]  # size and time of change
_UNKNOWN: _Mark = (-1, -1)
_SECONDS = 2.0  # between two looks at the folder
_REMEDY = "; AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say which store and with which key"
_LAST_TRIES = 5  # when training has ended


@final
class RunCopy:
    """The copy of one run's folder, under `storage`/<variant>/<seed>; errors are OSError and name the store."""

    def __init__(self, storage: str, *, variant: str, seed: int) -> None:
        self._url = f"{storage.rstrip('/')}/{variant}/{seed}"
        self._sent: dict[str, _Mark] | None = None  # of each file of the copy; None where that is not known
        self._files: Any = None
        self._root = ""

    def fetch(self, folder: Path) -> bool:
        """Takes over what the copy has, if it is of the same run and further than the folder; whether it did.

        Checkpoints come last: one that is there has all that it needs beside it.
        """
        with self._told("read"):
            there = self._list()
            here = [path.name for path in folder.iterdir()]
            if _furthest(there) <= _furthest(here) or not self._is_of(folder, there):
                return False
            for name in sorted(there, key=_order):
                write_whole(folder / name, self._read(name))
        return True

    def send(self, folder: Path) -> None:
        """Brings the copy up to date: files that are new or changed, then what is no longer in the folder goes.

        Checkpoints are looked for first and sent last, so that none comes without what it needs.
        """
        with self._told("written"):
            names = sorted((path.name for path in folder.iterdir() if _is_kept(path)), key=_order)
            sent, self._sent = self._sent, None  # what fails in between leaves it unknown
            if sent is None:
                sent = dict.fromkeys(self._list(), _UNKNOWN)
            for name in names:
                self._send(folder / name, sent)
            for name in sent.keys() - {path.name for path in folder.iterdir()}:
                self._files.delete_file(f"{self._root}/{name}")
                del sent[name]
            self._sent = sent

    def delete(self) -> None:
        """Removes the copy."""
        with self._told("deleted"):
            if self._list():
                self._files.delete_dir(self._root)

    def _is_of(self, folder: Path, there: set[str]) -> bool:
        return OWNER in there and self._read(OWNER) == (folder / OWNER).read_bytes()

    def _send(self, path: Path, sent: dict[str, _Mark]) -> None:
        try:
            state = path.stat()
            mark = state.st_size, state.st_mtime_ns
            if sent.get(path.name) == mark:
                return
            content = path.read_bytes()
        except FileNotFoundError:  # an old checkpoint; there is a newer one
            return
        with self._files.open_output_stream(f"{self._root}/{path.name}") as stream:
            stream.write(content)
        sent[path.name] = mark

    def _read(self, name: str) -> bytes:
        with self._files.open_input_stream(f"{self._root}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def _list(self) -> set[str]:
        from pyarrow.fs import FileSelector, FileSystem, FileType

        if self._files is None:
            self._files, self._root = FileSystem.from_uri(self._url)
        found = self._files.get_file_info(FileSelector(self._root, allow_not_found=True))
        return {info.base_name for info in found if info.type == FileType.File}

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # pyarrow's are OSError, ArrowInvalid and others, in many lines
            raise OSError(f"train.storage: {self._url} cannot be {what} ({one_line(error)}){_REMEDY}") from error


@contextmanager
def kept_up_to_date(copy: RunCopy, folder: Path) -> Iterator[None]:
    """Copies the folder while the body runs, and once more behind it; says once when it does not work, and goes on."""
    over, is_away = threading.Event(), False

    def send() -> bool:
        nonlocal is_away
        try:
            copy.send(folder)
        except OSError as error:
            if not is_away:
                log.warning("%s. Training goes on, and it is tried again", error)
            is_away = True
        else:
            is_away = False
        return not is_away

    def follow() -> None:
        while not over.wait(_SECONDS):
            send()

    follower = threading.Thread(target=follow, name="copy of the run", daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
        for _ in range(_LAST_TRIES):
            if send():
                break
            time.sleep(_SECONDS)


def _is_kept(path: Path) -> bool:
    return path.suffix in _KEPT or path.name == OWNER


def _order(name: str) -> tuple[int, str]:
    """Checkpoints behind all others, in the order of their steps."""
    return _step(name), name


def _furthest(names: set[str] | list[str]) -> int:
    return max(map(_step, names), default=-1)


def _step(name: str) -> int:
    """That a checkpoint is of; -1 for other files."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else -1
