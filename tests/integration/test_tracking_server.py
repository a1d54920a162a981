"""Test the pipeline with a tracking server as teams run it: what arrives, also after an outage or a kill."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.commands import run_stages as commands
from pipeline.experiment import Experiment, parse_experiment
from pipeline.stages import train as stage
from pipeline.tracking import RunKey, Tracker, availability
from pipeline.tracking.availability import availability_of
from tests.artifacts import write_prepared, write_weights
from tests.integration.killed_sender import KILLS, send
from tests.integration.project import SMALL
from tests.integration.runs import WORKER
from tests.integration.servers import TrackingServer, missing, tracking_server
from yolov7.errors import UserError
from yolov7.training.job import TrainJob
from yolov7.training.loop import fit
from yolov7.training.record import read_epochs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
EPOCHS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[TrackingServer]:
    with tracking_server() as server:
        yield server


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _in_project(project: Path, server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start like another command: without memory of the server, and with long timeouts for a slow machine."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(availability, "_FIRST_PAUSE", 1.0)
    monkeypatch.setattr(availability, "_LONGEST_PAUSE", 1.0)
    for name, value in (server.environment() | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}).items():
        monkeypatch.setenv(name, value)
    availability_of.cache_clear()
    yield
    availability_of.cache_clear()


@pytest.fixture
def client(server: TrackingServer) -> MlflowClient:
    import mlflow

    return mlflow.MlflowClient(server.url)


def params(*seeds: int) -> Experiment:
    changes = {
        "seeds": list(seeds),
        "variants": {"nano": {"spec": "nano"}},
        "train": {"epochs": EPOCHS, "batch_size": 8, "image_size": 64},
    }
    return parse_experiment(SMALL | changes, source="a test")


def train_here(monkeypatch: pytest.MonkeyPatch, at_epoch: dict[int, Callable[[], None]] | None = None) -> None:
    """Train in this process, without Ray, and call functions when certain epochs were recorded."""
    events = dict(at_epoch or {})

    def train(job: TrainJob, _: object, *, on_tick: Callable[[], None]) -> None:
        with ThreadPoolExecutor(1) as pool:
            training = pool.submit(fit, job, WORKER)
            while not training.done():
                on_tick()
                done = len(read_epochs(job.run_folder))
                for epoch in [epoch for epoch in events if epoch <= done]:
                    events.pop(epoch)()
                time.sleep(0.05)
            training.result()
            on_tick()

    monkeypatch.setattr(stage, "train_with_ray", train)


def find_run(client: MlflowClient, seed: int, experiment: str = "yolov7") -> Run:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id], f"tags.seed = '{seed}'")
    return run


def steps(client: MlflowClient, run: Run, name: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run.info.run_id, name)]


def assert_whole(client: MlflowClient, server: TrackingServer, seed: int) -> Run:
    run = find_run(client, seed)
    for name in ("train/box", "train/AP", "train/lr"):
        assert steps(client, run, name) == list(range(1, EPOCHS + 1))
    assert run.data.params["epochs"] == str(EPOCHS)
    assert len(run.inputs.dataset_inputs) == 1
    assert run.info.status == "FINISHED"
    curve = Path(f"artifacts/train/nano/{seed}/curve.csv").read_bytes()
    assert stored(server, run.info.artifact_uri, "train/curve.csv") == curve
    return run


def stored(server: TrackingServer, address: str, name: str) -> bytes:
    """Return a file as the object store holds it."""
    key = f"{address.partition(':/')[2].lstrip('/')}/{name}"
    return bytes(server.bucket().Object(key).get()["Body"].read())


def test_the_pipeline_is_tracked_and_its_files_are_in_the_object_store(
    server: TrackingServer, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(monkeypatch)
    chosen = [(params(0).variant("nano"), 0)]
    commands.run_prepare(params(0))
    commands.run_train(params(0), chosen)
    commands.run_reparam(params(0), chosen)
    commands.run_evaluate(params(0), chosen)
    commands.run_benchmark(params(0))
    commands.run_tables(params(0))
    run = assert_whole(client, server, 0)
    assert {"evaluate/AP", "benchmark/fps", "reparam/gflops"} <= set(run.data.metrics)
    assert run.data.tags["current"] == "yes"
    picture = Path("artifacts/evaluate/nano/0/examples.jpg").read_bytes()
    assert stored(server, run.info.artifact_uri, "evaluate/examples.jpg") == picture
    version = client.get_model_version_by_alias("yolov7", "champion")
    assert version.run_id == run.info.run_id
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    weights = Path("artifacts/reparam/nano/0/weights.safetensors").read_bytes()
    assert stored(server, model.artifact_location, "artifacts/weights.safetensors") == weights
    assert "version 1 (nano/0, AP " in capsys.readouterr().out
    assert count_rows(server, "metrics") > 3 * EPOCHS


def test_a_missing_password_is_reported_in_one_line_and_loses_nothing(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = RunKey("nano", 7, "x")
    with monkeypatch.context() as stranger:
        for name in ("USERNAME", "PASSWORD"):
            stranger.delenv(f"MLFLOW_TRACKING_{name}")
        with Tracker("yolov7") as tracker, tracker.run(key) as run:
            run.log_metrics({"train/AP": 0.5}, step=1)
        told, waits = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "does not know this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in told
    assert waits.startswith("1 point and 2 other records are queued in runs/.tracking; the next command or")
    availability_of.cache_clear()
    commands.run_sync(params(0).tracking)
    assert steps(client, find_run(client, 7), "train/AP") == [1]


def test_an_outage_during_a_training_and_over_commands_loses_and_doubles_nothing(
    server: TrackingServer,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    both = params(1, 2)
    train_here(monkeypatch, {2: server.freeze})
    commands.run_train(both, [(both.variant("nano"), 1)])
    told = "\n".join(caplog.messages)
    assert "is unreachable; records are queued in runs/.tracking" in told
    assert "are queued in runs/.tracking; the next command or `yolov7 sync` sends them" in told
    commands.run_reparam(both, [(both.variant("nano"), 1)])
    commands.run_evaluate(both, [(both.variant("nano"), 1)])
    train_here(monkeypatch, {2: server.thaw})
    commands.run_train(both, [(both.variant("nano"), 2)])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    sync(both)
    run = assert_whole(client, server, 1)
    assert steps(client, run, "evaluate/AP") == [0]
    picture = Path("artifacts/evaluate/nano/1/examples.jpg").read_bytes()
    assert stored(server, run.info.artifact_uri, "evaluate/examples.jpg") == picture
    assert_whole(client, server, 2)
    (version,) = [one for one in client.search_model_versions("name = 'yolov7'") if one.tags["seed"] == "1"]
    assert "evaluate.AP" in version.tags


def test_a_kill_while_sending_loses_and_doubles_nothing(
    server: TrackingServer, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as away:
        away.setattr(availability.Availability, "is_paused", lambda *_, **__: True)
        record_everything(RunKey("nano", 9, "x"))
    for kill in KILLS:
        assert send(tmp_path, server.environment(), kill=kill) == -signal.SIGKILL, kill
    assert send(tmp_path, server.environment(), kill=None) == 0
    run = find_run(client, 9, "killed")
    for name in ("train/AP", "train/box"):
        assert steps(client, run, name) == [1, 2, 3]
    assert steps(client, run, "evaluate/AP") == [0, 0]  # two values at one step
    assert run.data.params == {"epochs": "3"}
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 1
    (output,) = run.outputs.model_outputs
    (model,) = client.search_logged_models([run.info.experiment_id])
    (version,) = client.search_model_versions("name = 'killed'")
    assert model.model_id == output.model_id == version.source.removeprefix("models:/")
    assert client.get_registered_model("killed").aliases == {"champion": "1"}
    assert stored(server, run.info.artifact_uri, "evaluate/a.txt") == b"a"


def record_everything(key: RunKey) -> None:
    write_prepared()
    write_weights("nano")
    weights = Path("artifacts/reparam/nano/0/weights.safetensors")
    Path("a.txt").write_text("a")
    with Tracker("killed", model="killed").run(key) as run:
        run.log_params({"epochs": 3})
        for epoch in (1, 2, 3):
            run.log_metrics({"train/AP": 0.5, "train/box": 0.1}, step=epoch)
        run.log_dataset("noise", digest="d", source="artifacts/prepare")
        run.log_metrics({"evaluate/AP": 0.5})
        run.log_metrics({"evaluate/AP": 0.6})
        run.log_artifact(Path("a.txt"), "evaluate")
        run.log_detector(weights)
        run.log_evaluation(weights, AP=0.5, basis={"data": "d", "split": "val", "nms": "n"})


def sync(of: Experiment) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        availability_of.cache_clear()
        try:
            commands.run_sync(of.tracking)
        except (ConnectionError, UserError):
            time.sleep(1)
        else:
            return
    pytest.fail("the server does not answer again")


def count_rows(server: TrackingServer, table: str) -> Any:
    """Count the rows of a table in PostgreSQL, without MLflow."""
    import psycopg

    with psycopg.connect(server.database.replace("+psycopg", "")) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]
