"""What is to be tracked, on disk until a store has it: one folder a record, which appears and vanishes whole."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

from pydantic import ValidationError

from pipeline.tracking.records import Kind, Record, is_large
from yolov7.errors import ArtifactError, one_line
from yolov7.system.files import write_whole
from yolov7.system.locks import exclusive

_log = logging.getLogger(__name__)
_RECORD, _FILES = "record.json", "files"
_DRAFT_SECONDS = 3600  # that nobody needs to link or copy files


@dataclass(frozen=True)
class Waiting:
    """A record that no store has yet."""

    record: Record
    folder: Path

    @property
    def files(self) -> Path:
        """The folder of the files that belong to it."""
        return self.folder / _FILES


@final
class Outbox:
    """Records in the order in which they were made; any number of processes may add, one sends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._drafts = itertools.count()

    def add(self, record: Record, *, files: Path | None = None) -> None:
        """Keeps a record, with a file or with all that is in a folder; OSError where there is no room for it.

        Files are linked, not copied, where the disk can: those that stages leave are replaced, never written into.
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

    def waiting(self, server: str, *, with_files: bool = True) -> Iterator[Waiting]:
        """What waits for a server, oldest first; `with_files=False` leaves out what goes the way of files."""
        for folder in self._folders():
            if with_files or not is_large(_kind(folder)):
                record = _read(folder)
                if record is not None and record.subject.server == server:
                    yield Waiting(record, folder)

    def remove(self, waiting: Waiting) -> None:
        """Forgets a record: a store has it."""
        gone = waiting.folder.with_name(f".{waiting.folder.name}.sent")
        waiting.folder.rename(gone)  # at once: half a record would be taken for a damaged one
        shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def sole_sender(self, *, patience: float) -> Iterator[bool]:
        """Whether this process alone may send while it is in here; `patience`: seconds to wait for another one."""
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
        found = self._folder.iterdir() if self._folder.is_dir() else iter(())
        return sorted(folder for folder in found if not folder.name.startswith("."))

    def _sweep(self) -> None:
        """Removes what killed processes left half made or half removed."""
        for path in [*self._folder.glob(".*.sent"), *self._folder.glob(".*.draft")]:
            with suppress(FileNotFoundError):
                if path.suffix == ".sent" or time.time() - path.stat().st_mtime > _DRAFT_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _next(self) -> int:
        folders = self._folders()
        return 1 + (int(folders[-1].name.partition("-")[0]) if folders else 0)


def describe(waiting: Iterable[Waiting]) -> str:
    """`12 points and 3 files`; empty where nothing waits. A point that was recorded twice is one."""
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
    texts = [f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts if count]
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _kind(folder: Path) -> Kind:
    return cast(Kind, folder.name.split("-")[1])


def _read(folder: Path) -> Record | None:
    """None where another process removed it meanwhile; a damaged one is told, and put aside."""
    try:
        return Record.model_validate(json.loads((folder / _RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError) as error:
        folder.rename(folder.with_name(f".{folder.name}.damaged"))
        _log.warning(
            "%s is damaged or of another version, and was not tracked (%s)", folder, one_line(error, limit=120)
        )
        return None


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
