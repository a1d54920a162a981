"""What commands hand to tracking: a tracker of an experiment, and in it runs to which they add."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

from pipeline.artifacts.files import RUNS
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.records import Kind, Record, RunKey, Subject, clean_name, flatten, shorten
from pipeline.tracking.sender import Sender
from pipeline.tracking.store import server_of, tracking_uri
from yolov7.errors import one_line

_log = logging.getLogger(__name__)

_MAX_PARAM, _MAX_TAG = 6000, 5000  # characters


@final
class Tracker:
    """The runs of one experiment. As a context it sends at its begin and end what waits, and tells what still does."""

    def __init__(
        self,
        experiment: str,
        *,
        uri: str | None = None,
        model: str | None = None,
        say: Callable[[str], None] = _log.info,
    ) -> None:
        """`model`: the registered model of which detectors become versions; `say` gets what the user should know."""
        uri = uri or tracking_uri()
        self.model = model
        self._experiment, self._server = experiment, server_of(uri)
        self._outbox = Outbox(RUNS / ".tracking")
        self._sender = Sender(uri, self._outbox, say=say)
        self._lost = False

    def __enter__(self) -> Tracker:
        self._sender.send()
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.send(last_chance=True)
        left = self._sender.waiting()
        if left:
            _log.warning("%s wait in runs/.tracking; the next command sends them, or `yolov7 sync`", left)

    def send_waiting(self) -> tuple[str, str]:
        """Sends what waits; what it was and what still waits, in words, empty where it is nothing."""
        before = self._sender.waiting()
        self._sender.send()
        return before, self._sender.waiting()

    def run(self, key: RunKey, *, parent: RunKey | None = None) -> TrackedRun:
        """The run of that key, below that of `parent`, to be entered with `with`; it is made where there is none."""
        return TrackedRun(self, key, parent=parent)

    def mark_current(self, keys: Collection[RunKey]) -> None:
        """Tags the runs of these keys `current: yes`, and no others."""
        self.record("current", {"keys": [vars(key) for key in keys]}, key=None)

    def record(
        self,
        kind: Kind,
        content: Mapping[str, Any],
        *,
        key: RunKey | None,
        parent: RunKey | None = None,
        files: Path | None = None,
    ) -> None:
        """Keeps a record, and sends it if the store answers."""
        subject = Subject(server=self._server, experiment=self._experiment, key=key, parent=parent)
        record = Record(subject=subject, kind=kind, content=dict(content), time=int(time.time() * 1000))
        try:
            self._outbox.add(record, files=files)
        except Exception as error:  # a full disk, or a file that is not there
            level = logging.DEBUG if self._lost else logging.WARNING
            _log.log(
                level, "a record of %s could not be kept, and is not tracked (%s)", kind, one_line(error, limit=160)
            )
            self._lost = True
            return
        self._sender.send(last_chance=kind == "end")


@final
class TrackedRun:
    """One run while a stage adds to it. Every method returns at once or in seconds, and none raises."""

    def __init__(self, tracker: Tracker, key: RunKey, *, parent: RunKey | None = None) -> None:
        self.key = key
        self._tracker = tracker
        self._parent = parent

    def __enter__(self) -> TrackedRun:
        self._record("begin", {})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._record("end", {"status": status})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters of the training, nested or flat; those that the run has already stay as they are."""
        self._record("params", {clean_name(name): shorten(value, _MAX_PARAM) for name, value in flatten(params)})

    def log_metrics(self, metrics: Mapping[str, float | None], *, step: int | None = None) -> None:
        """Adds a point to each metric that is a number.

        Without a step, a figure that changed since becomes the next point. With a step, points at or below the last
        one of that metric are skipped, so that a resumed training doubles nothing.
        """
        values = {clean_name(name): float(value) for name, value in metrics.items() if value is not None}
        self._record("metrics", {"values": values, "step": step})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Settings of later stages and whatever else may change."""
        self._record("tags", {clean_name(name): shorten(value, _MAX_TAG) for name, value in flatten(tags)})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, or a folder with all that is in it, as it is now."""
        self._record("files", {"folder": folder}, files=path)

    def log_dataset(
        self,
        name: str,
        *,
        digest: str,
        source: str,
        context: str = "training",
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """The data that the run is about, by the hash of their content."""
        content = {"name": name, "digest": digest, "source": source, "context": context, "profile": dict(profile or {})}
        self._record("dataset", content)

    def log_detector(self, weights: Path) -> None:
        """The deployed model in a form that `mlflow models serve` serves; once for the same file."""
        self._record("detector", {"model": self._tracker.model}, files=weights)

    def log_evaluation(self, weights: Path, *, AP: float | None, basis: Mapping[str, str]) -> None:
        """The AP of a logged detector, and the `data`, `split` and `nms` it was measured with: it may be champion."""
        if AP is not None and self._tracker.model is not None:
            content = {"model": self._tracker.model, "AP": AP, "basis": dict(basis)}
            self._record("evaluation", content, files=weights)

    def _record(self, kind: Kind, content: Mapping[str, Any], *, files: Path | None = None) -> None:
        self._tracker.record(kind, content, key=self.key, parent=self._parent, files=files)
