"""`yolov7 train --jobs` trains variants at the same time, may be killed, and `dvc repro` takes up what it trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.project import BIN, SMALL, Project
from yolov7.system.threads import usable_cpus
from yolov7.training.record import read_progress

pytestmark = pytest.mark.slow

SPEC = "base: nano\nimage_size: 64\nscale: {rule: width, width: 0.5}\n"
TRAIN = {
    "batch_size": 4,
    "image_size": 64,
    "checkpoint_minutes": 0,
    "validate_every": 100,
    "loader_workers": 1,
    "optim": {"nominal_batch": 8},
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path / "project", git=False)
    (project.folder / "narrow.yaml").write_text(SPEC)
    data = {"path": "yolov7/data", "synthetic": {"train_images": 16, "val_images": 4, "image_size": 64}}
    variants = {"short": {"spec": "narrow.yaml", "train": {"epochs": 10}}, "long": {"spec": "narrow.yaml"}}
    ray = {"cpus_per_worker": 1}
    project.write({**SMALL, "data": data, "variants": variants, "train": TRAIN | {"epochs": 16}, "ray": ray})
    project.run("dvc", "repro", "prepare")
    return project


def test_variants_train_at_the_same_time_and_finished_ones_are_not_repeated(project: Project) -> None:
    kill_while_both_train(project)
    said = project.run("yolov7", "train", "--jobs", "2")
    assert said.count("continues after step") == 2
    assert "2 of 2 trainings ended" in said
    assert "all trainings are finished; `dvc repro` uses their weights" in said
    said = project.run("yolov7", "train", "--jobs", "2")
    assert " ".join(said.split()) == "train 2 of 2 trainings finished before with the same data, settings and code"

    said = project.run("dvc", "repro", "reparam@short-0", "reparam@long-0")
    assert said.count("its weights are used") == 2
    assert "continues after step" not in said
    assert not (project.folder / "runs/short/0").exists()
    said = project.run("yolov7", "train", "--jobs", "2")  # DVC has recorded both
    assert "2 of 2 trainings finished before" in said


def kill_while_both_train(project: Project) -> None:
    """Kill the command when both variants have trained, if there is a CPU for each, and check that nothing is left."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    command = subprocess.Popen(
        ["yolov7", "train", "--jobs", "0"],
        cwd=project.folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(project.folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    runs = [project.folder / "runs" / name / "0" for name in ("short", "long")]
    wanted = len(runs) if usable_cpus() > 1 else 1
    deadline = time.monotonic() + 300
    while sum(read_progress(run).get("step", 0) > 4 for run in runs) < wanted:
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(command.pid).children(recursive=True)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    steps = [json.loads((run / "progress.json").read_text())["step"] for run in runs[:wanted]]
    assert all(step < 64 for step in steps)
