"""Confirm that a server holds what it was sent.

A proxy may answer "200 OK" in place of the server, and MLflow's client takes that as success.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.availability import UnexpectedAnswerError
from pipeline.tracking.models import has_evaluation, has_model
from pipeline.tracking.outbox import WaitingRecord
from pipeline.tracking.records import TrackingRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric


def confirm_metric(client: MlflowClient, run_id: str, metric: Metric) -> None:
    """Raise UnexpectedAnswerError unless the store holds a point.

    Args:
        client: MLflow's client.
        run_id: The run.
        metric: The last point of a request. The store takes the points of one request together or not at all.
    """
    history = client.get_metric_history(run_id, metric.key)
    if not any((point.step, point.value) == (metric.step, metric.value) for point in history):
        raise _not_there("points")


def confirm_small(client: MlflowClient, record: TrackingRecord, run_id: str) -> None:
    """Raise UnexpectedAnswerError unless the store holds what a small record says.

    Args:
        client: MLflow's client.
        record: A record of a run other than metrics.
        run_id: The run.
    """
    run, content = client.get_run(run_id), record.content
    if record.kind == "begin":
        is_there = run.info.status == "RUNNING"
    elif record.kind == "end":
        is_there = run.info.status == content["status"] or content.get("adds", False)
    elif record.kind == "params":
        is_there = content.keys() <= run.data.params.keys()
    elif record.kind == "tags":
        is_there = content.keys() <= run.data.tags.keys()
    else:
        known = {one.dataset.digest for one in run.inputs.dataset_inputs} if run.inputs else set()
        is_there = any(content["digest"].startswith(digest) for digest in known if digest)
    if not is_there:
        raise _not_there(record.kind)


def confirm_large(client: MlflowClient, waiting: WaitingRecord, run_id: str) -> None:
    """Raise UnexpectedAnswerError unless the store holds the files of a record.

    Args:
        client: MLflow's client.
        waiting: A record with files.
        run_id: The run.
    """
    record = waiting.record
    if record.kind == "files":
        folder = record.content["folder"]
        is_there = all(path.stat().st_size == size for path, size in _listed(client, run_id, waiting.files, folder))
    else:
        key, (weights,) = record.subject.key, waiting.files.iterdir()
        assert key is not None
        if record.kind == "detector":
            is_there = has_model(client, run_id, weights, key=key, registered=record.content["model"])
        else:
            is_there = has_evaluation(client, weights, key=key, content=record.content)
    if not is_there:
        raise _not_there(record.kind)


def _listed(client: MlflowClient, run_id: str, files: Path, folder: str | None) -> list[tuple[Path, int | None]]:
    """Return each file with its size in the store; None where it is missing there."""
    paths = [path for path in files.rglob("*") if path.is_file()]
    sizes: dict[str, int | None] = {}
    for parent in {path.parent for path in paths}:
        below = parent.relative_to(files).as_posix()
        where = "/".join(part for part in (folder, below) if part and part != ".")
        sizes |= {info.path: info.file_size for info in client.list_artifacts(run_id, where or None)}
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    return [(path, sizes.get(f"{prefix}{path.relative_to(files).as_posix()}")) for path in paths]


def _not_there(what: str) -> UnexpectedAnswerError:
    return UnexpectedAnswerError(f"the server accepted a record of {what}, but does not hold it")
