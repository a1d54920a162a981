"""What a user sees while something long runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)  # names may hold brackets


def stage_line(stage: str, name: str, text: str) -> str:
    """`train      nano       epoch 24/24 ...`: the line that a stage leaves."""
    return f"{stage:<10} {name:<10} {text}"


def duration(seconds: float) -> str:
    """`1m48s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def epoch_text(line: dict[str, Any]) -> str:
    """One epoch of a training run in words."""
    measured = f"  AP {line['AP']:.3f}" if line.get("AP") is not None else ""
    skipped = f"  {line['skipped_steps']} steps skipped" if line["skipped_steps"] else ""
    return (
        f"epoch {line['epoch']}/{line['epochs']}  box {line['box']:.3f} obj {line['objectness']:.3f} "
        f"cls {line['classification']:.3f}{measured}  {line['images_per_second']:.0f} img/s "
        f"(loader waits {line['loader_wait_share']:.0%}){skipped}  {duration(line['seconds'])}"
    )


class TrainView:
    """Shows a training run: the bar moves with its steps, each epoch leaves a line where there is no terminal."""

    def __init__(self, name: str, bar: Progress | None) -> None:
        self._name = name
        self._bar = bar
        self._task = bar.add_task(stage_line("train", name, "starts"), total=None) if bar else None

    def show_progress(self, progress: dict[str, Any]) -> None:
        """Moves the bar."""
        if self._bar is None or self._task is None or not progress:
            return
        losses = f"box {progress['box']:.3f} obj {progress['objectness']:.3f} cls {progress['classification']:.3f}"
        text = f"{losses}  {progress['images_per_second']:.0f} img/s"
        self._bar.update(
            self._task,
            description=stage_line("train", self._name, text),
            completed=progress["step"],
            total=progress["total_steps"],
        )

    def show_epoch(self, line: dict[str, Any]) -> None:
        """Prints an epoch where there is no bar."""
        if self._bar is None:
            console.print(stage_line("train", self._name, epoch_text(line)))

    def show_note(self, text: str) -> None:
        """Prints something that the user should know."""
        console.print(stage_line("train", self._name, text))


@contextmanager
def train_view(name: str) -> Iterator[TrainView]:
    """A view of one training run."""
    if not console.is_terminal:
        yield TrainView(name, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield TrainView(name, bar)
