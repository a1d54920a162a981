"""The journal of a search: one line for each event, from which an interrupted search is restored."""

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
    """The files `journal.jsonl` and `clock.json` in the folder of a search.

    Attributes:
        path: The path of `journal.jsonl`.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep the paths; nothing is read or written yet.

        Args:
            folder: The folder of the search.
            clock: Returns the seconds of a monotonic clock.
        """
        self.path, self._clock_file, self._clock = folder / "journal.jsonl", folder / "clock.json", clock
        self._noted = -float("inf")

    def exists(self) -> bool:
        """Return whether a search was started in this folder."""
        return self.path.is_file()

    def begin(self, header: Mapping[str, Any]) -> None:
        """Write the first line, which describes the search."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._add("search", header)

    def started(self, trial: Trial) -> None:
        """Record the start of a trial."""
        candidate = trial.candidate
        sampled = {"settings": dict(candidate.train)} if candidate.train else {}
        line = {"trial": candidate.key, "label": candidate.label, "warm_start": trial.warm_start}
        self._add("start", line | sampled)

    def reported(self, trial: Trial, *, AP: float) -> None:
        """Record the AP of the trial's last reported epoch."""
        where = {"trial": trial.candidate.key, "epoch": trial.epochs, "compute": trial.compute}
        self._add("report", {**where, "AP": AP})

    def ended(self, trial: Trial) -> None:
        """Record how a trial ended."""
        result = {"AP": trial.AP, "compute": trial.compute, "seconds": trial.seconds, "error": trial.error}
        trained = {"trained": trial.trained} if trial.trained else {}
        self._add("end", {"trial": trial.candidate.key, "status": trial.status, **result, **trained})

    def note_seconds(self, seconds: float) -> None:
        """Record the seconds that the search has used, at most once per second."""
        if self._clock() - self._noted >= 1:
            self._noted = self._clock()
            write_whole(self._clock_file, json.dumps(seconds).encode(), durable=False)

    def seconds(self) -> float:
        """Return the seconds that earlier commands have used for this search."""
        return float(json.loads(self._clock_file.read_text())) if self._clock_file.is_file() else 0.0

    def header(self) -> dict[str, Any]:
        """Return the content of the first line.

        Raises:
            ArtifactError: If the line is missing.
        """
        for event, line in self._lines():
            if event == "search":
                return line
        raise ArtifactError(f"{self.path} has no first line; remove {self.path.parent} to start a new search")

    def replay(self, search: Search, candidates: Mapping[str, Candidate]) -> None:
        """Repeat all recorded events in a new search; trials that have not ended are then running.

        Args:
            search: A search without trials.
            candidates: All models by their keys.
        """
        for event, line in self._lines():
            key = line.get("trial", "")
            match event:
                case "start":
                    search.start(candidates[key]).warm_start = line["warm_start"]
                case "report":
                    search.report(key, epoch=line["epoch"], compute=line["compute"], AP=line["AP"])
                case "end":
                    search.trials[key].compute = line["compute"]
                    search.trials[key].trained = line.get("trained", {})
                    search.end(key, line["status"], AP=line["AP"], seconds=line["seconds"], error=line["error"])

    def _add(self, event: str, values: Mapping[str, Any]) -> None:
        with self.path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a kill cut the last line short
                    file.write(b"\n")
            file.write(json.dumps({"event": event, **values}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the line was cut short by a kill, and its event was recorded again
            yield line.pop("event"), line
