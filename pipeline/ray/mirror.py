"""Keep a copy of a run's folder in an object store, from which another machine can continue the run.

Training itself writes only to the folder. A separate thread makes the copy; while the store is unreachable, training
continues. Files are copied block by block, so that a large checkpoint takes little memory.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from pipeline.tracking import without_secrets
from yolov7.errors import one_line
from yolov7.training.continuation import HISTORY, OWNER

log = logging.getLogger(__name__)

CODE = "code"
"""The file of a run folder with the digest of the code with which the run last began."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.pt")
_COPIED = {".jsonl", ".pt", ".safetensors"}  # what a run continues from; other files belong to one start only
_BLOCK = 8 << 20  # bytes that are read and written at once
_Mark = tuple[int, int]  # size, and time of the last change
_UNKNOWN: _Mark = (-1, -1)
_SECONDS = 2.0  # between two checks of the folder
_REMEDY = "; AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name the store and the key"
_LAST_TRIES = 5  # to bring the copy up to date when training has ended


@final
class RunCopy:
    """The copy of one run's folder, in `storage`/<variant>/<seed>.

    Attributes:
        place: The URL of the copy without secrets, for messages.
    """

    def __init__(self, storage: str, *, variant: str, seed: int) -> None:
        """Name the copy; nothing is connected yet.

        Args:
            storage: The folder of all copies, as s3://bucket/folder.
            variant: The name of the variant.
            seed: The seed of the run.
        """
        self._url = f"{storage.rstrip('/')}/{variant}/{seed}"
        self.place = without_secrets(self._url)
        self._sent: dict[str, _Mark] | None = None  # of each file of the copy; None if that is unknown
        self._files: Any = None
        self._root = ""

    def fetch(self, folder: Path) -> bool:
        """Download the copy if it is of the same run as the folder and has more steps.

        Checkpoints come last, so that a checkpoint never lacks what it needs.

        Args:
            folder: The run folder.

        Returns:
            Whether the copy was downloaded.

        Raises:
            OSError: If the store cannot be read. The message names it.
        """
        with self._explained("read"):
            there = self._list()
            here = [path.name for path in folder.iterdir()]
            if _furthest(there) <= _furthest(here) or not self._is_of(folder, there):
                return False
            for name in sorted(there, key=_order):
                self._download(name, folder)
        return True

    def send(self, folder: Path) -> None:
        """Upload the files that are new or changed, and delete from the copy what the folder no longer has.

        Checkpoints are listed first and sent last, so that a checkpoint never lacks what it needs.

        Args:
            folder: The run folder.

        Raises:
            OSError: If the store cannot be written. The message names it.
        """
        with self._explained("written"):
            names = sorted((path.name for path in folder.iterdir() if _is_copied(path)), key=_order)
            sent, self._sent = self._sent, None  # an error in between leaves it unknown
            if sent is None:
                sent = dict.fromkeys(self._list(), _UNKNOWN)
            for name in names:
                self._upload(folder / name, sent)
            for name in sent.keys() - {path.name for path in folder.iterdir()}:
                self._files.delete_file(f"{self._root}/{name}")
                del sent[name]
            self._sent = sent

    def delete(self) -> None:
        """Delete the copy.

        Raises:
            OSError: If the store cannot be written. The message names it.
        """
        with self._explained("deleted"):
            if self._list():
                self._files.delete_dir(self._root)

    def _is_of(self, folder: Path, there: set[str]) -> bool:
        if OWNER not in there:
            return False
        with self._files.open_input_stream(f"{self._root}/{OWNER}") as stream:
            return bool(stream.read() == (folder / OWNER).read_bytes())

    def _upload(self, path: Path, sent: dict[str, _Mark]) -> None:
        try:
            file = path.open("rb")
        except FileNotFoundError:  # an old checkpoint; there is a newer one
            return
        with file:
            state = os.fstat(file.fileno())
            mark = state.st_size, state.st_mtime_ns
            if sent.get(path.name) != mark:
                with self._files.open_output_stream(f"{self._root}/{path.name}") as stream:
                    while block := file.read(_BLOCK):
                        stream.write(block)
                        stream.flush()  # otherwise pyarrow keeps in memory whatever the network has not taken yet
                sent[path.name] = mark

    def _download(self, name: str, folder: Path) -> None:
        """Download a file, which appears in the folder completely or not at all."""
        draft = folder / f".{name}.{os.getpid()}.tmp"
        try:
            with self._files.open_input_stream(f"{self._root}/{name}") as stream, draft.open("wb") as file:
                while block := stream.read(_BLOCK):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(folder / name)
        finally:
            draft.unlink(missing_ok=True)

    def _list(self) -> set[str]:
        from pyarrow.fs import FileSelector, FileSystem, FileType

        if self._files is None:
            self._files, self._root = FileSystem.from_uri(self._url)
        found = self._files.get_file_info(FileSelector(self._root, allow_not_found=True))
        return {info.base_name for info in found if info.type == FileType.File}

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # pyarrow raises OSError, ArrowInvalid and others, in many lines
            raise OSError(f"ray.storage: {self.place} cannot be {what} ({one_line(error)}){_REMEDY}") from error


@contextmanager
def kept_up_to_date(copy: RunCopy, folder: Path) -> Iterator[None]:
    """Keep the copy of a folder up to date while the body runs, and send the rest when it ends.

    If the store is unreachable, this logs one warning and tries again.

    Args:
        copy: The copy.
        folder: The run folder.

    Yields:
        Nothing.
    """
    over, has_warned = threading.Event(), False

    def send() -> bool:
        nonlocal has_warned
        try:
            copy.send(folder)
        except OSError as error:
            if not has_warned:
                log.warning("%s. Training continues, and the upload will be tried again", error)
            has_warned = True
        else:
            has_warned = False
        return not has_warned

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


def _is_copied(path: Path) -> bool:
    return path.suffix in _COPIED or path.name in {OWNER, CODE, HISTORY}


def _order(name: str) -> tuple[int, str]:
    """Return a key that sorts checkpoints by their step, after all other files."""
    return _step(name), name


def _furthest(names: set[str] | list[str]) -> int:
    return max(map(_step, names), default=-1)


def _step(name: str) -> int:
    """Return the step of a checkpoint; -1 for other files."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else -1
