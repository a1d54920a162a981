"""Real Ray nodes on this machine, and a training on them of which every step is recorded.

`python -m tests.integration.nodes` is its driver: it calls `train_with_ray` as the pipeline does. Only the workers
differ: batch norm is in evaluation mode, so that the figures do not depend on how images are shared, and steps are slow
enough to leave time for faults.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import pipeline.ray.trainer
from pipeline.params import RaySettings
from tests.integration.project import BIN, ROOT
from tests.integration.runs import fix_statistics
from tests.integration.servers import free_port
from yolov7.errors import one_line
from yolov7.structures import Batch
from yolov7.training.job import TrainJob
from yolov7.training.steps import Stepper

_START_SECONDS = 120
_STARTED = "Ray runtime started"
_QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process less in every group
    "RAY_health_check_period_ms": "500",  # of nodes, by the head
}
_SLOW_STEP = 0.5  # seconds that a step takes longer, from the step on that the file `pace` beside the record names


class Cluster:
    """A head of one CPU on this machine, with a token, and further nodes of one CPU."""

    def __init__(self, folder: Path) -> None:
        (folder / "token").write_text(secrets.token_hex(16))
        self._log = folder / "nodes.log"
        self._address = f"127.0.0.1:{free_port()}"
        self._temporary = Path(f"/tmp/ray-test-{os.getpid()}")  # Ray's sockets need a short path
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.drivers: list[subprocess.Popen[str]] = []  # ended with the cluster
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        self.environment = {**token, "RAY_ADDRESS": self._address, "PYTHONPATH": str(ROOT)}
        port = self._address.rpartition(":")[2]
        head = ["--head", "--include-dashboard=false", f"--port={port}", f"--temp-dir={self._temporary}"]
        self._start(*head, "--node-ip-address=127.0.0.1")

    def add_node(self) -> None:
        self._start(f"--address={self._address}", "--node-ip-address=127.0.0.1")

    def kill_last_node(self) -> None:
        """Kill the last node with all processes that run on it."""
        _kill_tree(self._nodes.pop())

    def is_up(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        for driver in self.drivers:
            driver.kill()
        while self._nodes:
            self.kill_last_node()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _start(self, *options: str) -> None:
        """Start a node; try again, because Ray waits for half a minute, which is short on a busy machine."""
        for _ in range(3):
            node = self._launch(*options)
            self._nodes.append(node)
            wait_until(lambda node=node: _STARTED in self._log.read_text() or node.poll() is not None)  # type: ignore[misc]
            if node.poll() is None:
                return
            self._nodes.remove(node)
        raise RuntimeError(f"Ray does not start: {self._log.read_text()}")

    def _launch(self, *options: str) -> subprocess.Popen[bytes]:
        command = [BIN / "ray", "start", "--block", "--num-cpus=1", "--disable-usage-stats", *options]
        environment = os.environ | self.environment | _QUICK
        del environment["RAY_ADDRESS"]
        with self._log.open("wb") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that has only a head, for the time of the body."""
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.stop()


@dataclass(frozen=True)
class Step:
    """A worker's share of a step."""

    pid: int
    rank: int
    world_size: int
    epoch: int
    step: int
    images: tuple[int, ...]


class StepRecord:
    """A file with what each worker did in each step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Step]:
        lines = self._path.read_text().split("\n")[:-1] if self._path.is_file() else []
        found = [json.loads(line) for line in lines]
        return [Step(*values, images=tuple(images)) for *values, images in found]

    def set_pace(self, slow_from: int) -> None:
        """Make steps slow from this one on."""
        self._path.with_name("pace").write_text(str(slow_from))

    def final(self) -> dict[int, list[int]]:
        """Return the images of each step, as it was done last, in the order of the batch of one process."""
        steps: dict[int, dict[int, tuple[int, ...]]] = {}
        for share in self.read():
            if share.rank == 0:
                steps[share.step] = {}  # its earlier shares were lost
        ends: dict[int, int] = {}
        for share in self.read():
            ends[share.step] = share.world_size
        for share in self.read():
            if share.world_size == ends[share.step]:
                steps[share.step][share.rank] = share.images
        return {step: _interleaved(shares) for step, shares in steps.items()}


def _interleaved(shares: dict[int, tuple[int, ...]]) -> list[int]:
    parts = [shares[rank] for rank in sorted(shares)]
    return [part[k] for k in range(max(map(len, parts))) for part in parts if k < len(part)]


def record_steps(path: Path) -> None:
    """Record every step of this process from now on."""
    real, pace = Stepper.step, path.with_name("pace")

    def step(self: Stepper, batch: Batch) -> None:
        progress, worker = self._state.progress, self._worker
        number = progress.step
        real(self, batch)
        line = [os.getpid(), worker.rank, worker.world_size, progress.epoch, number, batch.index]
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if pace.is_file() and number >= int(pace.read_text() or 0):
            time.sleep(_SLOW_STEP)

    Stepper.step = step  # type: ignore[method-assign]


class Driver:
    """A process that trains on the cluster."""

    def __init__(self, on: Cluster, job: TrainJob, settings: dict[str, Any], *, record: Path, fault: str = "") -> None:
        command = [sys.executable, "-m", "tests.integration.nodes"]
        job.run_folder.mkdir(parents=True, exist_ok=True)
        plain = {"job": job.model_dump(mode="json"), "settings": settings, "record": str(record), "fault": fault}
        environment = os.environ | on.environment | _QUICK
        self.process = subprocess.Popen(
            [*command, json.dumps(plain)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

        on.drivers.append(self.process)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait, and fail if the driver ends before."""

        def reached_or_over() -> bool:
            return reached() or self.process.poll() is not None

        wait_until(reached_or_over)
        assert self.process.poll() is None or reached(), self.process.communicate()[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        return self.process.communicate(timeout=_START_SECONDS * 3)[0]


def wait_until(reached: Callable[[], bool]) -> None:
    """Wait; raise TimeoutError after minutes, which a busy machine may need."""
    deadline = time.monotonic() + _START_SECONDS * 2
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(reached.__qualname__)
        time.sleep(0.2)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            member.kill()
        psutil.wait_procs(family, timeout=10)
    process.wait()


def _drive() -> None:
    given = json.loads(sys.argv[1])
    real, record, fault = pipeline.ray.trainer.work, Path(given["record"]), given["fault"]

    def work(config: dict[str, Any]) -> dict[str, Any]:
        fix_statistics()
        record_steps(record)
        return real(config | ({"token": "of another folder"} if fault == "blind" else {}))

    pipeline.ray.trainer.work = work
    if fault == "version":
        import ray

        ray.__version__ = "2.0.0"
    settings = RaySettings.model_validate(given["settings"])
    try:
        pipeline.ray.trainer.train_with_ray(TrainJob.model_validate(given["job"]), settings, on_tick=lambda: None)
    except (ValueError, OSError) as error:
        sys.exit(one_line(error))


if __name__ == "__main__":
    _drive()
