"""Write each kind of record in such a way that writing it a second time changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

from pipeline.tracking.models import log_model, log_version_evaluation
from pipeline.tracking.outbox import WaitingRecord
from pipeline.tracking.read_back import confirm_large, confirm_metric, confirm_small
from pipeline.tracking.records import RecordSubject, RunKey, TrackingRecord, chunks, is_large, next_step
from pipeline.tracking.shared_view import set_shared_view
from pipeline.tracking.store import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_DIGEST = 36  # characters
_FILE_SECONDS = 300  # that a server may need for one file, which it copies to its own store before it answers


@final
class RecordWriter:
    """A writer of records to one store. Records sent over HTTP are read back, because a proxy may have answered."""

    def __init__(self, store: TrackingStore) -> None:
        """Use a store, which is opened when the first record is written.

        Args:
            store: Where records go.
        """
        self._store = store
        self._last: dict[tuple[str, str], tuple[int, float] | None] = {}  # of a run's metric: last step and its value

    def open(self, record: TrackingRecord) -> str:
        """Return the id of the run, or of the experiment, that a record is about.

        Args:
            record: The record; its run is made if it does not exist.

        Returns:
            The id.
        """
        if record.subject.key is None:
            return self._store.experiment_id(record.subject.experiment)
        return self._store.run_id(record.subject, time=record.time)

    def forget(self, subject: RecordSubject) -> None:
        """Ask the store again for everything that is remembered of a run."""
        self._store.forget(subject)
        self._last.clear()

    def write(self, waiting: WaitingRecord, where: str) -> str | None:
        """Write a record to its run or experiment.

        Args:
            waiting: The record.
            where: The id from `open`.

        Returns:
            What the user should know about it in one line, if there is something.
        """
        record, client = waiting.record, self._store.client
        if is_large(record.kind):
            with _longer_timeout():
                said = _write_large(client, waiting, where)
                if self._store.is_remote:
                    confirm_large(client, waiting, where)
            return said
        if record.kind == "metrics":
            self._write_metrics(where, record)
        elif record.kind == "current":
            self._mark_current(where, [RunKey(**key) for key in record.content["keys"]])
        else:
            _write_small(client, where, record)
            if self._store.is_remote:
                confirm_small(client, record, where)
        return None

    def _write_metrics(self, run_id: str, record: TrackingRecord) -> None:
        from mlflow.entities import Metric

        client, step = self._store.client, record.content["step"]
        fresh = []
        for name, value in record.content["values"].items():
            metric = (run_id, name)
            if metric not in self._last:
                self._last[metric] = _last_point(client, run_id, name)
            at = next_step(self._last[metric], value, step)
            if at is not None:
                fresh.append(Metric(name, value, record.time, at))
        for chunk in chunks(fresh):
            try:
                client.log_batch(run_id, metrics=chunk)
                if self._store.is_remote:
                    confirm_metric(client, run_id, chunk[-1])
            except Exception:
                self._last.clear()  # the store may have it nevertheless: ask it again
                raise
            self._last.update({(run_id, metric.key): (metric.step, metric.value) for metric in chunk})

    def _mark_current(self, experiment: str, keys: list[RunKey]) -> None:
        client = self._store.client
        current = {self._store.find_run(experiment, key) for key in keys} - {None}
        tagged = client.search_runs([experiment], filter_string="tags.current = 'yes'", max_results=1000)
        before = {run.info.run_id for run in tagged}
        for run_id in before - current:
            client.delete_tag(run_id, "current")
        for run_id in current - before:
            client.set_tag(run_id, "current", "yes")
        set_shared_view(client, experiment)


def _write_large(client: MlflowClient, waiting: WaitingRecord, run_id: str) -> str | None:
    content = waiting.record.content
    if waiting.record.kind == "files":
        client.log_artifacts(run_id, str(waiting.files), content["folder"])
        return None
    key, (weights,) = waiting.record.subject.key, waiting.files.iterdir()
    assert key is not None
    if waiting.record.kind == "evaluation":
        return log_version_evaluation(client, weights, key=key, content=content)
    log_model(client, run_id, weights, key=key, registered=content["model"])
    return None


def _write_small(client: MlflowClient, run_id: str, record: TrackingRecord) -> None:
    content = record.content
    if record.kind == "begin":
        client.update_run(run_id, status="RUNNING")
    elif record.kind == "end":
        _end(client, run_id, content, time=record.time)
    elif record.kind == "params":
        _write_params(client, run_id, content)
    elif record.kind == "tags":
        _write_tags(client, run_id, content)
    else:
        _write_dataset(client, run_id, content)


def _end(client: MlflowClient, run_id: str, content: Mapping[str, Any], *, time: int) -> None:
    """End a run. A stage that only added to a run leaves its times as they are: its duration is the training's."""
    if not content.get("adds") or client.get_run(run_id).info.end_time is None:
        client.set_terminated(run_id, content["status"], time)
    elif content["status"] != "FINISHED":
        client.update_run(run_id, status=content["status"])


def _write_params(client: MlflowClient, run_id: str, texts: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    for chunk in chunks([Param(name, text) for name, text in texts.items() if name not in known]):
        client.log_batch(run_id, params=chunk)


def _write_tags(client: MlflowClient, run_id: str, texts: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    for chunk in chunks([RunTag(name, text) for name, text in texts.items()]):
        client.log_batch(run_id, tags=chunk)


def _write_dataset(client: MlflowClient, run_id: str, parts: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=parts["name"],
        digest=parts["digest"][:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": parts["source"]}),
        profile=json.dumps(parts["profile"]),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", parts["context"])])])


def _last_point(client: MlflowClient, run_id: str, name: str) -> tuple[int, float] | None:
    points = [(metric.step, metric.timestamp, metric.value) for metric in client.get_metric_history(run_id, name)]
    if not points:
        return None
    step, _, value = max(points, key=lambda point: point[:2])
    return step, value


@contextmanager
def _longer_timeout() -> Iterator[None]:
    """Wait longer than for small records; the server has answered just before."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = str(max(int(before), _FILE_SECONDS))
    try:
        yield
    finally:
        os.environ[name] = before
