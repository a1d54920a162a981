"""What is tracked, as plain values: records, and names, texts and points that are made to fit a store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from yolov7.system.settings_base import Settings

Entry = TypeVar("Entry")
RecordKind = Literal[
    "begin", "end", "params", "metrics", "tags", "dataset", "files", "detector", "evaluation", "current"
]

_MAX_KEY = 250  # characters
_BATCH = 100  # entries per request, MLflow's limit for parameters and tags
_LARGEST_INTEGER = 2**53
_LARGE: tuple[RecordKind, ...] = ("files", "detector", "evaluation")
_Step = Annotated[int, Field(ge=-_LARGEST_INTEGER, le=_LARGEST_INTEGER)]


@dataclass(frozen=True)
class RunKey:
    """What identifies a run.

    Attributes:
        variant: The name of the variant.
        seed: The seed of the training.
        fingerprint: A hash of the data and of all training parameters.
    """

    variant: str
    seed: int
    fingerprint: str

    def tags(self) -> dict[str, str]:
        """Return the tags by which the run is found again."""
        return {"variant": self.variant, "seed": str(self.seed), "fingerprint": self.fingerprint}


class RecordSubject(Settings):
    """The run, or the experiment, that a record is about.

    Attributes:
        server: The address of the store without secrets.
        experiment: The name of the experiment.
        key: The run; None for the experiment as a whole.
        parent: The run above this one, if there is one.
    """

    server: str
    experiment: str
    key: RunKey | None
    parent: RunKey | None = None


class TrackingRecord(Settings):
    """Something to be written to a store, in plain values. Files that belong to it lie beside it on disk.

    Attributes:
        subject: The run or the experiment that it is about.
        kind: What it is; it decides the keys of `content`.
        content: The values.
        time: When it was recorded, in milliseconds since 1970.
    """

    subject: RecordSubject
    kind: RecordKind
    content: dict[str, Any]
    time: int = Field(ge=0, le=_LARGEST_INTEGER)

    @model_validator(mode="after")
    def _check_content(self) -> TrackingRecord:
        """Check the content, so that a damaged file is noticed when it is read and not when it is sent."""
        _CONTENTS[self.kind].model_validate(self.content)
        if (self.subject.key is None) != (self.kind == "current"):
            raise ValueError(f"a record of kind {self.kind!r} does not fit its subject")
        return self


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _NoContent(_Content):
    pass


class _EndContent(_Content):
    status: Literal["FINISHED", "FAILED", "KILLED"]
    adds: bool = False


class _TextsContent(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, str]


class _MetricsContent(_Content):
    values: dict[str, float]
    step: _Step | None


class _DatasetContent(_Content):
    name: str
    digest: str
    source: str
    context: str
    profile: dict[str, Any]


class _FilesContent(_Content):
    folder: str | None


class _DetectorContent(_Content):
    model: str | None


class _EvaluationContent(_Content):
    model: str
    AP: float
    basis: dict[str, str]


class _KeyContent(_Content):
    variant: str
    seed: int
    fingerprint: str


class _CurrentContent(_Content):
    keys: list[_KeyContent]


_CONTENTS: dict[RecordKind, type[BaseModel]] = {
    "begin": _NoContent,
    "end": _EndContent,
    "params": _TextsContent,
    "metrics": _MetricsContent,
    "tags": _TextsContent,
    "dataset": _DatasetContent,
    "files": _FilesContent,
    "detector": _DetectorContent,
    "evaluation": _EvaluationContent,
    "current": _CurrentContent,
}


def is_large(kind: RecordKind) -> bool:
    """Return whether a record of this kind is sent as files; the store of files has outages of its own."""
    return kind in _LARGE


def next_step(last: tuple[int, float] | None, value: float, step: int | None) -> int | None:
    """Return the step at which a point is written, or None where it is not written.

    Args:
        last: Step and value of the last point of this metric in the store; None where there is no point.
        value: The new value.
        step: The epoch of the new value; None for a figure that has no epoch.

    Returns:
        `step` if it is behind the last one. Without a step, that of the last point if the value changed: MLflow's
        page draws metrics with one step as bars, and shows the newest value.
    """
    if last is None:
        return step or 0
    if step is not None:
        return step if step > last[0] else None
    return None if value == last[1] else last[0]


def clean_name(name: str) -> str:
    """Return a name that MLflow accepts: letters, digits, `_-. /`, as a path without `..`."""
    plain = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
    parts = [part for part in plain.split("/") if part.strip(". ")]
    return "/".join(parts)[:_MAX_KEY] or "_"


def shorten(value: object, limit: int) -> str:
    """Return the text of a value without characters that databases refuse, cut with an ellipsis after `limit`."""
    text = str(value).replace("\0", "").encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings under dotted names."""
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def chunks(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries in lists of at most what one request may hold."""
    for start in range(0, len(entries), _BATCH):
        yield entries[start : start + _BATCH]
