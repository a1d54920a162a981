"""One MLflow store: a server, or a SQLite file that is made when it is first needed; its experiments and runs."""

from __future__ import annotations

import getpass
import logging
import math
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit, urlunsplit

from pipeline.tracking.records import RunKey, Subject
from yolov7.system.locks import exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_SQLITE = "sqlite:///"

# A server that is down must cost seconds, and a request that was slow must not be made twice: MLflow's own patience is
# four minutes and seven tries. The user's values win.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file in the project's folder, absolute."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{(Path.cwd() / DATABASE).as_posix()}"


def tracking_server() -> str:
    """The same without user and password, to be shown."""
    return server_of(tracking_uri())


def ui_command(*, host: str = "127.0.0.1", port: int = 5000) -> tuple[str, ...]:
    """The command that shows the runs; ValueError where they are on a server, which has its own page."""
    uri = tracking_uri()
    if uri.startswith("http"):
        raise ValueError(f"MLFLOW_TRACKING_URI={tracking_server()} is a server: open that address in a browser")
    command = (sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri)
    artifacts = _artifact_root(uri)
    root = ("--default-artifact-root", artifacts) if artifacts else ()
    return (*command, *root, "--host", host, "--port", str(port), "--workers", "1")


def quiet_environment() -> dict[str, str]:
    """This process's environment with MLflow's telemetry off and its waiting short, unless the user set them."""
    return _ENVIRONMENT | os.environ


def server_of(uri: str) -> str:
    """The address without user and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


@final
class Store:
    """The store at an address; whatever a call raises, the caller must not end by it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: MlflowClient | None = None
        self._runs: dict[Subject, str] = {}

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, made when it is first asked for."""
        if self._client is None:
            mlflow = _import_mlflow()
            _make_database(mlflow, self._uri)
            self._client = mlflow.MlflowClient(tracking_uri=self._uri)
        return self._client

    def experiment_id(self, name: str) -> str:
        """The experiment, made where there is none; ValueError where it was deleted."""
        client = self.client
        found = client.get_experiment_by_name(name)
        if found is None:
            with suppress(Exception):  # another process may have made it just now; what else is wrong shows below
                return str(client.create_experiment(name, artifact_location=_artifact_root(self._uri)))
            found = client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise ValueError(f"the experiment {name!r} was deleted; `mlflow experiments restore` it")
        return str(found.experiment_id)

    def run_id(self, subject: Subject, *, time: int) -> str:
        """The run of a subject, made where there is none; `time`: when it began, milliseconds since 1970."""
        assert subject.key is not None
        if subject not in self._runs:
            self._runs[subject] = self._find_or_make(subject, subject.key, time=time)
        return self._runs[subject]

    def find_run(self, experiment: str, key: RunKey) -> str | None:
        """The run of that key in an experiment with that id; of several the oldest."""
        condition = " and ".join(f"tags.{name} = '{value}'" for name, value in key.tags().items())
        oldest = ["attributes.start_time ASC"]
        found = self.client.search_runs([experiment], filter_string=condition, order_by=oldest, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _find_or_make(self, subject: Subject, key: RunKey, *, time: int) -> str:
        parent = subject.model_copy(update={"key": subject.parent, "parent": None}) if subject.parent else None
        above = {"mlflow.parentRunId": self.run_id(parent, time=time)} if parent else {}
        client = self.client  # before the lock, which its making needs
        with _creation_lock(self._uri):
            experiment = self.experiment_id(subject.experiment)
            found = self.find_run(experiment, key)
            if found is not None:
                return found
            made = client.create_run(experiment, start_time=time, tags=_first_tags(key) | above)
        return str(made.info.run_id)


def _import_mlflow() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for logger in ("alembic", "urllib3.connectionpool", "mlflow"):  # what matters of it is said here, once
        logging.getLogger(logger).setLevel(logging.ERROR)
    return mlflow


def _artifact_root(uri: str) -> str | None:
    """Beside the SQLite file, absolute; None: the server decides."""
    if not uri.startswith(_SQLITE):
        return None
    return (Path(uri.removeprefix(_SQLITE)).absolute().parent / ARTIFACTS).as_uri()


def _make_database(mlflow: Any, uri: str) -> None:
    """Makes a SQLite store whole or not at all: MLflow's making of it can neither be shared nor broken off."""
    if not uri.startswith(_SQLITE):
        return
    file = Path(uri.removeprefix(_SQLITE))
    with _creation_lock(uri):
        if file.exists():
            return
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")
        mlflow.MlflowClient(tracking_uri=_SQLITE + unfinished.as_posix())
        unfinished.replace(file)


def _creation_lock(uri: str) -> AbstractContextManager[None]:
    """Two processes that look for the same run in one SQLite file must not both make it."""
    if not uri.startswith(_SQLITE):
        return nullcontext()
    return exclusive(Path(uri.removeprefix(_SQLITE) + ".lock"), what="the tracking store", patience=math.inf)


def _first_tags(key: RunKey) -> dict[str, str]:
    tags = {"mlflow.runName": f"{key.variant} seed {key.seed}", "mlflow.source.name": "yolov7-pipeline"}
    with suppress(Exception):
        tags["mlflow.user"] = getpass.getuser()
    with suppress(Exception):
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
        tags["mlflow.source.git.commit"] = done.stdout.strip()
    return key.tags() | tags
