"""Training checkpoints: everything that is needed to continue a run exactly where it stopped."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch

from yolov7.errors import ArtifactError, one_line
from yolov7.system.files import write_whole

_NAME = "checkpoint-{:09d}.pt"
_PATIENCE = 60.0  # seconds in which storage shows a new file to every node
_CHUNK = 2**24  # bytes
_DIGEST = 64  # hexadecimal digits at the end of the file
_END_OF_ZIP = 22  # bytes of a zip's last record; the last two of them are the length of its comment
# what torch raises for files that are intact but of another version or kind
_UNREADABLE = (RuntimeError, EOFError, TypeError, ValueError, LookupError, AttributeError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run right after a step of the optimizer, as plain containers with tensors on the CPU.

    Augmentation and sampling draw from generators that are made of (seed, epoch, image), so the progress of a run
    determines their state.

    Attributes:
        fingerprint: Identifies the data and settings that the checkpoint belongs to.
        progress: The fields of `Progress` as plain values.
        model: The state dict of the model.
        ema: The state dict of the moving average.
        ema_updates: How many updates the moving average has had.
        optimizer: The state dict of the optimizer.
        scaler: The state dict of the gradient scaler.
        precision: The type of the forward pass, by its name; empty if an earlier version wrote the checkpoint.
        threads: The number of threads that computed; 0 if an earlier version wrote the checkpoint.
        callbacks: The states of callbacks, by number and name.
        adapters: The state dict of the adapters of distillation; empty without them.
    """

    fingerprint: str
    progress: dict[str, Any]
    model: dict[str, Any]
    ema: dict[str, Any]
    ema_updates: int
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    precision: str = ""
    threads: int = 0
    callbacks: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The number of completed steps."""
        return int(self.progress["step"])


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint. The file at `path` is complete at any time, either the old one or the new one.

    The file is what `torch.save` writes, with a digest of its content as the comment of the zip archive.

    Args:
        path: The file to write.
        checkpoint: The state to save.

    Raises:
        OSError: The file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({name: getattr(checkpoint, name) for name in _FIELDS}, buffer)
    buffer.seek(-2, io.SEEK_END)
    buffer.write(struct.pack("<H", _DIGEST))
    with buffer.getbuffer() as content:
        digest = hashlib.blake2b(content, digest_size=_DIGEST // 2).hexdigest()
    buffer.write(digest.encode())
    with buffer.getbuffer() as content:  # not a copy: a checkpoint can have gigabytes
        write_whole(path, content)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Only tensors and plain containers are loaded, and only if the digest is right.

    Args:
        path: A file that `save_checkpoint` wrote.

    Returns:
        The saved state.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        _check_digest(path)
        checkpoint = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
        if not isinstance(checkpoint.progress, dict) or not isinstance(checkpoint.progress.get("step"), int):
            raise ValueError("it does not say how far the run was")
        return checkpoint
    except OSError as error:
        raise ArtifactError(f"checkpoint {path} cannot be read ({error.strerror or one_line(error)})") from None
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"checkpoint {path} is damaged ({one_line(reason, limit=120)})") from None


def trained_steps(folder: Path) -> int:
    """Return the number of completed steps in the last checkpoint of a run folder; 0 if there is none.

    Args:
        folder: The run folder, which need not exist.
    """
    steps = (path.stem.partition("-")[2] for path in _newest_first(folder))
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def delete_older_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a run that has ended but the last one, because they are large.

    Args:
        folder: The folder of the run.
    """
    for path in _newest_first(folder)[1:]:
        path.unlink(missing_ok=True)


@final
class Checkpoints:
    """The last checkpoints of a run, in files that are named by their step and written by a separate thread.

    Several are kept, so that the one before the last can be used if the last one is damaged.
    """

    def __init__(self, folder: Path, *, kept: int, report: Callable[[str], None]) -> None:
        """Manage the checkpoints of a folder.

        Args:
            folder: The folder of the run.
            kept: How many checkpoints are kept.
            report: Called with a line of text if a damaged checkpoint is found.
        """
        self._folder, self._kept = folder, kept
        self._report = report
        self._writing: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Start writing a checkpoint, after the one before it is written.

        Args:
            checkpoint: The state to save; it must not change while it is written.

        Raises:
            OSError: The checkpoint before this one could not be written.
        """
        self.wait()
        self._writing = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint")
        self._writing.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            OSError: It could not be written.
        """
        if self._writing is not None:
            self._writing.join()
        self._writing, failure, self._failure = None, self._failure, None
        if failure is not None:
            raise failure

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that is not damaged.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            ArtifactError: All checkpoints are damaged.
        """
        damage = None
        for path in self._paths():
            try:
                return load_checkpoint(path)
            except ArtifactError as error:
                damage = error
                self._report(f"{error}; the checkpoint before it is used")
        if damage is not None:
            raise ArtifactError(f"{damage}, and no other is left; delete {self._folder} to train from the beginning")
        return None

    def of_step(self, step: int) -> Checkpoint:
        """Read the checkpoint of a step that another process has found, waiting for storage to show it.

        Args:
            step: The step that names the checkpoint.

        Returns:
            The checkpoint.

        Raises:
            ArtifactError: The file does not appear within a minute, or is damaged.
        """
        path = self._folder / _NAME.format(step)
        until = time.monotonic() + _PATIENCE
        while not path.is_file() and time.monotonic() < until:
            time.sleep(0.2)
        return load_checkpoint(path)

    def clear(self) -> None:
        """Delete all checkpoints."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def delete_drafts(self) -> None:
        """Delete the incomplete files that a killed process left."""
        for path in self._folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _write(self, checkpoint: Checkpoint) -> None:
        path = self._folder / _NAME.format(checkpoint.step)
        try:
            save_checkpoint(path, checkpoint)
            self._delete_all_but_last(path)
        except Exception as error:  # `wait` raises it in the training thread
            self._failure = error

    def _delete_all_but_last(self, last: Path) -> None:
        """Delete old checkpoints, and those of later steps, which are damaged or from before a rollback."""
        paths = self._paths()
        place = paths.index(last)
        for path in [*paths[:place], *paths[place + self._kept :]]:
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Return the files, the newest first."""
        return _newest_first(self._folder)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def _check_digest(path: Path) -> None:
    """Raise ValueError if a bit of the file has changed; torch does not verify even the checksums that it writes."""
    size = path.stat().st_size - _DIGEST
    if size < _END_OF_ZIP or not path.is_file():
        raise ValueError("the file is incomplete")
    digest = hashlib.blake2b(digest_size=_DIGEST // 2)
    with path.open("rb") as file:
        left = size
        while left and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        found = file.read()
    if found != digest.hexdigest().encode():
        raise ValueError("its content does not match its digest")


_FIELDS = tuple(Checkpoint.__dataclass_fields__)
