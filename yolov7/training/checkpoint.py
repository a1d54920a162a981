"""Training checkpoints: everything that going on exactly where a run stopped needs."""

from __future__ import annotations

import io
import pickle
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from yolov7.errors import ArtifactError
from yolov7.system.files import write_whole

_NAME = "checkpoint-{:09d}.pt"
_PATIENCE = 60.0  # seconds in which storage shows a new file to every node
_DAMAGE = (OSError, RuntimeError, EOFError, TypeError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run right after the optimizer moved; tensors on the CPU, in plain containers.

    Augmentation and sampling draw from generators made of (seed, epoch, image), so how far the run is says all of them.
    """

    fingerprint: str  # of the data and settings that it belongs to
    progress: dict[str, Any]
    model: dict[str, Any]
    ema: dict[str, Any]
    ema_updates: int
    optimizer: dict[str, Any]
    scaler: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps that are done."""
        return int(self.progress["step"])


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; the file at `path` is always whole."""
    buffer = io.BytesIO()
    torch.save({name: getattr(checkpoint, name) for name in _FIELDS}, buffer)
    write_whole(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint, tensors and plain containers only; ArtifactError for a damaged one."""
    try:
        _check_sums(path)
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except _DAMAGE as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ArtifactError(f"checkpoint {path} is damaged ({reason})") from None


@final
class Checkpoints:
    """The last checkpoints of a run, in files named by their step; a thread of its own writes them.

    Several are `kept`: where the last is damaged, the one before serves.
    """

    def __init__(self, folder: Path, *, kept: int, say: Callable[[str], None]) -> None:
        self._folder, self._kept = folder, kept
        self._say = say  # tells the user what went wrong
        self._writing: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint and returns; waits only for the one before, and raises what became of it."""
        self.wait()
        self._writing = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint")
        self._writing.start()

    def wait(self) -> None:
        """Returns when what was saved is on disk; OSError where it could not be written."""
        if self._writing is not None:
            self._writing.join()
        self._writing, failure, self._failure = None, self._failure, None
        if failure is not None:
            raise failure

    def newest(self, *, fingerprint: str) -> Checkpoint | None:
        """The newest whole checkpoint; None where there is none, or it is of other data or settings.

        ArtifactError where all are damaged.
        """
        damage = None
        for path in self._paths():
            try:
                checkpoint = load_checkpoint(path)
            except ArtifactError as error:
                damage = error
                self._say(f"{error}; the one before it is used")
                continue
            return checkpoint if checkpoint.fingerprint == fingerprint else None
        if damage is not None:
            raise ArtifactError(f"{damage}, and no other is left; delete {self._folder} to train from the start")
        return None

    def of_step(self, step: int) -> Checkpoint:
        """The checkpoint of a step, which another process saw; ArtifactError where it does not come to be seen."""
        path = self._folder / _NAME.format(step)
        until = time.monotonic() + _PATIENCE
        while not path.is_file() and time.monotonic() < until:
            time.sleep(0.2)
        return load_checkpoint(path)

    def clear(self) -> None:
        """Deletes all checkpoints."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Deletes the drafts of files that a killed process was writing."""
        for path in self._folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _write(self, checkpoint: Checkpoint) -> None:
        path = self._folder / _NAME.format(checkpoint.step)
        try:
            save_checkpoint(path, checkpoint)
            self._delete_all_but_last(path)
        except Exception as error:  # `wait` raises it in the thread that trains
            self._failure = error

    def _delete_all_but_last(self, last: Path) -> None:
        """Deletes old ones, and those of later steps: the run went back from there, or they are damaged."""
        paths = self._paths()
        place = paths.index(last)
        for path in [*paths[:place], *paths[place + self._kept :]]:
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self._folder.glob("checkpoint-*.pt"), reverse=True)


def _check_sums(path: Path) -> None:
    """torch itself does not look at the sums that it writes."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"{broken} has another sum than when it was written")


_FIELDS = tuple(Checkpoint.__dataclass_fields__)
