"""Test MLflow's web page for the runs of a project: its address, its errors, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.tracking import RunKey, Tracker, serve_page
from tests.integration.servers import free_port
from yolov7.errors import SettingError

ROOT = Path(__file__).parents[2]
_SERVE = (
    "from pipeline.tracking import serve_page; "
    "serve_page('test', host='127.0.0.1', port={}, say=lambda line: print(line, flush=True))"
)


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_in_use_is_an_error_at_once(taken_port: int) -> None:
    said: list[str] = []
    with pytest.raises(
        SettingError, match=f"port {taken_port} of .* cannot be used .*; choose another one with --port or --host"
    ):
        serve_page("test", host="127.0.0.1", port=taken_port, say=said.append)
    assert said == []


def test_a_port_out_of_range_is_an_error() -> None:
    with pytest.raises(SettingError, match="--port=70000 must be between 1 and 65535"):
        serve_page("test", host="127.0.0.1", port=70000, say=print)


def test_a_server_has_a_page_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@example.test:5000")
    with pytest.raises(SettingError, match=r"MLFLOW_TRACKING_URI=http://example\.test:5000 is a server; open that"):
        serve_page("test", host="127.0.0.1", port=free_port(), say=print)


def test_a_store_that_cannot_be_opened_is_an_error() -> None:
    Path("mlflow.db").mkdir()
    with pytest.raises(SettingError, match=r"sqlite:///mlflow\.db cannot be opened: .*mlflow\.db is a folder"):
        serve_page("test", host="127.0.0.1", port=free_port(), say=print)


@pytest.mark.slow
def test_the_page_opens_the_runs_and_ends_with_its_command(tmp_path: Path) -> None:
    with Tracker("test").run(RunKey("nano", 0, "x")):
        pass
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "log.txt").open("w") as log:
        command = [sys.executable, "-c", _SERVE.format(port)]
        page = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert page.stdout is not None
    address = re.search(r"http://\S+(?=;)", page.stdout.readline())
    assert address is not None
    assert address[0] == f"http://127.0.0.1:{port}/#/experiments/1/runs?viewStateShareKey=variants"
    wait_for(address[0], page)
    assert "GET /" not in (tmp_path / "log.txt").read_text()
    children = psutil.Process(page.pid).children(recursive=True)
    assert children
    page.send_signal(signal.SIGTERM)
    assert page.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def wait_for(address: str, page: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while page.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the page did not start: {Path('log.txt').read_text()[-2000:]}")
