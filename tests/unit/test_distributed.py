"""What training through Ray tells a user, without starting Ray."""

from __future__ import annotations

import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline.ray.trainer
from pipeline.params import RaySettings
from pipeline.ray.placement import Node, Share
from pipeline.ray.trainer import _blindness, _check_reachable, _check_statistics, _lack, first_cause
from tests.integration.runs import make_job
from tests.unit.data_files import make_index
from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import save_index
from yolov7.data.loader import TrainLoader
from yolov7.errors import DataError


def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.ray.trainer, "_REACH_SECONDS", 0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=rf"RAY_ADDRESS={address} \(Connection refused\).*unset RAY_ADDRESS"):
            _check_reachable(address)
        free.listen()
        with pytest.raises(ConnectionError, match=rf"RAY_ADDRESS=ray://{address} \(timed out\)"):
            _check_reachable(f"ray://{address}")
    _check_reachable("auto")


def test_a_port_that_something_else_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(ConnectionError, match=rf"RAY_ADDRESS={address} \(something else has that port\)"):
            _check_reachable(address)


def test_statistics_over_all_workers_need_gpus() -> None:
    settings = RaySettings(sync_batch_norm=True)
    with pytest.raises(ValueError, match=r"sync_batch_norm=true needs GPUs.*a worker gets 2 CPUs here"):
        _check_statistics(settings, Share(2))
    _check_statistics(settings, Share(2, gpus=1))


def test_a_node_that_does_not_see_the_project_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.ray.trainer, "_SIGHT_SECONDS", 0.1)
    index = make_index(tmp_path, count=2)
    job = make_job(tmp_path, tmp_path / "runs" / "0")
    job.run_folder.mkdir(parents=True)
    save_index(tmp_path / "train.npz", index)
    (job.run_folder / "shared").write_text("of another start")
    said = (
        f"node {socket.gethostname()} does not see {job.run_folder} of the machine that started .* under the same path"
    )
    assert re.search(said, str(_blindness(job, "token")))
    (job.run_folder / "shared").write_text("token")
    assert _blindness(job, "token") is None
    Path(index.paths[0]).unlink()
    assert f"does not see {index.paths[0]}" in str(_blindness(job, "token"))
    (tmp_path / "train.npz").unlink()
    assert f"does not see {tmp_path / 'train.npz'}" in str(_blindness(job, "token"))


def test_a_head_that_goes_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{gone.getsockname()[1]}")
        assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1" in str(_lack(RaySettings(), Share(1)))


def test_others_are_in_the_way_until_the_workers_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    free, settings, groups = [Node("a", 4)], RaySettings(workers=(2, 4)), {"1f07": {"state": "PENDING"}}
    monkeypatch.setattr(pipeline.ray.trainer, "_nodes", lambda: [Node("a", 8)])
    monkeypatch.setattr(pipeline.ray.trainer, "_free_nodes", lambda: free)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "07"))
    monkeypatch.setattr("ray.util.placement_group_table", lambda: groups)
    assert "taken by something else" in str(_lack(settings, Share(4)))
    assert _lack(settings, Share(2)) is None
    assert "room for 0 of 2 workers" in str(_lack(settings, Share(9)))
    groups["2f06"] = {"state": "CREATED"}  # another driver's
    groups["3f07"] = {"state": "REMOVED"}
    assert "taken by something else" in str(_lack(settings, Share(4)))
    groups["1f07"] = {"state": "CREATED"}
    assert _lack(settings, Share(4)) is None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_is_gone_is_one_line_from_any_process(tmp_path: Path, num_workers: int) -> None:
    index = make_index(tmp_path, count=2)
    loader = TrainLoader(DetectionDataset(index, image_size=64, cache="none"), batch_size=2, num_workers=num_workers)
    Path(index.paths[0]).unlink()
    with pytest.raises(DataError) as caught:
        next(loader.epoch(0))
    assert first_cause(caught.value).startswith(f"image {index.paths[0]} cannot be read (No such file")
    assert "\n" not in first_cause(caught.value)
