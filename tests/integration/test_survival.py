"""`yolov7 train` with real Ray and MLflow is interrupted and killed: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.experiment import load_experiment
from pipeline.stages.train import build_job
from tests.integration.project import BIN, SMALL, Project
from tests.integration.runs import WORKER, assert_same, checkpoint_steps, read_weights
from yolov7.training.loop import fit
from yolov7.weights.weight_files import load_weights

pytestmark = pytest.mark.slow

EPOCHS = 70  # some of them pass between a signal and its effect
SPEC = "base: nano\nimage_size: 64\nscale: {rule: width, width: 0.5}\n"
TRAIN = {
    "epochs": EPOCHS,
    "batch_size": 4,
    "image_size": 64,
    "precision": "float32",
    "checkpoint_minutes": 0,
    "loader_workers": 1,
    "optim": {"nominal_batch": 8},
}
KILLED_IN_THE_COPY = """
import os, shutil, signal
real = shutil.copyfile
def copy(source, target, **options):
    done = real(source, target, **options)
    if str(target).endswith("weights.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    return done
shutil.copyfile = copy
from pipeline.cli.main import main
main()
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path / "project", git=False)
    (project.folder / "narrow.yaml").write_text(SPEC)
    data = {"path": "yolov7/data", "synthetic": {"train_images": 16, "val_images": 4, "image_size": 64}}
    project.write(
        {
            **SMALL,
            "data": data,
            "variants": {"narrow": {"spec": "narrow.yaml"}},
            "train": TRAIN,
            "ray": {"cpus_per_worker": 1},
        }
    )
    project.run("yolov7", "prepare")
    return project


class Training:
    """A command that trains, in its own process group."""

    def __init__(self, project: Project, *command: str) -> None:
        self.run = project.folder / "runs" / "narrow" / "0"
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "PYTHONPATH": str(project.folder), "DVC_NO_ANALYTICS": "1"}
        self.process = subprocess.Popen(
            command or ("yolov7", "train", "narrow"),
            cwd=project.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )
        self._family: list[psutil.Process] = []

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 600
        while not reached():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self._family = psutil.Process(self.process.pid).children(recursive=True)

    def wait_for_steps(self, more: int) -> None:
        """Wait until the worker of this start has done that many steps."""
        before = self.worker()
        self.wait_until(lambda: self.worker() != before)
        first = self.step()
        self.wait_until(lambda: self.step() >= first + more)

    def worker(self) -> int:
        """Return the process that writes into the run folder, or did so last."""
        lock = self.run.with_name("0.lock")
        return int(lock.read_text() or 0) if lock.is_file() else 0

    def step(self) -> int:
        progress = self.run / "progress.json"
        return int(json.loads(progress.read_text())["step"]) if progress.is_file() else 0

    def saved(self) -> int:
        """Return the step of the last checkpoint."""
        return max(checkpoint_steps(self.run))

    def output(self) -> str:
        return self.process.communicate(timeout=900)[0]

    def left_over(self, *, seconds: float) -> list[str]:
        """Return the processes that it started and that do not end within that time."""
        _, alive = psutil.wait_procs(self._family, timeout=seconds)
        return [process.name() for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _hear_ctrl_c() -> None:
    """Undo what a shell does to processes in the background: they and their children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_interrupts_and_kills_lose_nothing(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(project)
    lose_a_worker_and_terminate(project)
    kill_the_driver_twice(project)
    kill_in_the_copy(project)
    last = Training(project)
    said = last.output()
    assert last.process.returncode == 0, said
    assert "this training was finished before with the same data, settings and code; its weights are used" in said
    assert (last.run / "weights.safetensors").is_file()  # for `dvc repro`

    assert_as_undisturbed(project, tmp_path / "undisturbed", monkeypatch)
    assert_one_point_an_epoch(project)


def test_dvc_continues_after_ctrl_c_and_after_it_was_killed(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")  # stays between DVC and the stage, as bash would not
    repro = ("dvc", "repro", "train@narrow-0")
    training = Training(project, *repro)
    training.wait_for_steps(6)
    second = subprocess.run([BIN / "yolov7", "train"], cwd=project.folder, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "the stage `train narrow 0` is in use by another process" in second.stderr
    os.killpg(training.process.pid, signal.SIGINT)
    assert "interrupted; run the same command again to continue" in training.output()
    assert training.left_over(seconds=10) == []
    assert training.step() - training.saved() in (0, 1)

    training = Training(project, *repro)
    training.wait_for_steps(6)
    training.process.kill()
    training.process.wait()
    assert training.left_over(seconds=60) == []
    assert training.step() - training.saved() in (0, 1)

    last = Training(project, *repro)
    said = last.output()
    assert last.process.returncode == 0, said
    assert "continues after step" in said
    assert_as_undisturbed(project, tmp_path / "undisturbed", monkeypatch)
    assert_one_point_an_epoch(project)


def interrupt(project: Project) -> None:
    """Send Ctrl-C to every process of the group; before that, a second start of the stage is refused."""
    training = Training(project)
    training.wait_for_steps(6)
    second = subprocess.run([BIN / "yolov7", "train"], cwd=project.folder, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    in_use = f"the stage `train narrow 0` is in use by another process ({training.process.pid}); wait for it, or end it"
    assert second.stderr.strip() == f"yolov7: {in_use}"
    os.killpg(training.process.pid, signal.SIGINT)
    assert_left_in_order(training)


def lose_a_worker_and_terminate(project: Project) -> None:
    """Kill the worker, which Ray replaces; then terminate the command."""
    training = Training(project)
    saved = training.saved()
    training.wait_for_steps(6)
    os.kill(training.worker(), signal.SIGKILL)
    training.wait_for_steps(4)
    training.process.terminate()
    assert f"continues after step {saved} of" in assert_left_in_order(training)


def kill_the_driver_twice(project: Project) -> None:
    """Kill the command; its worker ends, and until then no other process writes."""
    training = Training(project)
    training.wait_for_steps(6)
    worker = psutil.Process(training.worker())
    training.process.kill()
    training = Training(project)
    training.wait_for_steps(4)
    assert not worker.is_running()
    training.process.kill()
    training.process.wait()


def kill_in_the_copy(project: Project) -> None:
    """Kill the command after it copied the weights to a draft of artifacts/."""
    training = Training(project, "python", "-c", KILLED_IN_THE_COPY, "train", "narrow")
    said = training.output()
    assert training.process.returncode == -signal.SIGKILL, said


def assert_left_in_order(training: Training) -> str:
    """Check that it ended within seconds, with a checkpoint of the last optimizer step, and left no process."""
    said = training.output()
    assert "interrupted; run the same command again to continue" in said
    assert training.process.returncode == 130
    assert training.left_over(seconds=10) == []
    assert training.step() - training.saved() in (0, 1)
    return said


def assert_as_undisturbed(project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    job = build_job(load_experiment().variant("narrow"), seed=0)
    sparing = job.settings.model_copy(update={"checkpoint_minutes": 60, "validate_every": EPOCHS})
    fit(job.model_copy(update={"run_folder": folder, "settings": sparing}), WORKER)
    trained = load_weights(project.folder / "artifacts/train/narrow/0/weights.safetensors").model.state_dict()
    assert_same(trained, read_weights(folder))


def assert_one_point_an_epoch(project: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("yolov7")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    for name in ("train/box", "train/AP", "train/lr"):
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == list(range(1, EPOCHS + 1))
    assert run.info.status == "FINISHED"
