"""One MLflow store, a server or a SQLite file, with its experiments and runs."""

from __future__ import annotations

import getpass
import logging
import os
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

from pipeline.tracking.availability import UnexpectedAnswerError
from pipeline.tracking.database import artifact_root, creation_lock, open_client
from pipeline.tracking.records import RecordSubject, RunKey

if TYPE_CHECKING:
    from mlflow import MlflowClient

# A server that is unreachable must cost seconds, and a slow request must not be made twice: by default MLflow waits for
# four minutes and tries seven times. Values that the user set take precedence.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


def quiet_environment() -> dict[str, str]:
    """Return this process's environment with MLflow's telemetry off and short waits, unless the user set them."""
    return _ENVIRONMENT | os.environ


@final
class TrackingStore:
    """The store at an address. Its methods may raise anything that MLflow raises; callers have to handle it."""

    def __init__(self, uri: str) -> None:
        """Remember the address; the store is opened when it is first needed.

        Args:
            uri: The address, which may hold a password.
        """
        self._uri = uri
        self._client: MlflowClient | None = None
        self._runs: dict[RecordSubject, str] = {}

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, made when it is first asked for."""
        if self._client is None:
            self._client = open_client(_import_mlflow(), self._uri)
        return self._client

    @property
    def is_remote(self) -> bool:
        """Whether answers come over HTTP, so that a proxy may have given them."""
        return self._uri.startswith("http")

    def experiment_id(self, name: str) -> str:
        """Return the id of an experiment, which is made if it does not exist.

        Args:
            name: The name of the experiment.

        Returns:
            The id.

        Raises:
            UnexpectedAnswerError: If the experiment was deleted, or the answer names no experiment.
        """
        client = self.client
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return _checked_id(client.create_experiment(name, artifact_location=artifact_root(self._uri)))
            except Exception:  # another process may have made it just now
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise UnexpectedAnswerError(f"the experiment {name!r} was deleted; run `mlflow experiments restore`")
        return _checked_id(found.experiment_id)

    def find_experiment(self, name: str) -> str | None:
        """Return the id of an experiment, or None if it does not exist."""
        found = self.client.get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    def run_id(self, subject: RecordSubject, *, time: int) -> str:
        """Return the id of the run of a subject, which is made if it does not exist.

        Args:
            subject: The subject of a record; it has a key.
            time: When the run began, in milliseconds since 1970.

        Returns:
            The id.
        """
        assert subject.key is not None
        if subject not in self._runs:
            self._runs[subject] = self._find_or_make(subject, subject.key, time=time)
        return self._runs[subject]

    def forget(self, subject: RecordSubject) -> None:
        """Look the run of a subject up again next time, because it may have been deleted."""
        self._runs.pop(subject, None)

    def find_run(self, experiment: str, key: RunKey) -> str | None:
        """Return the id of the oldest run with a key, or None.

        Args:
            experiment: The id of the experiment.
            key: What identifies the run.

        Returns:
            The id of the run.
        """
        condition = " and ".join(f"tags.{name} = '{value}'" for name, value in key.tags().items())
        oldest = ["attributes.start_time ASC"]
        found = self.client.search_runs([experiment], filter_string=condition, order_by=oldest, max_results=1)
        return _checked_id(found[0].info.run_id) if found else None

    def _find_or_make(self, subject: RecordSubject, key: RunKey, *, time: int) -> str:
        parent = subject.model_copy(update={"key": subject.parent, "parent": None}) if subject.parent else None
        parent_tag = {"mlflow.parentRunId": self.run_id(parent, time=time)} if parent else {}
        client = self.client  # before the lock, which opening the client needs
        with creation_lock(self._uri):
            experiment = self.experiment_id(subject.experiment)
            found = self.find_run(experiment, key)
            if found is not None:
                return found
            made = client.create_run(experiment, start_time=time, tags=_first_tags(key) | parent_tag)
        return _checked_id(made.info.run_id)


def _import_mlflow() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for logger in ("alembic", "urllib3.connectionpool", "mlflow"):  # this package reports what matters itself
        logging.getLogger(logger).setLevel(logging.ERROR)
    return mlflow


def _checked_id(value: object) -> str:
    """Return an id that an answer holds; an empty answer of a proxy reads as an object without one."""
    if not value:
        raise UnexpectedAnswerError("the answer contains no id")
    return str(value)


def _first_tags(key: RunKey) -> dict[str, str]:
    tags = {
        "mlflow.runName": f"{key.variant} seed {key.seed} ({key.fingerprint[:6]})",
        "mlflow.source.name": "yolov7-pipeline",
    }
    with suppress(Exception):
        tags["mlflow.user"] = getpass.getuser()
    with suppress(Exception):
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
        tags["mlflow.source.git.commit"] = done.stdout.strip()
    return key.tags() | tags
