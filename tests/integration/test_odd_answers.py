"""Test that odd answers of a proxy lose no record: everything arrives once the real server answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tracking import RunKey, Tracker
from pipeline.tracking.availability import availability_of
from tests.integration.odd_proxy import Answer, OddProxy, Replaced, odd_proxy

JSON = "application/json"
LOGIN = "<html><body><form action=/login>Sign in</form></body></html>"
ODD_ANSWERS = {
    "ingress without route": Answer("404 Not Found", "404 page not found\n", "text/plain"),
    "nginx 404": Answer("404 Not Found", "<html>404 Not Found</html>"),
    "gateway 404 in JSON": Answer("404 Not Found", '{"message": "no Route matched with those values"}', JSON),
    "404 of a server without this API": Answer("404 Not Found", '{"error_code": "ENDPOINT_NOT_FOUND"}', JSON),
    "404 that names a missing resource": Answer("404 Not Found", '{"error_code": "RESOURCE_DOES_NOT_EXIST"}', JSON),
    "plain 400": Answer("400 Bad Request", "The plain HTTP request was sent to HTTPS port"),
    "400 in JSON": Answer("400 Bad Request", '{"error_code": "BAD_REQUEST", "message": "bad"}', JSON),
    "400 empty": Answer("400 Bad Request"),
    "405": Answer("405 Method Not Allowed", "not allowed"),
    "407": Answer("407 Proxy Authentication Required", "who are you"),
    "409 ABORTED": Answer("409 Conflict", '{"error_code": "ABORTED", "message": "try again"}', JSON),
    "410": Answer("410 Gone"),
    "411": Answer("411 Length Required"),
    "413": Answer("413 Request Entity Too Large", "<html>too large</html>"),
    "421": Answer("421 Misdirected Request"),
    "422": Answer("422 Unprocessable Entity", '{"detail": "no"}', JSON),
    "429": Answer("429 Too Many Requests", "slow down"),
    "451": Answer("451 Unavailable For Legal Reasons"),
    "500": Answer("500 Internal Server Error", "oops"),
    "502": Answer("502 Bad Gateway", "<html>502</html>"),
    "503 with a date to retry": Answer("503 Service Unavailable", "", headers={"Retry-After": "3600"}),
    "504": Answer("504 Gateway Timeout"),
    "empty 200": Answer("200 OK"),
    "200 with an empty object": Answer("200 OK", "{}", JSON),
    "200 with null": Answer("200 OK", "null", JSON),
    "200 with a list": Answer("200 OK", "[]", JSON),
    "200 with a login page": Answer("200 OK", LOGIN),
    "200 with half an object": Answer("200 OK", '{"run": {"info": {"run_', JSON),
    "200 of Armeria": Answer("200 OK", "200 OK", "text/plain"),
    "204": Answer("204 No Content"),
    "redirect to itself": Answer("302 Found", headers={"Location": "/login"}),
    "403 of a firewall": Answer("403 Forbidden", "<html>blocked</html>"),
    "401 of a proxy": Answer("401 Unauthorized", "<html>sign in</html>"),
}
FAST = ("ingress without route", "plain 400", "409 ABORTED", "empty 200", "200 with a login page", "413")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OddProxy]:
    with odd_proxy(tmp_path_factory.mktemp("server")) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _in_a_project(proxy: OddProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    proxy.answer = None
    availability_of.cache_clear()
    yield
    proxy.answer = None
    availability_of.cache_clear()


def track(key: RunKey) -> None:
    """Record a point, a parameter, a tag, a data set, a file, and how the run ended."""
    Path("plots").mkdir(exist_ok=True)
    Path("plots/a.txt").write_text("a")
    with Tracker("odd").run(key) as run:
        run.log_params({"epochs": 3})
        run.log_metrics({"train/AP": 0.5, "train/box": 0.1}, step=1)
        run.set_tags({"device": "cpu"})
        run.log_dataset("noise", digest="d" * 40, source="x")
        run.log_artifact(Path("plots"), "evaluate")


def assert_everything_arrived(proxy: OddProxy, key: RunKey) -> None:
    import mlflow

    client = mlflow.MlflowClient(proxy.url)
    found = client.get_experiment_by_name("odd")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id], f"tags.variant = '{key.variant}'")
    assert run.data.params == {"epochs": "3"}
    assert run.data.metrics == {"train/AP": 0.5, "train/box": 0.1}
    assert len(client.get_metric_history(run.info.run_id, "train/AP")) == 1
    assert run.data.tags["device"] == "cpu"
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 1
    assert [(file.path, file.file_size) for file in client.list_artifacts(run.info.run_id, "evaluate")] == [
        ("evaluate/a.txt", 1)
    ]


# Every answer in place of writes, which is the most frequent case; some also in place of other requests.
CASES = [
    *((name, replaces) for name in FAST for replaces in ("all requests", "writes", "files")),
    *(pytest.param(name, "writes", marks=pytest.mark.slow) for name in ODD_ANSWERS if name not in FAST),
]


@pytest.mark.parametrize(("name", "replaces"), CASES)
def test_nothing_is_lost(
    proxy: OddProxy,
    name: str,
    replaces: Replaced,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = RunKey(f"{name} {replaces}".replace(" ", "-"), 0, "x")
    if replaces != "all requests":  # the run exists already, as it does for later stages
        with Tracker("odd").run(key):
            pass
    proxy.answer, proxy.replaces = ODD_ANSWERS[name], replaces
    track(key)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(warnings) <= 2  # one for small records, one for files
    proxy.answer = None
    availability_of.cache_clear()
    _, left = Tracker("odd").send_waiting()
    assert left == ""
    assert_everything_arrived(proxy, key)


def test_what_mlflow_rejects_is_reported_and_kept_and_the_rest_arrives(
    proxy: OddProxy, caplog: pytest.LogCaptureFixture
) -> None:
    key = RunKey("rejected", 0, "x")
    with Tracker("odd").run(key):
        pass
    rejection = '{"error_code": "INVALID_PARAMETER_VALUE", "message": "the value is too long"}'
    proxy.answer, proxy.replaces = Answer("400 Bad Request", rejection, JSON), "writes"
    with Tracker("odd").run(key) as run:
        run.set_tags({"a": 1})
        proxy.answer = None
        run.log_metrics({"AP": 0.5})
    assert "rejected the content of a record, which is not tracked" in caplog.messages[0]
    assert "the value is too long" in caplog.messages[0]
    assert len(list(Path("runs/.tracking").glob(".*.rejected"))) == 2  # the begin of the run, and its tag
    assert Tracker("odd").send_waiting() == ("", "")
