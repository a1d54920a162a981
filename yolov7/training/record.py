"""The record of a run on disk: a line per epoch, what happened to it, and where it is now.

It is the truth that trackers copy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolov7.system.files import write_whole

PROGRESS = "progress.json"  # where it is now; gone until a start's first step, if whoever starts it deletes it
NOTES = "notes.txt"  # a line for everything that the user should know; whoever starts a run may delete it

# what an epoch's line says beside its number, if it was measured
FIGURES = ("box", "objectness", "classification", "lr", "AP", "AP50", "images_per_second", "loader_wait_share")


class Record:
    """Appends to `epochs.jsonl` and `notes.txt` and refreshes `progress.json` in a run's folder."""

    def __init__(self, folder: Path, *, refresh_seconds: float = 0.5) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._epochs = folder / "epochs.jsonl"
        self._notes = folder / NOTES
        self._progress = folder / PROGRESS
        self.last_epoch = 0
        self._refresh_seconds = refresh_seconds
        self._refreshed = 0.0

    def start_after(self, epoch: int) -> None:
        """Drops the lines of epochs that will be done again."""
        kept = [line for line in read_epochs(self._epochs.parent) if line["epoch"] <= epoch]
        write_whole(self._epochs, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.last_epoch = kept[-1]["epoch"] if kept else 0

    def add_epoch(self, line: dict[str, Any]) -> None:
        """Adds what an epoch measured; `line` holds `epoch`, counted from 1."""
        with self._epochs.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.last_epoch = line["epoch"]

    def amend(self, figures: dict[str, Any]) -> None:
        """Puts other figures into the last epoch's line, all at once."""
        lines = read_epochs(self._epochs.parent)
        lines[-1] |= figures
        write_whole(self._epochs, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def add_note(self, text: str) -> None:
        """Adds a line about something that the user should know."""
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(" ".join(text.split()) + "\n")

    def show(self, progress: dict[str, Any], *, now: bool = False) -> None:
        """Refreshes the progress, at most every `refresh_seconds` unless asked to do it now."""
        if now or time.monotonic() - self._refreshed > self._refresh_seconds:
            self._refreshed = time.monotonic()
            write_whole(self._progress, json.dumps(progress).encode(), durable=False)


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a record; a last line that was cut short is left out."""
    path = folder / "epochs.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def best_line(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The epoch with the highest AP on val, of several the first; None where AP was not measured."""
    measured = [line for line in lines if line.get("AP") is not None]
    return max(measured, key=lambda line: float(line["AP"]), default=None)


def read_notes(folder: Path) -> list[str]:
    """What the user should know, oldest first."""
    path = folder / NOTES
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []


def read_progress(folder: Path) -> dict[str, Any]:
    """The latest progress; empty before there is any."""
    path = folder / PROGRESS
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content
