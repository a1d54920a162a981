"""The module that knows MLflow: one flat run per (variant, seed, fingerprint), to which every stage adds.

Tracking is a record, never a condition: nothing here raises, and a store out of reach costs seconds. What could not
be written is kept while the run is open and written when the store answers again; one line says so.
"""

from __future__ import annotations

import getpass
import hashlib
import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from pipeline.reach import is_outage, reach_of
from pipeline.records import chunks, clean_name, flatten, next_step, shorten

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)
_Operation = Callable[["MlflowClient", str], object]  # with the id of the run

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_SQLITE = "sqlite:///"

# A server that is down must cost seconds: MLflow's own patience is four minutes a call. The user's values win.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
_MOST_PENDING = 10_000
_MAX_PARAM, _MAX_TAG, _MAX_DIGEST = 6000, 5000, 36  # characters


@dataclass(frozen=True)
class RunKey:
    """What names a run: the variant, the seed, and the fingerprint of the data and all training parameters."""

    variant: str
    seed: int
    fingerprint: str

    def tags(self) -> dict[str, str]:
        """The tags by which the run is found again."""
        return {"variant": self.variant, "seed": str(self.seed), "fingerprint": self.fingerprint}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file in the project's folder, absolute."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{(Path.cwd() / DATABASE).as_posix()}"


def ui_command(*, host: str = "127.0.0.1", port: int = 5000) -> tuple[str, ...]:
    """The command that shows the runs; ValueError where they are on a server, which has its own page."""
    uri = tracking_uri()
    if uri.startswith("http"):
        raise ValueError(f"MLFLOW_TRACKING_URI={uri} is a server: open that address in a browser")
    command = (sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri)
    artifacts = _artifact_root(uri)
    root = ("--default-artifact-root", artifacts) if artifacts else ()
    return (*command, *root, "--host", host, "--port", str(port), "--workers", "1")


def quiet_environment() -> dict[str, str]:
    """This process's environment with MLflow's telemetry off and its waiting short, unless the user set them."""
    return _ENVIRONMENT | os.environ


@final
class Tracker:
    """The runs of one experiment."""

    def __init__(self, experiment: str, *, uri: str | None = None) -> None:
        self._experiment = experiment
        self._uri = uri or tracking_uri()
        self._store = reach_of(f"MLflow at {self._uri}")
        self._artifacts = reach_of(f"MLflow's artifacts at {self._uri}")
        self._client: MlflowClient | None = None

    def run(self, key: RunKey) -> TrackedRun:
        """The run of that key, to be entered with `with`; it is made where there is none."""
        return TrackedRun(self, key)

    def mark_current(self, keys: Collection[RunKey]) -> None:
        """Tags the runs of these keys `current: yes`, and no others."""
        self.attempt(lambda client: self._mark_current(client, keys), required=True)

    def attempt(
        self, operation: Callable[[MlflowClient], object], *, artifacts: bool = False, required: bool = False
    ) -> bool:
        """Whether the matter is settled; False: another try may help later.

        A store that does not answer is left alone for a while, and so is one that refuses what is `required`.
        """
        if self._store.paused:
            return False
        reach = self._artifacts if artifacts else self._store
        if reach.paused:
            return True  # a lost artifact must not hold up the figures
        try:
            operation(self._connect())
        except Exception as error:  # whatever it is, a training run must not end by it
            outage = required or is_outage(error)
            reach.failed(error) if outage else reach.refused(error)
            return not outage or artifacts
        reach.answered()
        return True

    def open_run(self, client: MlflowClient, key: RunKey) -> str:
        """The id of the key's run, which is now running."""
        with _creation_lock(self._uri):
            experiment = self._experiment_id(client)
            run_id = _find_run(client, experiment, key)
            if run_id is None:
                return str(client.create_run(experiment, tags=_first_tags(key)).info.run_id)
        client.update_run(run_id, status="RUNNING")
        return run_id

    @contextmanager
    def fluent_run(self, run_id: str) -> Iterator[Any]:
        """MLflow's own `with start_run()`, for the calls that know no client; yields the module."""
        mlflow = _import_mlflow()
        mlflow.set_tracking_uri(self._uri)
        with mlflow.start_run(run_id=run_id):
            yield mlflow

    def _connect(self) -> MlflowClient:
        if self._client is None:
            mlflow = _import_mlflow()
            _make_database(mlflow, self._uri)
            self._client = mlflow.MlflowClient(tracking_uri=self._uri)
        return self._client

    def _experiment_id(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            with suppress(Exception):  # another process may have made it just now; what else is wrong shows below
                return str(client.create_experiment(self._experiment, artifact_location=_artifact_root(self._uri)))
            found = client.get_experiment_by_name(self._experiment)
        if found is None or found.lifecycle_stage != "active":
            raise ValueError(f"the experiment {self._experiment!r} was deleted; `mlflow experiments restore` it")
        return str(found.experiment_id)

    def _mark_current(self, client: MlflowClient, keys: Collection[RunKey]) -> None:
        experiment = self._experiment_id(client)
        current = {_find_run(client, experiment, key) for key in keys} - {None}
        tagged = client.search_runs([experiment], filter_string="tags.current = 'yes'", max_results=1000)
        before = {run.info.run_id for run in tagged}
        for run_id in before - current:
            client.delete_tag(run_id, "current")
        for run_id in current - before:
            client.set_tag(run_id, "current", "yes")


@final
class TrackedRun:
    """One run while a stage adds to it. Every method returns at once or in seconds, and none raises."""

    def __init__(self, tracker: Tracker, key: RunKey) -> None:
        self._tracker = tracker
        self._key = key
        self._run_id: str | None = None
        self._pending: deque[tuple[_Operation, bool]] = deque(maxlen=_MOST_PENDING)
        self._last: dict[str, tuple[int, float] | None] = {}  # of each metric: last step and its value

    def __enter__(self) -> TrackedRun:
        self._flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._do(lambda client, run_id: client.set_terminated(run_id, status))
        if self._pending:
            _log.info("%d records of %s were not tracked", len(self._pending), self._key.variant)

    @property
    def run_id(self) -> str | None:
        """The store's name of the run; None while it is out of reach."""
        return self._run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters of the training, nested or flat; those that the run has already stay as they are."""
        texts = {clean_name(name): shorten(value, _MAX_PARAM) for name, value in flatten(params)}
        self._do(lambda client, run_id: _write_params(client, run_id, texts))

    def log_metrics(self, metrics: Mapping[str, float | None], *, step: int | None = None) -> None:
        """Adds a point to each metric that is a number.

        Without a step, a figure that changed since becomes the next point. With a step, points at or below the last
        one of that metric are skipped, so that a resumed training doubles nothing.
        """
        points = {clean_name(name): float(value) for name, value in metrics.items() if value is not None}
        now = int(time.time() * 1000)
        self._do(lambda client, run_id: self._write_metrics(client, run_id, points, step, now))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Settings of later stages and whatever else may change."""
        texts = {clean_name(name): shorten(value, _MAX_TAG) for name, value in flatten(tags)}
        self._do(lambda client, run_id: _write_tags(client, run_id, texts))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, or a folder with all that is in it."""
        self._do(lambda client, run_id: _write_artifact(client, run_id, path, folder), artifacts=True)

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
        parts = {"name": name, "digest": digest, "source": source, "profile": dict(profile or {})}
        self._do(lambda client, run_id: _write_dataset(client, run_id, parts, context))

    def log_detector(self, weights: Path) -> None:
        """The deployed model in a form that `mlflow models serve` serves; once for the same file."""
        self._do(lambda client, run_id: self._write_detector(client, run_id, weights), artifacts=True)

    def _do(self, operation: _Operation, *, artifacts: bool = False) -> None:
        self._pending.append((operation, artifacts))
        self._flush()

    def _flush(self) -> None:
        if self._run_id is None:
            self._tracker.attempt(self._open, required=True)
        run_id = self._run_id
        while self._pending and run_id is not None:
            if not self._try(*self._pending[0], run_id=run_id):
                return
            self._pending.popleft()

    def _try(self, operation: _Operation, artifacts: bool, *, run_id: str) -> bool:
        return self._tracker.attempt(lambda client: operation(client, run_id), artifacts=artifacts)

    def _open(self, client: MlflowClient) -> None:
        self._run_id = self._tracker.open_run(client, self._key)

    def _write_metrics(
        self, client: MlflowClient, run_id: str, points: Mapping[str, float], step: int | None, now: int
    ) -> None:
        from mlflow.entities import Metric

        fresh = []
        for name, value in points.items():
            if name not in self._last:
                self._last[name] = _last_point(client, run_id, name)
            at = next_step(self._last[name], value, step)
            if at is not None:
                fresh.append(Metric(name, value, now, at))
        for chunk in chunks(fresh):
            client.log_batch(run_id, metrics=chunk)
            self._last.update({metric.key: (metric.step, metric.value) for metric in chunk})

    def _write_detector(self, client: MlflowClient, run_id: str, weights: Path) -> None:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if client.get_run(run_id).data.tags.get("detector") == digest:
            return
        with self._tracker.fluent_run(run_id) as mlflow:
            from pipeline.served import log_served

            log_served(mlflow, weights)
        client.update_run(run_id, status="RUNNING")  # leaving MLflow's own context ended it
        client.set_tag(run_id, "detector", digest)


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


@contextmanager
def _creation_lock(uri: str) -> Iterator[None]:
    """Two processes that look for the same run in one SQLite file must not both make it."""
    if not uri.startswith(_SQLITE):
        yield
        return
    import fcntl

    lock = Path(uri.removeprefix(_SQLITE) + ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find_run(client: MlflowClient, experiment: str, key: RunKey) -> str | None:
    condition = " and ".join(f"tags.{name} = '{value}'" for name, value in key.tags().items())
    oldest = ["attributes.start_time ASC"]
    found = client.search_runs([experiment], filter_string=condition, order_by=oldest, max_results=1)
    return str(found[0].info.run_id) if found else None


def _first_tags(key: RunKey) -> dict[str, str]:
    tags = {"mlflow.runName": f"{key.variant} seed {key.seed}", "mlflow.source.name": "yolov7-pipeline"}
    with suppress(Exception):
        tags["mlflow.user"] = getpass.getuser()
    with suppress(Exception):
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
        tags["mlflow.source.git.commit"] = done.stdout.strip()
    return key.tags() | tags


def _write_params(client: MlflowClient, run_id: str, texts: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    for chunk in chunks([Param(name, text) for name, text in texts.items() if name not in known]):
        client.log_batch(run_id, params=chunk)


def _write_tags(client: MlflowClient, run_id: str, texts: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    for chunk in chunks([RunTag(name, text) for name, text in texts.items()]):
        client.log_batch(run_id, tags=chunk)


def _write_artifact(client: MlflowClient, run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    else:
        client.log_artifact(run_id, str(path), folder)


def _write_dataset(client: MlflowClient, run_id: str, parts: Mapping[str, Any], context: str) -> None:
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=parts["name"],
        digest=parts["digest"][:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": parts["source"]}),
        profile=json.dumps(parts["profile"]),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])


def _last_point(client: MlflowClient, run_id: str, name: str) -> tuple[int, float] | None:
    points = [(metric.step, metric.timestamp, metric.value) for metric in client.get_metric_history(run_id, name)]
    if not points:
        return None
    step, _, value = max(points, key=lambda point: point[:2])
    return step, value
