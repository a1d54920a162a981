"""What is tracked: records as plain values, and names, texts and points made to fit a store; pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from yolov7.settings import Settings

Entry = TypeVar("Entry")
Kind = Literal["begin", "end", "params", "metrics", "tags", "dataset", "files", "detector", "evaluation", "current"]

_MAX_KEY = 250  # characters
_BATCH = 100  # entries a request, MLflow's limit for parameters and tags
_LARGE: tuple[Kind, ...] = ("files", "detector", "evaluation")


@dataclass(frozen=True)
class RunKey:
    """What names a run: the variant, the seed, and the fingerprint of the data and all training parameters."""

    variant: str
    seed: int
    fingerprint: str

    def tags(self) -> dict[str, str]:
        """The tags by which the run is found again."""
        return {"variant": self.variant, "seed": str(self.seed), "fingerprint": self.fingerprint}


class Subject(Settings):
    """The run that a record is about, wherever it is; `key` None: its experiment as a whole."""

    server: str  # without user and password
    experiment: str
    key: RunKey | None
    parent: RunKey | None = None


class Record(Settings):
    """Something to be written to a store, in plain values; files that belong to it lie beside it."""

    subject: Subject
    kind: Kind
    content: dict[str, Any]
    time: int  # when it was recorded, milliseconds since 1970


def is_large(kind: Kind) -> bool:
    """Whether it goes the way of files, which has outages of its own."""
    return kind in _LARGE


def next_step(last: tuple[int, float] | None, value: float, step: int | None) -> int | None:
    """The step at which a point is to be written; None: not at all."""
    if last is None:
        return step or 0
    if step is not None:
        return step if step > last[0] else None
    return None if value == last[1] else last[0] + 1


def clean_name(name: str) -> str:
    """A name that MLflow takes: letters, digits, `_-. /`, and a path that leads nowhere else."""
    plain = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
    parts = [part for part in plain.split("/") if part.strip(". ")]
    return "/".join(parts)[:_MAX_KEY] or "_"


def shorten(value: object, limit: int) -> str:
    """The text of a value, cut with an ellipsis where it is longer than the limit."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings under dotted names."""
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def chunks(entries: list[Entry]) -> Iterator[list[Entry]]:
    """The entries in lists of what one request may hold."""
    for start in range(0, len(entries), _BATCH):
        yield entries[start : start + _BATCH]
