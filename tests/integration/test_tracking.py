"""Test tracking on a real MLflow store: one run per key, nothing doubled, no harm from a store that is unreachable."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
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
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a project whose store is made once, because that takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _own_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the project, without settings of the user, and with nothing remembered about other stores."""
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
    ended = find_runs(client, "one")[0].info.end_time
    with Tracker(EXPERIMENT).run(key, adds=True) as run:
        run.log_metrics({"evaluate/AP": 0.6, "evaluate/APl": None})
        run.set_tags({"evaluate": {"nms": {"iou": 0.65}}})
    (found,) = find_runs(client, "one")
    assert found.data.params == {"epochs": "3", "optim.lr0": "0.01"}
    assert found.data.metrics == {"train/AP": 0.5, "evaluate/AP": 0.6}
    assert found.data.tags["evaluate.nms.iou"] == "0.65"
    assert found.data.tags["seed"] == "3"
    assert found.info.status == "FINISHED"
    assert found.info.end_time == ended  # the duration of a run is that of its training
    assert found.info.run_name == "one seed 3 (f00d)"


def test_each_fingerprint_has_a_run_of_its_own(tracker: Tracker, client: MlflowClient) -> None:
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


def test_a_stage_that_reruns_adds_a_point_only_if_its_figure_changed(client: MlflowClient) -> None:
    for value in (0.5, 0.5, 0.6):
        with Tracker(EXPERIMENT).run(RunKey("again", 0, "x")) as run:
            run.log_metrics({"evaluate/AP": value})
    (found,) = find_runs(client, "again")
    assert points(client, found, "evaluate/AP") == [(0, 0.5), (0, 0.6)]
    assert found.data.metrics["evaluate/AP"] == 0.6


def test_odd_names_and_long_values_are_changed_to_fit(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.run(RunKey("odd", 0, "x")) as run:
        run.log_params({"spec": "x" * 10_000, "odd[name]": 1, **{f"p{i}": i for i in range(250)}})
        run.log_metrics({"AP@[.5]": 0.5, "nan": float("nan")})
        run.set_tags({"note": "y" * 10_000})
    (found,) = find_runs(client, "odd")
    assert len(found.data.params) == 252
    assert len(found.data.params["spec"]) == 6000
    assert found.data.metrics["AP__.5_"] == 0.5
    assert len(found.data.tags["note"]) == 5000


def test_parameters_that_changed_are_left_as_they_are(client: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    for epochs in (3, 4):
        with Tracker(EXPERIMENT).run(RunKey("changed", 0, "x")) as run:
            run.log_params({"epochs": epochs, f"new{epochs}": 1})
    (found,) = find_runs(client, "changed")
    assert found.data.params == {"epochs": "3", "new3": "1", "new4": "1"}
    assert not caplog.records


def test_files_and_data_are_stored_with_the_run(tracker: Tracker, client: MlflowClient, folder: Path) -> None:
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


def test_a_run_records_how_it_ended(tracker: Tracker, client: MlflowClient) -> None:
    with pytest.raises(ZeroDivisionError), tracker.run(RunKey("failed", 0, "x")):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), tracker.run(RunKey("stopped", 0, "x")):
        raise KeyboardInterrupt
    assert find_runs(client, "failed")[0].info.status == "FAILED"
    assert find_runs(client, "stopped")[0].info.status == "KILLED"


def test_only_current_runs_are_tagged_as_current(tracker: Tracker, client: MlflowClient) -> None:
    old, new = RunKey("current", 0, "old"), RunKey("current", 0, "new")
    for key in (old, new):
        with tracker.run(key):
            pass
    tracker.mark_current([old])
    tracker.mark_current([new, RunKey("never", 0, "made")])
    marked = {run.data.tags["fingerprint"] for run in find_runs(client, "current") if "current" in run.data.tags}
    assert marked == {"new"}


def test_a_missing_file_is_reported_once_and_the_rest_is_tracked(
    tracker: Tracker, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker.run(RunKey("refused", 0, "x")) as run:
        run.log_artifact(Path("nowhere.txt"))
        run.log_artifact(Path("nowhere.txt"))
        run.log_metrics({"AP": 0.5})
    assert len(caplog.records) == 1
    assert find_runs(client, "refused")[0].data.metrics == {"AP": 0.5}


def test_a_server_that_is_unreachable_costs_seconds_and_one_line(
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


def test_what_could_not_be_sent_is_sent_when_the_store_answers_again(
    monkeypatch: pytest.MonkeyPatch, client: MlflowClient
) -> None:
    working = TrackingStore.run_id
    monkeypatch.setattr(TrackingStore, "run_id", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("down")))
    with Tracker(EXPERIMENT).run(RunKey("back", 0, "x")) as run:
        run.log_metrics({"AP": 0.1}, step=1)
        monkeypatch.setattr(TrackingStore, "run_id", working)
        run.log_metrics({"AP": 0.2}, step=2)
        assert find_runs(client, "back") == []  # it is too early for another attempt
        assert Tracker(EXPERIMENT).send_waiting()[1] == "2 points and 1 other record"
        availability_of(f"MLflow at {tracking_server()}")._until = 0.0
    (found,) = find_runs(client, "back")
    assert points(client, found, "AP") == [(1, 0.1), (2, 0.2)]


def use_everything() -> float:
    """Return the seconds that the calls of a whole pipeline take."""
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


def test_processes_may_share_a_store_that_does_not_exist_yet(tmp_path: Path) -> None:
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


def copy_of(folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the store of the project, and work in the copy."""
    target.mkdir(parents=True)
    shutil.copy(folder / "mlflow.db", target)
    monkeypatch.chdir(target)
    return target


def track_file(key: RunKey, text: str) -> None:
    Path("note.txt").write_text(text)
    with Tracker(EXPERIMENT).run(key) as run:
        run.log_metrics({"AP": 0.5})
        run.log_artifact(Path("note.txt"))


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copied_project_writes_into_its_own_folder(
    tracker: Tracker, client: MlflowClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = RunKey("copied", 0, "old"), RunKey("copied", 0, "new")
    run_in_a_fork(partial(track_file, old, "first"))
    shutil.copytree(folder / "mlartifacts", tmp_path / "copy" / "mlartifacts")
    before = files_below(folder / "mlartifacts")
    shutil.copy(folder / "mlflow.db", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    run_in_a_fork(partial(track_file, old, "second"))  # a later stage adds to a run that was copied
    run_in_a_fork(partial(track_file, new, "third"))
    assert files_below(folder / "mlartifacts") == before
    for run in find_runs(fresh_client(), "copied"):
        text = {"old": "second", "new": "third"}[run.data.tags["fingerprint"]]
        stored = tmp_path / "copy" / "mlartifacts" / run.info.run_id / "artifacts" / "note.txt"
        assert stored.read_text() == text
        assert run.info.artifact_uri == stored.parent.as_uri()


def fresh_client() -> MlflowClient:
    import mlflow

    return mlflow.MlflowClient(tracking_uri())


def test_locations_that_the_user_chose_stay(
    client: MlflowClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.create_experiment("elsewhere", artifact_location="s3://bucket/mlartifacts")
    copy_of(folder, tmp_path / "copy", monkeypatch)
    track_file(RunKey("moved", 0, "x"), "text")
    assert fresh_client().get_experiment(made).artifact_location == "s3://bucket/mlartifacts"


@pytest.mark.parametrize("name", ["a b", "größe #1", "My%20Project", "what?", "a&b=c;d"])
def test_the_name_of_the_folder_may_hold_any_character(
    client: MlflowClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    project = copy_of(folder, tmp_path / name, monkeypatch)
    run_in_a_fork(partial(track_file, RunKey("special", 0, "x"), "text"))
    (stored,) = project.glob("mlartifacts/*/artifacts/note.txt")
    assert stored.read_text() == "text"
    assert not waiting_folders()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def run_in_a_fork(work: Callable[[], None]) -> None:
    """Run something in another process, because MLflow remembers the stores that a process has opened."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def test_a_store_is_made_in_a_folder_with_special_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "100%41?").mkdir()
    monkeypatch.chdir(tmp_path / "100%41?")
    run_in_a_fork(partial(track_file, KEY, "text"))
    assert Path("mlflow.db").is_file()
    assert not waiting_folders()
    assert [path.name for path in tmp_path.iterdir()] == ["100%41?"]


def test_the_address_of_a_sqlite_file_may_have_a_query(
    client: MlflowClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(folder, tmp_path / "copy", monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db?timeout=30")
    track_file(RunKey("query", 0, "x"), "text")
    (run,) = find_runs(fresh_client(), "query")
    assert (tmp_path / "copy" / "mlartifacts" / run.info.run_id / "artifacts" / "note.txt").is_file()
    assert not waiting_folders()


def waiting_folders() -> list[Path]:
    return list(Path("runs/.tracking").glob("0*"))


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ("acf3f17fdcc7", "back it up, then run `mlflow db upgrade sqlite:///mlflow.db`"),
        ("ffffffffffff", "install the newer MLflow that made it"),
    ],
)
def test_a_store_of_another_mlflow_version_is_reported_with_the_remedy(
    client: MlflowClient,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    version: str,
    remedy: str,
) -> None:
    copy = copy_of(folder, tmp_path / "copy", monkeypatch)
    set_schema(copy, version)
    with Tracker(EXPERIMENT) as tracker, tracker.run(RunKey("older", 0, "x")) as run:
        run.log_metrics({"AP": 0.5})
    told, waits = warnings_of(caplog)
    assert "has the database schema of another MLflow version" in told
    assert remedy in told
    assert waits.startswith("1 point and 2 other records are queued")
    set_schema(copy, set_schema(folder, None))
    availability_of.cache_clear()
    assert Tracker(EXPERIMENT).send_waiting()[1] == ""
    assert find_runs(fresh_client(), "older")[0].data.metrics == {"AP": 0.5}


def set_schema(folder: Path, version: str | None) -> str:
    """Set the version of the schema if one is given; return the version."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        if version:
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_database_that_cannot_be_used_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mlflow.db").mkdir()
    start = time.monotonic()
    with Tracker(EXPERIMENT).run(KEY):
        pass
    assert "mlflow.db is a folder; move it to another place, or set MLFLOW_TRACKING_URI" in warnings_of(caplog)[0]
    availability_of.cache_clear()
    Path("mlflow.db").rmdir()
    Path("mlflow.db").write_text("not a database " * 100)
    with Tracker(EXPERIMENT).run(KEY):
        pass
    assert "cannot be read as a SQLite database" in warnings_of(caplog)[1]
    assert time.monotonic() - start < 60
    assert len(waiting_folders()) == 4


def test_an_unreachable_database_server_costs_seconds_and_no_password_is_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts connections and never answers
        port = silent.getsockname()[1]
        for uri in (
            f"postgresql+psycopg://me:hun/ter2@127.0.0.1:{port}/mlflow",
            f"postgresql+psycopg://me:hunter2@127.0.0.1:{port}/mlflow",
            f"postgresql+psycopg://127.0.0.1:{unused_port()}/mlflow?user=me&password=hunter2",
        ):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            availability_of.cache_clear()
            start = time.monotonic()
            with Tracker(EXPERIMENT) as tracker, tracker.run(KEY) as run:
                run.log_metrics({"AP": 0.5})
            assert time.monotonic() - start < 40
            assert "is unreachable" in warnings_of(caplog)[-2]
    assert "ter2" not in caplog.text
    assert not [path for path in Path("runs/.tracking").rglob("record.json") if "ter2" in path.read_text()]


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_stray_file_in_the_outbox_stops_no_command(
    tracker: Tracker, client: MlflowClient, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "runs" / ".tracking" / "stray-file").write_text("")
    with tracker.run(RunKey("stray", 0, "x")) as run:
        run.log_metrics({"AP": 0.5})
    assert find_runs(client, "stray")[0].data.metrics == {"AP": 0.5}
    assert len(warnings_of(caplog)) == 1


def test_a_home_folder_that_cannot_be_written_does_no_harm(
    client: MlflowClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(folder, tmp_path / "copy", monkeypatch)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    code = "from pipeline.tracking import *\nwith Tracker('test').run(RunKey('home', 0, 'x')): pass"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
    assert find_runs(fresh_client(), "home")[0].info.status == "FINISHED"


def test_timeouts_that_the_user_set_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_names_become_paths_without_parent_folders(name: str, clean: str) -> None:
    assert clean_name(name) == clean
