"""Keep records on disk until a store has them: one folder per record, which is added and removed in one step."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pipeline.tracking.records import RecordKind, TrackingRecord, is_large
from yolov7.errors import ArtifactError, counted, one_line
from yolov7.system.files import write_whole
from yolov7.system.locks import exclusive

_log = logging.getLogger(__name__)
_RECORD, _FILES = "record.json", "files"
_NAME = re.compile(r"(\d{8,18})-([a-z]+)-\d+")  # number, kind, process
_ENDINGS = ("draft", "sent", "damaged", "rejected")
_OTHER_NAME = re.compile(rf"\.(lock|.*\.(?:{'|'.join(_ENDINGS)}))")
_LARGEST_RECORD = 64 * 2**20  # bytes
_DRAFT_SECONDS = 3600  # after which no process can still be copying files into a draft
_reported_strays: set[Path] = set()


@dataclass(frozen=True)
class WaitingRecord:
    """A record that no store has yet.

    Attributes:
        record: What is to be written.
        folder: Where it lies.
    """

    record: TrackingRecord
    folder: Path

    @property
    def files(self) -> Path:
        """The folder of the files that belong to it."""
        return self.folder / _FILES


@final
class Outbox:
    """Records in the order in which they were made. Any number of processes may add; one sends."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made when the first record is added.

        Args:
            folder: Where the records lie.
        """
        self._folder = folder.absolute()
        self._drafts = itertools.count()

    def add(self, record: TrackingRecord, *, files: Path | None = None) -> None:
        """Keep a record, with a file or with everything in a folder.

        Files are linked where the disk allows it, and copied elsewhere. A link keeps the content, because stages
        replace their files and never write into them.

        Args:
            record: What is to be written.
            files: A file or a folder that belongs to it.

        Raises:
            OSError: If the disk is full or `files` is missing.
        """
        draft = self._folder / f".{os.getpid()}.{next(self._drafts)}.draft"
        try:
            (draft / _FILES).mkdir(parents=True)
            if files is not None:
                _snapshot(files, draft / _FILES)
            write_whole(draft / _RECORD, json.dumps(record.model_dump()).encode())
            draft.rename(self._folder / f"{self._next():08d}-{record.kind}-{os.getpid()}")
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def waiting(self, server: str, *, with_files: bool = True) -> Iterator[WaitingRecord]:
        """Yield the queued records, the oldest first.

        Args:
            server: The name of the server's address.
            with_files: False leaves out the records that are sent as files.

        Yields:
            Records that can be read. A damaged one is reported and put aside.
        """
        for folder in self._folders():
            if with_files or not is_large(_kind(folder)):
                record = _read(folder)
                if record is not None and record.subject.server == server:
                    yield WaitingRecord(record, folder)

    def remove(self, waiting: WaitingRecord) -> None:
        """Delete a record, because a store has it."""
        removed = waiting.folder.with_name(f".{waiting.folder.name}.sent")
        waiting.folder.rename(removed)  # at once: an incomplete record would look like a damaged one
        shutil.rmtree(removed, ignore_errors=True)

    def put_aside(self, waiting: WaitingRecord) -> Path:
        """Keep a record that the store rejected, but do not send it again.

        Args:
            waiting: The record.

        Returns:
            The folder in which it lies now.
        """
        return _put_aside(waiting.folder, "rejected")

    @contextmanager
    def sole_sender(self, *, patience: float) -> Iterator[bool]:
        """Hold the right to send.

        Args:
            patience: Seconds to wait for another process that holds it.

        Yields:
            Whether this process alone may send within the context.
        """
        with ExitStack() as held:
            try:
                held.enter_context(exclusive(self._folder / ".lock", what="the outbox", patience=patience))
            except ArtifactError:
                free = False
            else:
                free = True
                self._sweep()
            yield free

    def _folders(self) -> list[Path]:
        """Return the folders of all records in their order; report once what else is there."""
        found: list[tuple[int, str, Path]] = []
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            match = _NAME.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), path.name, path))
            elif not _OTHER_NAME.fullmatch(path.name) and path not in _reported_strays:
                _reported_strays.add(path)
                _log.warning("%s is not a tracking record and is ignored; remove it", path)
        return [path for *_, path in sorted(found)]

    def _sweep(self) -> None:
        """Remove what killed processes left incomplete."""
        for path in [*self._folder.glob(".*.sent"), *self._folder.glob(".*.draft")]:
            with suppress(OSError):
                if path.suffix == ".sent" or time.time() - path.stat().st_mtime > _DRAFT_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _next(self) -> int:
        folders = self._folders()
        return 1 + (int(folders[-1].name.partition("-")[0]) if folders else 0)


def describe(waiting: Iterable[WaitingRecord]) -> str:
    """Return what is queued in words, such as `12 points and 3 files`; an empty string if nothing is.

    Args:
        waiting: The records. A point that was recorded twice counts once.

    Returns:
        The counts.
    """
    points: set[Any] = set()
    files = others = 0
    for number, one in enumerate(waiting):
        record = one.record
        if record.kind == "metrics":
            step = record.content["step"]
            points |= {
                (record.subject.key, name, -1 - number if step is None else step) for name in record.content["values"]
            }
        elif record.kind in ("files", "detector"):
            files += sum(path.is_file() for path in one.files.rglob("*"))
        else:
            others += 1
    counts = ((len(points), "point"), (files, "file"), (others, "other record"))
    texts = [counted(count, name) for count, name in counts if count]
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _kind(folder: Path) -> RecordKind:
    return folder.name.split("-")[1]  # type: ignore[return-value]


def _read(folder: Path) -> TrackingRecord | None:
    """Return a record; None if another process removed it meanwhile, or if it is damaged, which is reported."""
    try:
        return _parse(folder)
    except OSError as error:  # removed meanwhile, or too many files are open
        _log.debug("%s cannot be read now (%s)", folder, error)
    except (ValueError, RecursionError) as error:  # the errors of pydantic and JSON are ValueErrors
        if folder.is_dir():
            with suppress(OSError):
                folder = _put_aside(folder, "damaged")
            reason = one_line(error, limit=120)
            _log.warning("%s is a damaged tracking record, or of another version, and is not sent (%s)", folder, reason)
    return None


def _parse(folder: Path) -> TrackingRecord:
    path = folder / _RECORD
    if not path.is_file() or path.stat().st_size > _LARGEST_RECORD:  # not a device that never ends
        raise ValueError(f"{_RECORD} is missing or not a file")
    record = TrackingRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    if record.kind != _kind(folder):
        raise ValueError(f"the kind is {record.kind!r}")
    if is_large(record.kind):
        files = folder / _FILES
        if not files.is_dir() or (record.kind != "files" and sum(1 for _ in files.iterdir()) != 1):
            raise ValueError("its file is missing")
    return record


def _put_aside(folder: Path, ending: str) -> Path:
    aside = folder.with_name(f".{folder.name}.{ending}")
    return folder.rename(aside)


def _snapshot(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)
    else:
        _link(str(source), str(target / source.name))


def _link(source: str, target: str) -> str:
    try:
        os.link(Path(source).resolve(strict=True), target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
    return target
