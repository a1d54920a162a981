"""A training that joins a running Ray cluster instead of starting its own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.project import BIN, SMALL, Project

pytestmark = pytest.mark.slow

_START_SECONDS = 60


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster of one node with a token; yields the environment that lets a driver join it."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(16))
    port = _free_port()
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    folder = Path(f"/tmp/ray-test-{os.getpid()}")  # Ray's sockets need a short path
    node = subprocess.Popen(
        [
            *(
                BIN / "ray",
                "start",
                "--head",
                "--block",
                "--node-ip-address=127.0.0.1",
                f"--port={port}",
                "--num-cpus=1",
            ),
            *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"),
        ],
        env={name: value for name, value in (os.environ | environment).items() if name != "RAY_ADDRESS"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield environment
    finally:
        _kill_tree(node)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_training_joins_the_cluster_of_ray_address(cluster: dict[str, str], tmp_path: Path) -> None:
    project = Project(tmp_path / "project", git=False)
    project.write(SMALL | {"variants": {"nano": {"spec": "nano"}}})
    project.run("yolov7", "prepare")
    project.run("yolov7", "train", "nano", **cluster)
    assert project.json("train/nano/0/train.json")["epochs"] == 1
    host, _, port = cluster["RAY_ADDRESS"].rpartition(":")
    socket.create_connection((host, int(port)), timeout=5).close()  # the cluster is not the training's to stop


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.5)
        else:
            time.sleep(5)  # the node registers itself after its head listens
            return
    raise TimeoutError(f"no Ray head within {_START_SECONDS} s")


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=10)
    process.wait()
