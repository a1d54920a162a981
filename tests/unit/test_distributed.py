"""What a user is told about Ray, the machine and the workers, without starting Ray."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

import pipeline.ray.cluster
import pipeline.ray.worker
from pipeline.params import RaySettings
from pipeline.ray.cluster import check_reachable, connect
from pipeline.ray.environment import set_ray_environment
from pipeline.ray.errors import ClusterError
from pipeline.ray.machine import check_machine
from pipeline.ray.placement import Node, WorkerResources, check_batch_norm
from pipeline.ray.shared_memory import lack_of_shared_memory
from pipeline.ray.trainer import find_lack
from pipeline.ray.worker import find_invisible
from tests.integration.runs import make_job
from tests.unit.data_files import make_index
from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import save_index
from yolov7.data.loader import TrainLoader
from yolov7.errors import DataError, SettingError
from yolov7.settings import TrainSettings


def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.ray.cluster, "_ANSWER_SECONDS", 0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"RAY_ADDRESS={address} \(Connection refused\).*unset RAY_ADDRESS"):
            check_reachable(address)
        free.listen()
        with pytest.raises(ClusterError, match=rf"RAY_ADDRESS=ray://{address} \(timed out\)"):
            check_reachable(f"ray://{address}")
    check_reachable("auto")


def test_a_port_that_another_server_uses_is_told() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(ClusterError, match=rf"RAY_ADDRESS={address} \(another kind of server uses that port\)"):
            check_reachable(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", r"address of Ray's dashboard; name the cluster's own address, HOST:6379"),
        ("head", r"RAY_ADDRESS=head must be HOST:PORT"),
        ("head:ray", r"RAY_ADDRESS=head:ray must be HOST:PORT"),
        ("127.0.0.1:99999", r"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:99999 \("),
    ],
)
def test_an_address_of_another_kind_names_the_right_one(address: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        check_reachable(address)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("auto", ConnectionError("Could not find any running Ray instance."), "no Ray cluster runs on this machine; "),
        ("auto", RuntimeError("Version mismatch"), r"refuses the connection: Version mismatch; it needs this version"),
    ],
)
def test_a_refused_connection_names_the_cause(
    monkeypatch: pytest.MonkeyPatch, address: str, error: Exception, message: str
) -> None:
    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterError, match=message), connect(RaySettings()):
        pass


def test_a_temporary_folder_that_is_too_long_for_sockets_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("t" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with pytest.raises(ClusterError, match=rf"temporary folder {long} is too long for Ray's sockets \(\d+ bytes, at"):
        check_machine()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_machine()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/missing")
    with pytest.raises(ClusterError, match="temporary folder /tmp/missing is missing or cannot be written"):
        check_machine()


def check_machine_elsewhere(*command: str) -> str:
    """Return what `check_machine` says in a process that is started by a command."""
    code = "from pipeline.ray.machine import check_machine; check_machine()"
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def test_a_low_limit_of_open_files_is_named() -> None:
    said = check_machine_elsewhere("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh")
    assert "a process may open 64 files here, and Ray needs 1024; raise the limit (ulimit -n 1024)" in said


def test_a_limit_of_open_files_that_may_be_raised_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        check_machine()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_missing_loopback_interface_is_named() -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not create a network namespace")
    assert "the loopback interface 127.0.0.1 does not work" in check_machine_elsewhere("unshare", "-n")


def test_ray_on_this_machine_needs_no_home_folder_and_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with pytest.MonkeyPatch.context() as inner:
        inner.setenv("RAY_worker_niceness", "3")
        environment = dict(run_environment())
        assert environment["RAY_worker_niceness"] == "3"
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # the loopback interface
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert "RAY_AUTH_TOKEN" not in run_environment()


def run_environment() -> dict[str, str]:
    """Return the environment that `set_ray_environment` leaves, without changing that of this process."""
    before = dict(os.environ)
    try:
        set_ray_environment()
        return dict(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_synchronised_batch_norm_needs_gpus() -> None:
    settings = TrainSettings(sync_batch_norm=True)
    with pytest.raises(SettingError, match=r"train.sync_batch_norm=true needs GPUs.*each worker gets 2 CPUs"):
        check_batch_norm(settings, WorkerResources(2))
    check_batch_norm(settings, WorkerResources(2, gpus=1))


def test_a_node_that_does_not_see_the_project_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.ray.worker, "_VISIBLE_SECONDS", 0.1)
    index = make_index(tmp_path, count=2)
    job = make_job(tmp_path, tmp_path / "runs" / "0")
    job.run_folder.mkdir(parents=True)
    save_index(tmp_path / "train.npz", index)
    (job.run_folder / "shared").write_text("of another start")
    said = (
        f"node {socket.gethostname()} cannot access {job.run_folder} of the machine that started .* under the same path"
    )
    assert re.search(said, str(find_invisible(job, "token", is_one_machine=False)))
    (job.run_folder / "shared").write_text("token")
    assert find_invisible(job, "token", is_one_machine=False) is None
    Path(index.paths[0]).unlink()
    assert f"cannot access {index.paths[0]}" in str(find_invisible(job, "token", is_one_machine=False))
    alone = find_invisible(job, "token", is_one_machine=True)
    assert alone == f"{index.paths[0]} is missing; restore it, or run `yolov7 prepare` again"
    (tmp_path / "train.npz").unlink()
    assert f"cannot access {tmp_path / 'train.npz'}" in str(find_invisible(job, "token", is_one_machine=False))


@pytest.mark.parametrize(
    ("free", "loader_workers", "world_size", "message"),
    [
        (64, 1, 1, None),  # 8 images of 96 x 96, three times 0.22 MB and some
        (64, 0, 1, None),
        (2, 0, 1, None),
        (2, 4, 1, r"/shm of \S+ has a size of 3 MB, 2 MB of it free, but 4 loader workers for each of 1 workers need "),
        (2, 4, 8, None),  # shares of one image
    ],
)
def test_batches_that_do_not_fit_into_shared_memory_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    loader_workers: int,
    world_size: int,
    message: str | None,
) -> None:
    state = SimpleNamespace(f_frsize=1, f_bavail=free * 10**6, f_blocks=(free + 1) * 10**6)
    monkeypatch.setattr("os.statvfs", lambda _: state)
    folder = tmp_path / "shm"
    folder.mkdir()
    job = make_job(tmp_path, tmp_path / "run", batch_size=8, image_size=96)
    lack = lack_of_shared_memory(
        job, loader_workers=loader_workers, world_size=world_size, workers_here=1, folder=folder
    )
    assert lack is None if message is None else re.search(message, str(lack))
    if lack:
        assert re.search(r"\(docker run --shm-size=\d+mb\), or set train.loader_workers: 0$", lack)


def test_a_head_that_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{gone.getsockname()[1]}")
        lack = find_lack(RaySettings(), WorkerResources(1), has_room=True)
        assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1" in str(lack)


def test_missing_room_has_two_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("pipeline.ray.trainer.nodes_alive", lambda: [Node("a", 8)])
    settings = RaySettings(workers=(2, 4))
    assert find_lack(settings, WorkerResources(4), has_room=True) is None
    assert "other jobs use them" in str(find_lack(settings, WorkerResources(4), has_room=False))
    assert "room for 0 of 2 workers" in str(find_lack(settings, WorkerResources(9), has_room=False))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_missing_image_is_one_line_from_any_process(tmp_path: Path, num_workers: int) -> None:
    index = make_index(tmp_path, count=2)
    loader = TrainLoader(DetectionDataset(index, image_size=64, cache="none"), batch_size=2, num_workers=num_workers)
    Path(index.paths[0]).unlink()
    with pytest.raises(DataError) as caught:
        next(loader.epoch(0))
    assert str(caught.value).startswith(f"image {index.paths[0]} cannot be read (No such file")
    assert "\n" not in str(caught.value)


def test_a_real_small_shared_memory_is_told(tmp_path: Path) -> None:
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a file system")
    job = make_job(tmp_path, tmp_path / "run", batch_size=16, image_size=320)
    code = (
        "import sys; from pipeline.ray.shared_memory import lack_of_shared_memory as lack; "
        "from yolov7.training.job import TrainJob; job = TrainJob.model_validate_json(sys.argv[1]); "
        "print(lack(job, loader_workers=1, world_size=1, workers_here=1))"
    )
    command = [*mount, sys.executable, "-c", code, job.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(
        r"^/dev/shm of \S+ has a size of 3 MB, 3 MB of it free, but 1 loader workers .* 20 MB ", done.stdout
    )
