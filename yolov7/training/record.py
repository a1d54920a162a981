"""The record of a run on disk: a line per epoch, notes for the user, and the current progress.

Experiment trackers copy it; they are not needed to read it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from yolov7.errors import ArtifactError, one_line
from yolov7.system.files import is_file, write_whole

PROGRESS = "progress.json"  # the current progress; it exists after the first step of a start that deletes it before
NOTES = "notes.txt"  # a line for everything that the user should know; whoever starts a run may delete it
_EPOCHS = "epochs.jsonl"

# the measured values of an epoch's line; some may be missing or null
FIGURES = (
    *("box", "objectness", "classification", "lr", "AP", "AP50", "images_per_second", "loader_wait_share"),
    *("distillation", "teacher_share"),
)
_SHOWN = ("step", "total_steps", "epochs_done", "box", "objectness", "classification", "images_per_second")


@final
class RunRecord:
    """Writer of the files `epochs.jsonl`, `notes.txt` and `progress.json` in a run's folder.

    Attributes:
        last_epoch: The number of the last recorded epoch; 0 if there is none.
    """

    def __init__(self, folder: Path, *, refresh_seconds: float = 0.5) -> None:
        """Open the record of a run.

        Args:
            folder: The folder of the run, which is created if it is missing.
            refresh_seconds: The shortest time between two writes of the progress.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.last_epoch = 0
        self._refresh_seconds = refresh_seconds
        self._refreshed = 0.0

    def start_after(self, epoch: int) -> None:
        """Delete the lines of epochs that will be trained again.

        Args:
            epoch: The last epoch whose line is kept.

        Raises:
            ArtifactError: The record is damaged. If no epoch is kept, a damaged record is deleted instead.
        """
        kept = [line for line in read_epochs(self._folder) if line["epoch"] <= epoch] if epoch else []
        self._write_epochs(kept)
        self.last_epoch = kept[-1]["epoch"] if kept else 0

    def add_epoch(self, line: Mapping[str, Any]) -> None:
        """Append the line of an epoch.

        Args:
            line: The measured values; `epoch` is the number of the epoch, counted from 1.
        """
        with (self._folder / _EPOCHS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.last_epoch = line["epoch"]

    def amend(self, figures: Mapping[str, Any]) -> None:
        """Replace figures of the last epoch's line, usually by those of the final weights.

        The first value of a figure stays under its name and `_before`.

        Args:
            figures: The new values.
        """
        lines = read_epochs(self._folder)
        before = {f"{name}_before": lines[-1].get(name) for name in figures}
        lines[-1] = {**before, **lines[-1], **figures}
        self._write_epochs(lines)

    def state_epochs(self, epochs: int) -> None:
        """Record the largest number of epochs of a run that adds no epoch to those of an earlier run.

        Args:
            epochs: The number in the settings.
        """
        if read_epochs(self._folder)[-1].get("epochs", epochs) != epochs:
            self.amend({"epochs": epochs})

    def add_note(self, text: str) -> None:
        """Append a line that the user should see.

        Args:
            text: The note; line breaks become spaces.
        """
        with (self._folder / NOTES).open("a", encoding="utf-8") as file:
            file.write(" ".join(text.split()) + "\n")

    def show(self, progress: Mapping[str, float], *, now: bool = False) -> None:
        """Write the current progress, unless it was written a moment ago.

        Args:
            progress: The values to show.
            now: Whether to write in any case.
        """
        if now or time.monotonic() - self._refreshed > self._refresh_seconds:
            self._refreshed = time.monotonic()
            write_whole(self._folder / PROGRESS, json.dumps(progress).encode(), durable=False)

    def _write_epochs(self, lines: Sequence[Mapping[str, Any]]) -> None:
        write_whole(self._folder / _EPOCHS, "".join(json.dumps(line) + "\n" for line in lines).encode())


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a record.

    Args:
        folder: The folder of the run.

    Returns:
        One mapping per epoch, in order; an incomplete last line, which may be in the middle of being written, is left
        out.

    Raises:
        ArtifactError: A line is damaged.
    """
    path = folder / _EPOCHS
    if not is_file(path):
        return []
    try:
        return list(_parse_lines(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: is damaged ({one_line(error, limit=120)}); delete {folder} to train from the beginning"
        ) from None


def best_lines(lines: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Find the epochs with the highest AP of the moving average on the validation split.

    Args:
        lines: The lines of a record.
        count: How many epochs to find.

    Returns:
        At most so many lines, the best first and of equal ones the earlier first. Epochs without AP are left out.
    """
    measured = [line for line in lines if _average_ap(line) is not None]
    return sorted(measured, key=_average_ap, reverse=True)[:count]  # type: ignore[arg-type]  # none is None


def best_line(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Find the epoch with the highest AP of the moving average on the validation split.

    Args:
        lines: The lines of a record.

    Returns:
        The first of the best lines; None if AP was never measured.
    """
    return next(iter(best_lines(lines, 1)), None)


def last_measured_line(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Find the last epoch in which AP was measured.

    Args:
        lines: The lines of a record.

    Returns:
        Its line; None if AP was never measured.
    """
    return next((line for line in reversed(lines) if _average_ap(line) is not None), None)


def final_line(lines: Sequence[Mapping[str, Any]], *, best: bool) -> Mapping[str, Any]:
    """Find the line whose AP is that of the final weights.

    Args:
        lines: The lines of a finished run.
        best: Whether the final weights are those of the best epochs.

    Returns:
        The last line, unless the final weights are those of a single epoch before it.
    """
    is_amended = "AP_before" in lines[-1]
    return (best_line(lines) if best and not is_amended else None) or lines[-1]


def _average_ap(line: Mapping[str, Any]) -> float | None:
    """Return the AP of the moving average, also if the line has been amended."""
    AP = line["AP_before"] if "AP_before" in line else line.get("AP")
    return None if AP is None else float(AP)


def read_notes(folder: Path) -> list[str]:
    """Read the notes of a run.

    Args:
        folder: The folder of the run.

    Returns:
        The notes, oldest first.
    """
    path = folder / NOTES
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if is_file(path) else []


def read_progress(folder: Path) -> dict[str, float]:
    """Read the current progress of a run.

    Args:
        folder: The folder of the run.

    Returns:
        The last written values; empty if there are none, or if the file is damaged. They are for display only.
    """
    try:
        content = json.loads((folder / PROGRESS).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or not all(_is_number(value) for value in content.values()):
        return {}
    return content if all(name in content for name in _SHOWN) else {}


def _parse_lines(text: str) -> Iterator[dict[str, Any]]:
    last = 0
    for number, encoded in enumerate(text.split("\n")[:-1], start=1):
        line = json.loads(encoded)
        if not isinstance(line, dict) or not all(isinstance(v, (int, float, str, type(None))) for v in line.values()):
            raise ValueError(f"line {number} is not a mapping of names to numbers and texts")
        epoch = line.get("epoch")
        if type(epoch) is not int or epoch <= last:
            raise ValueError(f"line {number} does not have the number of a later epoch than the line before")
        for name in FIGURES:
            value = line.get(name)
            if value is not None and not (_is_number(value) and (0 <= value <= 1 or not name.startswith("AP"))):
                raise ValueError(f"{name} of line {number} is not a possible value")
        last = epoch
        yield line


def _is_number(value: object) -> bool:
    """Return whether a value is a float, also infinity or NaN, or an integer that a float can hold."""
    return isinstance(value, float) or (type(value) is int and value.bit_length() < 64)
