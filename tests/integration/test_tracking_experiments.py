"""Test that runs of DVC experiments in a temporary copy of the project are tracked in the project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_TRACK = """
import sys
from pathlib import Path
from pipeline.tracking import RunKey, Tracker
with Tracker("test").run(RunKey("nano", 0, Path("params.yaml").read_text().strip().replace(": ", "-"))) as run:
    run.log_metrics({"AP": 0.5})
    run.log_artifact(Path("params.yaml"))
Path("out.txt").write_text(str(Path.cwd()))
"""
_PIPELINE = """
stages:
  track:
    cmd: {python} track.py
    deps: [track.py]
    params: [epochs]
    outs: [out.txt]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a git repository with one DVC stage that tracks a run."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "track.py").write_text(_TRACK)
    (folder / "dvc.yaml").write_text(_PIPELINE.format(python=sys.executable))
    (folder / "params.yaml").write_text("epochs: 1\n")
    (folder / ".gitignore").write_text("/mlflow.db*\n/mlartifacts\n/runs\n/out.txt\n")
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "init", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "begin")
    return folder


def run(folder: Path, *command: str) -> str:
    names = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | names | {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--temp", "--queue"])
def test_the_run_of_an_experiment_is_in_the_store_of_the_project(project: Path, how: str) -> None:
    import mlflow

    run(project, "dvc", "exp", "run", how, "-S", "epochs=2")
    if how == "--queue":
        run(project, "dvc", "exp", "run", "--run-all")
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.tags["fingerprint"] == "epochs-2"
    assert found.data.metrics == {"AP": 0.5}
    stored = project / "mlartifacts" / found.info.run_id / "artifacts" / "params.yaml"
    assert stored.read_text().strip() == "epochs: 2"
    assert not list((project / "runs" / ".tracking").glob("0*"))
    assert not (project / "out.txt").exists()  # the experiment did run in a copy
