"""A stage ends when the DVC process that started it is killed, from its first moment on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.project import ROOT

STAGE = """
import os, sys, time
from pathlib import Path
{before}
from pipeline.ray.parent_process import end_with_dvc
end_with_dvc()
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(120)
"""
BUSY = "Path(sys.argv[1] + '.busy').touch(); time.sleep(3)"  # imports that take their time
DVC = """
import os, subprocess, sys
subprocess.run(sys.argv[1:], env=os.environ | {"DVC_STAGE": "train"})
"""


def started(tmp_path: Path, *, before: str = "", shell: bool) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a process that starts a stage, as DVC does, with or without a shell in between."""
    pid_file = tmp_path / "pid"
    stage = [sys.executable, "-c", STAGE.format(before=before), str(pid_file)]
    command = ["sh", "-c", '"$@"; true', "sh", *stage] if shell else stage
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    dvc = subprocess.Popen(
        [sys.executable, "-c", DVC, *command], env=environment | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    return dvc, pid_file


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.is_file() or (path.suffix != ".busy" and not path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stage_processes(pid_file: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if str(pid_file) in _command(process)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("shell", [False, True], ids=["directly below DVC", "with a shell in between"])
def test_a_stage_ends_when_dvc_is_killed(tmp_path: Path, shell: bool) -> None:
    dvc, pid_file = started(tmp_path, shell=shell)
    wait_for(pid_file)
    stage = psutil.Process(int(pid_file.read_text()))
    time.sleep(0.1)
    assert stage.is_running()
    dvc.kill()
    dvc.wait()
    _, alive = psutil.wait_procs([stage], timeout=30)
    assert alive == []


def test_a_stage_ends_when_dvc_was_killed_before_it_could_watch(tmp_path: Path) -> None:
    dvc, pid_file = started(tmp_path, before=BUSY, shell=True)
    wait_for(pid_file.with_suffix(".busy"))
    dvc.kill()
    dvc.wait()
    _, alive = psutil.wait_procs(stage_processes(pid_file), timeout=60)
    assert alive == []


def test_a_stage_without_dvc_runs_on(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    code = "from pipeline.ray.parent_process import end_with_dvc; end_with_dvc(); import threading; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(threading.active_count())"],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


def test_the_command_line_watches_before_it_does_anything_else(tmp_path: Path) -> None:
    code = "import os, signal; os.kill = lambda pid, what: os._exit(7 if what == signal.SIGTERM else 8)\n"
    code += "import pipeline.ray.parent_process as room; room._find_dvc = lambda: None\n"
    code += "import pipeline.cli.main as cli, time; cli.app = lambda: time.sleep(60); cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"DVC_STAGE": "train", "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 7
