"""Tracking on a real MLflow store: one run a key, nothing doubled, and no harm where the store is out of reach."""

from __future__ import annotations

import logging
import multiprocessing
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.tracking import RunKey, TrackedRun, Tracker, quiet_environment, tracking_server, tracking_uri
from pipeline.tracking.availability import availability_of
from pipeline.tracking.records import clean_name
from pipeline.tracking.store import TrackingStore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "test"
KEY = RunKey("nano", 0, "f00d")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder, whose store is made once: that takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _own_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the project, without settings of the user's, and with nothing remembered of other stores."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    availability_of.cache_clear()
    yield
    availability_of.cache_clear()


@pytest.fixture
def tracker() -> Tracker:
    return Tracker(EXPERIMENT)


@pytest.fixture
def client(tracker: Tracker) -> MlflowClient:
    import mlflow

    with tracker.run(KEY):  # makes the store
        return mlflow.MlflowClient(tracking_uri())


def find_runs(client: MlflowClient, variant: str) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.variant = '{variant}'"))


def points(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_stages_add_to_one_run(tracker: Tracker, client: MlflowClient) -> None:
    key = RunKey("one", 3, "f00d")
    with tracker.run(key) as run:
        run.log_params({"epochs": 3, "optim": {"lr0": 0.01}})
        run.log_metrics({"train/AP": 0.5}, step=1)
    with Tracker(EXPERIMENT).run(key) as run:
        run.log_metrics({"evaluate/AP": 0.6, "evaluate/APl": None})
        run.set_tags({"evaluate": {"nms": {"iou": 0.65}}})
    (found,) = find_runs(client, "one")
    assert found.data.params == {"epochs": "3", "optim.lr0": "0.01"}
    assert found.data.metrics == {"train/AP": 0.5, "evaluate/AP": 0.6}
    assert found.data.tags["evaluate.nms.iou"] == "0.65"
    assert found.data.tags["seed"] == "3"
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "one seed 3"


def test_other_fingerprints_are_other_runs(tracker: Tracker, client: MlflowClient) -> None:
    for fingerprint in ("a", "b", "a"):
        with tracker.run(RunKey("two", 0, fingerprint)):
            pass
    assert {run.data.tags["fingerprint"] for run in find_runs(client, "two")} == {"a", "b"}
    assert len(find_runs(client, "two")) == 2


def test_a_resumed_training_doubles_no_points(tracker: Tracker, client: MlflowClient) -> None:
    key = RunKey("resumed", 0, "x")
    for first, last in ((1, 6), (4, 9)):
        with Tracker(EXPERIMENT).run(key) as run:
            for epoch in range(first, last):
                run.log_metrics({"train/AP": epoch / 10}, step=epoch)
    (found,) = find_runs(client, "resumed")
    assert points(client, found, "train/AP") == [(epoch, epoch / 10) for epoch in range(1, 9)]


def test_a_stage_run_again_adds_a_point_only_for_another_figure(client: MlflowClient) -> None:
    for value in (0.5, 0.5, 0.6):
        with Tracker(EXPERIMENT).run(RunKey("again", 0, "x")) as run:
            run.log_metrics({"evaluate/AP": value})
    (found,) = find_runs(client, "again")
    assert points(client, found, "evaluate/AP") == [(0, 0.5), (1, 0.6)]
    assert found.data.metrics["evaluate/AP"] == 0.6


def test_odd_names_and_long_values_are_made_to_fit(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.run(RunKey("odd", 0, "x")) as run:
        run.log_params({"spec": "x" * 10_000, "odd[name]": 1, **{f"p{i}": i for i in range(250)}})
        run.log_metrics({"AP@[.5]": 0.5, "nan": float("nan")})
        run.set_tags({"note": "y" * 10_000})
    (found,) = find_runs(client, "odd")
    assert len(found.data.params) == 252
    assert len(found.data.params["spec"]) == 6000
    assert found.data.metrics["AP__.5_"] == 0.5
    assert len(found.data.tags["note"]) == 5000


def test_parameters_that_changed_do_no_harm(client: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    for epochs in (3, 4):
        with Tracker(EXPERIMENT).run(RunKey("changed", 0, "x")) as run:
            run.log_params({"epochs": epochs, f"new{epochs}": 1})
    (found,) = find_runs(client, "changed")
    assert found.data.params == {"epochs": "3", "new3": "1", "new4": "1"}
    assert not caplog.records


def test_artifacts_and_data_lie_in_the_run(tracker: Tracker, client: MlflowClient, folder: Path) -> None:
    (folder / "a.txt").write_text("a")
    (folder / "more").mkdir()
    (folder / "more" / "b.txt").write_text("b")
    with tracker.run(RunKey("files", 0, "x")) as run:
        run.log_artifact(folder / "a.txt", "evaluate")
        run.log_artifact(folder / "more", "more")
        run.log_dataset("synthetic", digest="d" * 64, source="artifacts/prepare", profile={"images": 3})
    (found,) = find_runs(client, "files")
    stored = folder / "mlartifacts" / found.info.run_id / "artifacts"
    assert (stored / "evaluate" / "a.txt").read_text() == "a"
    assert (stored / "more" / "b.txt").read_text() == "b"
    assert found.inputs.dataset_inputs[0].dataset.digest == "d" * 36


def test_a_run_says_how_it_ended(tracker: Tracker, client: MlflowClient) -> None:
    with pytest.raises(ZeroDivisionError), tracker.run(RunKey("failed", 0, "x")):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), tracker.run(RunKey("stopped", 0, "x")):
        raise KeyboardInterrupt
    assert find_runs(client, "failed")[0].info.status == "FAILED"
    assert find_runs(client, "stopped")[0].info.status == "KILLED"


def test_only_current_runs_are_tagged_so(tracker: Tracker, client: MlflowClient) -> None:
    old, new = RunKey("current", 0, "old"), RunKey("current", 0, "new")
    for key in (old, new):
        with tracker.run(key):
            pass
    tracker.mark_current([old])
    tracker.mark_current([new, RunKey("never", 0, "made")])
    marked = {run.data.tags["fingerprint"] for run in find_runs(client, "current") if "current" in run.data.tags}
    assert marked == {"new"}


def test_what_a_store_refuses_is_said_once_and_the_rest_is_kept(
    tracker: Tracker, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker.run(RunKey("refused", 0, "x")) as run:
        run.log_artifact(Path("nowhere.txt"))
        run.log_artifact(Path("nowhere.txt"))
        run.log_metrics({"AP": 0.5})
    assert len(caplog.records) == 1
    assert find_runs(client, "refused")[0].data.metrics == {"AP": 0.5}


def test_a_server_that_is_down_costs_seconds_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    assert use_everything() < 15
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_a_server_that_never_answers_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert use_everything() < 25


def test_what_was_not_written_is_written_when_the_store_is_back(
    monkeypatch: pytest.MonkeyPatch, client: MlflowClient
) -> None:
    working = TrackingStore.run_id
    monkeypatch.setattr(TrackingStore, "run_id", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("down")))
    with Tracker(EXPERIMENT).run(RunKey("back", 0, "x")) as run:
        run.log_metrics({"AP": 0.1}, step=1)
        monkeypatch.setattr(TrackingStore, "run_id", working)
        run.log_metrics({"AP": 0.2}, step=2)
        assert find_runs(client, "back") == []  # it is too early for another try
        assert Tracker(EXPERIMENT).send_waiting()[1] == "2 points and 1 other record"
        availability_of(f"MLflow at {tracking_server()}")._until = 0.0
    (found,) = find_runs(client, "back")
    assert points(client, found, "AP") == [(1, 0.1), (2, 0.2)]


def use_everything() -> float:
    """Seconds that a whole pipeline's calls take."""
    start = time.monotonic()
    for seed in range(3):
        with Tracker(EXPERIMENT).run(RunKey("nano", seed, "x")) as run:
            use(run)
    Tracker(EXPERIMENT).mark_current([KEY])
    return time.monotonic() - start


def use(run: TrackedRun) -> None:
    picture = Path("picture.txt")
    picture.write_text("a picture")
    run.log_params({"epochs": 3})
    for epoch in range(50):
        run.log_metrics({"train/AP": 0.5}, step=epoch)
    run.set_tags({"a": 1})
    run.log_artifact(picture)
    run.log_dataset("x", digest="d", source="y")
    run.log_detector(picture)


def write_points(folder: Path, worker: int) -> None:
    import os

    os.chdir(folder)
    with Tracker(EXPERIMENT).run(RunKey("shared", 0, "x")) as run:
        for epoch in range(30):
            run.log_metrics({f"worker{worker}": epoch}, step=epoch)


def test_processes_may_share_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_points, args=(tmp_path, worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = find_runs(client, "shared")
    assert [len(points(client, found, f"worker{worker}")) for worker in range(2)] == [30, 30]


def test_the_default_store_lies_in_the_project(folder: Path) -> None:
    assert tracking_uri() == f"sqlite:///{folder}/mlflow.db"
    assert tracking_server() == "sqlite:///mlflow.db"


def test_the_users_patience_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    environment = quiet_environment()
    assert environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize(
    ("name", "clean"),
    [("train/AP", "train/AP"), ("AP@[.5:.95]", "AP__.5_.95_"), ("/a//b/../c", "a/b/c"), ("größe", "gr__e"), ("", "_")],
)
def test_names_lead_nowhere_else(name: str, clean: str) -> None:
    assert clean_name(name) == clean
