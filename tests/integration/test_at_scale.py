"""Ray: a large prediction job that is killed half-way and started again, and the service as a Ray Serve application."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import pytest

from tests.integration.servers import free_port
from tests.integration.service import CLASS_NAMES, ask, form, picture, write_weights

IMAGES, SHARD_SIZE = 240, 8
JOB = """
import sys
from pipeline.ray.predict_at_scale import predict_at_scale
weights, source, out = sys.argv[1:]
show = lambda done, total: print(done, total, flush=True)
predict_at_scale(weights, source, out, actors=1, batch_size=4, shard_size=8, on_progress=show)
"""
SERVICE = """
import sys, time
import ray
from ray import serve
from pipeline.ray.environment import set_ray_environment
set_ray_environment()
from pipeline.ray.serve_application import application
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(application({"weights": sys.argv[1], "confidence": 0.05, "max_megapixels": 1}), name="d", route_prefix="/")
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_job_that_is_killed_half_way_has_every_image_exactly_once(tmp_path: Path) -> None:
    weights, source, out = write_weights(tmp_path / "w.safetensors"), tmp_path / "in", tmp_path / "out"
    source.mkdir()
    content = cv2.imencode(".png", picture())[1].tobytes()
    for i in range(IMAGES):
        (source / f"{i:03d}.png").write_bytes(content)
    (source / "007.png").write_bytes(content[:100])
    job = start(JOB, str(weights), str(source), str(out))
    assert job.stdout is not None
    for line in job.stdout:
        if int(line.split()[0]) >= 2 * SHARD_SIZE:
            job.send_signal(signal.SIGKILL)
            break
    job.wait(30)
    shards = {path: path.stat().st_mtime_ns for path in out.glob("part-*.jsonl")}
    assert 2 <= len(shards) < IMAGES // SHARD_SIZE
    finished = len(list((out / "_done").glob("*.json")))  # Ray's processes may live, and finish more, for a moment

    output, _ = start(JOB, str(weights), str(source), str(out)).communicate(timeout=120)
    progress = [int(line.split()[0]) for line in output.splitlines()]
    assert finished * SHARD_SIZE <= progress[0] < IMAGES
    assert progress[-1] == IMAGES
    unchanged = [path for path, written in shards.items() if path.stat().st_mtime_ns == written]
    assert len(unchanged) >= finished
    rows = [json.loads(line) for path in out.glob("part-*.jsonl") for line in path.read_text().splitlines()]
    assert Counter(row["path"] for row in rows) == {f"{i:03d}.png": 1 for i in range(IMAGES)}
    assert [row["path"] for row in rows if "error" in row] == ["007.png"]
    summary = json.loads((out / "_summary.json").read_text())
    assert summary["images"] == IMAGES
    assert list(summary["bad"]) == ["007.png"]


@pytest.mark.slow
def test_ray_serve_answers_as_yolov7_serve(tmp_path: Path) -> None:
    weights, port = write_weights(tmp_path / "w.safetensors"), free_port()
    service = start(SERVICE, str(weights), str(port))
    try:
        assert service.stdout is not None
        assert any(line == "ready\n" for line in service.stdout)
        content = cv2.imencode(".png", picture())[1].tobytes()
        url = f"http://127.0.0.1:{port}"
        first = ask(f"{url}/predict", content)
        assert first.status == 200
        assert first.content["image"] == {"width": 80, "height": 48}
        assert first.content["detections"][0]["class_name"] in CLASS_NAMES
        body, kind = form(content)
        assert ask(f"{url}/predict", body, kind=kind).content == first.content
        bad = ask(f"{url}/predict", b"no picture")
        assert (bad.status, list(bad.content)) == (400, ["error"])
        assert ask(f"{url}/health").content == {"status": "ok"}
        assert ask(f"{url}/metadata").content["class_names"] == list(CLASS_NAMES)
    finally:
        service.communicate("", timeout=60)
