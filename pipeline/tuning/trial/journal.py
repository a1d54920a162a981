"""The journal of a search: a line for everything that happened, the truth after an interruption."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

from pipeline.tuning.search.search import Search, Trial
from pipeline.tuning.search.space import Candidate
from yolov7.errors import ArtifactError
from yolov7.system.files import write_whole


@final
class Journal:
    """`journal.jsonl` in a search's folder, and `clock.json` with the seconds that the search has used."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock_file, self._clock = folder / "journal.jsonl", folder / "clock.json", clock
        self._noted = -float("inf")

    def exists(self) -> bool:
        """Whether a search was begun here."""
        return self._path.is_file()

    def begin(self, header: Mapping[str, Any]) -> None:
        """The first line: what the search is."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._add("search", header)

    def started(self, trial: Trial) -> None:
        self._add("start", {"trial": trial.candidate.key, "label": trial.candidate.label, "donor": trial.donor})

    def reported(self, trial: Trial, *, AP: float) -> None:
        where = {"trial": trial.candidate.key, "epoch": trial.epochs, "compute": trial.compute}
        self._add("report", {**where, "AP": AP})

    def ended(self, trial: Trial) -> None:
        key, values = trial.candidate.key, {"compute": trial.compute, "seconds": trial.seconds, "error": trial.error}
        self._add("end", {"trial": key, "status": trial.status, **values})

    def note_seconds(self, seconds: float) -> None:
        """Remembers, about once a second, what was used of the time."""
        if self._clock() - self._noted >= 1:
            self._noted = self._clock()
            write_whole(self._clock_file, json.dumps(seconds).encode(), durable=False)

    def seconds(self) -> float:
        """What earlier commands used of the time."""
        return float(json.loads(self._clock_file.read_text())) if self._clock_file.is_file() else 0.0

    def header(self) -> dict[str, Any]:
        """The first line."""
        for kind, line in self._lines():
            if kind == "search":
                return line
        raise ArtifactError(f"{self._path} has no beginning; remove {self._path.parent} to begin anew")

    def replay(self, search: Search, candidates: Mapping[str, Candidate]) -> None:
        """Tells a search all that happened; trials that had not ended are running."""
        for kind, line in self._lines():
            key = line.get("trial", "")
            match kind:
                case "start":
                    search.start(candidates[key]).donor = line["donor"]
                case "report":
                    search.report(key, epoch=line["epoch"], compute=line["compute"], AP=line["AP"])
                case "end":
                    search.trials[key].compute = line["compute"]
                    search.end(key, line["status"], seconds=line["seconds"], error=line["error"])

    def _add(self, event: str, values: Mapping[str, Any]) -> None:
        with self._path.open("a+b") as file:
            cut_short = file.tell() > 0 and not _ends_a_line(self._path)
            file.write(b"\n" * cut_short + json.dumps({"event": event, **values}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for text in self._path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # cut short by a kill; the event that it told of comes again
            yield line.pop("event"), line


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
