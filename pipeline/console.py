"""Output for people: texts that several messages share, and the live view of a training run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from yolov7.errors import counted

_NOTABLE_WAIT = 0.05  # share of the time

# Names from files may contain square brackets and colons, which are text here and not markup.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def stage_line(stage: str, name: str, text: str) -> str:
    """Return one line of a stage's output: `train      nano       epoch 24/24 ...`.

    Args:
        stage: The stage or command.
        name: The variant, file or split that the line is about.
        text: What happened.

    Returns:
        The line, with stage and name in columns of ten characters.
    """
    return f"{stage:<10} {name:<10} {text}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    Args:
        seconds: The duration in seconds.

    Returns:
        For example `48s`, `1m48s` or `1h05m`.
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
        head: The titles of the columns.
        rows: The cells of each row; they may contain inline Markdown, and vertical bars are escaped.

    Returns:
        One line per row, each with a line break at its end.
    """
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def epoch_text(line: dict[str, Any]) -> str:
    """Return one epoch of a training run as text.

    Args:
        line: The record of the epoch.

    Returns:
        Losses, AP if it was measured, speed and duration.
    """
    measured = f"  AP {line['AP']:.3f}" if line.get("AP") is not None else ""
    skipped = f"  {counted(line['skipped_steps'], 'step')} skipped" if line["skipped_steps"] else ""
    teacher = f" (the teacher takes {line['teacher_share']:.0%} of a step)" if "teacher_share" in line else ""
    return (
        f"epoch {line['epoch']}/{line['epochs']}  {_losses(line)}{measured}  {line['images_per_second']:.0f} img/s"
        f"{waiting(line['loader_wait_share'])}{teacher}{skipped}  {duration(line['seconds'])}"
    )


def waiting(share: float) -> str:
    """Return a remark on a loader that training waits for.

    Args:
        share: Share of the time in which training waits for the loader.

    Returns:
        For example ` (waits 12% for the loader)`; nothing below 5 %.
    """
    return f" (waits {share:.0%} for the loader)" if share >= _NOTABLE_WAIT else ""


class TrainView:
    """Show a training run: one line per epoch and, on a terminal, a progress bar below the lines."""

    def __init__(self, name: str, *, epochs: int, bar: Progress | None) -> None:
        """Start the view.

        Args:
            name: What is trained.
            epochs: Length of the run in epochs.
            bar: The progress bar; None prints lines only.
        """
        self._name = name
        self._epochs = epochs
        self._bar = bar
        self._task = bar.add_task(stage_line("train", name, "starting"), total=None, left="") if bar else None
        self._last_ap: float | None = None
        self._first: tuple[float, int] | None = None  # the time and the step of the first progress that was seen

    def show_progress(self, progress: dict[str, Any]) -> None:
        """Move the progress bar.

        Args:
            progress: The latest progress record of the run; empty before the first step.
        """
        if self._bar is None or self._task is None or not progress:
            return
        self._first = self._first or (time.monotonic(), progress["step"])
        epoch = min(progress["epochs_done"] + 1, self._epochs)
        measured = "" if self._last_ap is None else f"  AP {self._last_ap:.3f}"
        self._bar.update(
            self._task,
            description=stage_line("train", self._name, f"epoch {epoch}/{self._epochs}{measured}"),
            completed=progress["step"],
            total=progress["total_steps"],
            left=self._time_left(progress["step"], progress["total_steps"]),
        )

    def show_epoch(self, line: dict[str, Any]) -> None:
        """Print an epoch.

        Args:
            line: The record of the epoch.
        """
        if line.get("AP") is not None:
            self._last_ap = line["AP"]
        console.print(stage_line("train", self._name, epoch_text(line)))

    def show_note(self, text: str) -> None:
        """Print a message about the run.

        Args:
            text: The message.
        """
        console.print(stage_line("train", self._name, text))

    def _time_left(self, step: int, total: int) -> str:
        """Estimate the remaining time from all steps since the start, so that validation and checkpoints count."""
        assert self._first is not None
        seconds, steps = time.monotonic() - self._first[0], step - self._first[1]
        return f"{duration(seconds / steps * (total - step))} left" if steps else ""


@contextmanager
def train_view(name: str, *, epochs: int) -> Iterator[TrainView]:
    """Show one training run while the context is open.

    Args:
        name: What is trained.
        epochs: Length of the run in epochs.

    Yields:
        The view.
    """
    if not console.is_terminal:
        yield TrainView(name, epochs=epochs, bar=None)
        return
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(bar_width=20), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        yield TrainView(name, epochs=epochs, bar=bar)


def _losses(record: dict[str, Any]) -> str:
    return f"box {record['box']:.3f} obj {record['objectness']:.3f} cls {record['classification']:.3f}"
