"""What commands use to track: a tracker of one experiment, and its runs, to which they add."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, final

from pipeline.artifacts.files import RUNS
from pipeline.tracking.addresses import project_folder, redact, store_address
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.records import RecordKind, RecordSubject, RunKey, TrackingRecord, clean_name, flatten, shorten
from pipeline.tracking.sender import Sender
from yolov7.errors import one_line

_log = logging.getLogger(__name__)

_MAX_PARAM, _MAX_TAG = 6000, 5000  # characters


@final
class Tracker:
    """The runs of one experiment.

    As a context it sends what waits when it is entered and left, and reports what still waits.
    """

    def __init__(self, experiment: str, *, model: str | None = None, say: Callable[[str], None] = _log.info) -> None:
        """Track in the store of MLFLOW_TRACKING_URI, or in that of the project.

        Args:
            experiment: The name of the experiment.
            model: The registered model of which detectors become versions; None for no versions.
            say: Receives what the user should know, in one line.

        Raises:
            ModuleNotFoundError: If MLflow is not installed. A stage then fails before it begins.
        """
        if find_spec("mlflow") is None:
            raise ModuleNotFoundError("MLflow is not installed", name="mlflow")
        address = store_address()
        self.model = model
        self._experiment, self._server = experiment, address.name
        self._outbox = Outbox(project_folder() / RUNS / ".tracking")
        self._sender = Sender(address, self._outbox, say=say)
        self._lost = False

    def __enter__(self) -> Tracker:
        """Send what earlier commands left."""
        self._sender.send()
        return self

    def __exit__(self, *_: object) -> None:
        """Send the queued records, and report those that stay queued."""
        self._sender.send(last_chance=True)
        left = self._sender.waiting()
        if left:
            _log.warning("%s are queued in runs/.tracking; the next command or `yolov7 sync` sends them", left)

    def send_waiting(self) -> tuple[str, str]:
        """Send the queued records.

        Returns:
            What was queued before and what still is, in words; empty strings for nothing.
        """
        before = self._sender.waiting()
        self._sender.send()
        return before, self._sender.waiting()

    def run(self, key: RunKey, *, parent: RunKey | None = None, adds: bool = False) -> TrackedRun:
        """Return a run, to be entered with `with`; it is made if it does not exist.

        Args:
            key: What identifies the run.
            parent: The run below which it is shown; None for a run of its own.
            adds: Whether the caller only adds figures to a run that has ended, whose duration stays as it is.

        Returns:
            The run.
        """
        return TrackedRun(self, key, parent=parent, adds=adds)

    def mark_current(self, keys: Collection[RunKey]) -> None:
        """Tag the runs of these keys, and no others, `current: yes`.

        Args:
            keys: What identifies the runs.
        """
        self.record("current", {"keys": [vars(key) for key in keys]}, key=None)

    def record(
        self,
        kind: RecordKind,
        content: Mapping[str, Any],
        *,
        key: RunKey | None,
        parent: RunKey | None = None,
        files: Path | None = None,
    ) -> None:
        """Store a record on disk, and send it if the store answers.

        Args:
            kind: What it is.
            content: The values, as `records.py` describes them for each kind.
            key: The run that it is about; None for the experiment.
            parent: The run above that one.
            files: A file or folder that belongs to it.
        """
        subject = RecordSubject(server=self._server, experiment=self._experiment, key=key, parent=parent)
        try:
            record = TrackingRecord(subject=subject, kind=kind, content=dict(content), time=int(time.time() * 1000))
            self._outbox.add(record, files=files)
        except Exception as error:  # a full disk, or a file that is missing
            level = logging.DEBUG if self._lost else logging.WARNING
            reason = redact(one_line(error, limit=160))
            _log.log(
                level, "a record of %s could not be written to runs/.tracking, and is not tracked (%s)", kind, reason
            )
            self._lost = True
            return
        self._sender.send(last_chance=kind == "end")


@final
class TrackedRun:
    """One run while a stage adds to it. Every method returns at once or within seconds, and none raises."""

    def __init__(self, tracker: Tracker, key: RunKey, *, parent: RunKey | None = None, adds: bool = False) -> None:
        """Name a run; it begins when it is entered with `with`.

        Args:
            tracker: The tracker of its experiment.
            key: What identifies the run.
            parent: The run above it.
            adds: Whether the caller only adds figures to a run that has ended.
        """
        self.key = key
        self._tracker = tracker
        self._parent = parent
        self._adds = adds

    def __enter__(self) -> TrackedRun:
        """Mark the run as running, unless the caller only adds to it."""
        if not self._adds:
            self._record("begin", {})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Mark the run as finished, failed or killed."""
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._record("end", {"status": status, "adds": self._adds})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters of the training; those that the run has already stay as they are.

        Args:
            params: Names and values, nested or flat.
        """
        self._record("params", {clean_name(name): shorten(value, _MAX_PARAM) for name, value in flatten(params)})

    def log_metrics(self, metrics: Mapping[str, float | None], *, step: int | None = None) -> None:
        """Add a point to each metric that is a number.

        Args:
            metrics: Names and values; None is left out.
            step: The epoch. Points at or before the last one of a metric are skipped, so that a resumed training
                doubles nothing. Without a step, a value that differs from the last one becomes the next point.
        """
        values = {clean_name(name): float(value) for name, value in metrics.items() if value is not None}
        self._record("metrics", {"values": values, "step": step})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set settings of later stages, and whatever else may change.

        Args:
            tags: Names and values, nested or flat.
        """
        self._record("tags", {clean_name(name): shorten(value, _MAX_TAG) for name, value in flatten(tags)})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or a folder with everything in it, as it is now.

        Args:
            path: The file or folder.
            folder: Where it goes in the run; None for the top.
        """
        self._record("files", {"folder": folder}, files=path)

    def log_dataset(self, name: str, *, digest: str, source: str, profile: Mapping[str, Any] | None = None) -> None:
        """Log the data of the training.

        Args:
            name: What the data are called.
            digest: The hash of their content.
            source: Where they come from.
            profile: Counts to be shown with them.
        """
        content = {"name": name, "digest": digest, "source": redact(source), "context": "training"}
        self._record("dataset", content | {"profile": dict(profile or {})})

    def log_detector(self, weights: Path) -> None:
        """Log the deployed model in a form that `mlflow models serve` serves, once for the same file.

        Args:
            weights: The weight file.
        """
        self._record("detector", {"model": self._tracker.model}, files=weights)

    def log_evaluation(self, weights: Path, *, AP: float | None, basis: Mapping[str, str]) -> None:
        """Log the AP of a detector that was logged; it may become the champion.

        Args:
            weights: The weight file of the detector.
            AP: COCO AP as a fraction; None where the split has no objects.
            basis: The `data`, `split` and `nms` that it was measured with.
        """
        if AP is not None and self._tracker.model is not None:
            content = {"model": self._tracker.model, "AP": AP, "basis": dict(basis)}
            self._record("evaluation", content, files=weights)

    def _record(self, kind: RecordKind, content: Mapping[str, Any], *, files: Path | None = None) -> None:
        self._tracker.record(kind, content, key=self.key, parent=self._parent, files=files)
