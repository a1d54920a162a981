"""Locks: a stage cannot run twice at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline.artifacts.files
from pipeline.artifacts.files import prepared_data_lock, stage_lock
from yolov7.errors import ArtifactError
from yolov7.system.locks import exclusive


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline.artifacts.files, "_PATIENCE", 0.0)


def test_a_second_start_of_a_stage_is_refused_in_one_line() -> None:
    with stage_lock("train", "nano", 0):
        expected = rf"^the stage `train nano 0` is in use by another process \({os.getpid()}\); wait for it, or end it$"
        with pytest.raises(ArtifactError, match=expected), stage_lock("train", "nano", 0):
            pass
        with stage_lock("train", "nano", 1), stage_lock("train", "deep", 0), stage_lock("benchmark"):
            pass
    with stage_lock("train", "nano", 0):
        pass


def test_a_lock_waits_for_as_long_as_it_is_told() -> None:
    holder = (
        "import fcntl, time; f = open('held', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(0.3)"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with (
            pytest.raises(ArtifactError, match="held is in use by another process"),
            exclusive(Path("held"), what="held"),
        ):
            pass
        with exclusive(Path("held"), what="held", patience=30.0):
            assert Path("held").read_text() == str(os.getpid())


def test_a_lock_ends_with_the_process_that_is_killed() -> None:
    holder = "import fcntl, os; f = open('held', 'w'); fcntl.flock(f, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", holder], check=False).returncode == -9
    with exclusive(Path("held"), what="held"):
        pass


def test_stages_that_read_the_data_share_them_and_refuse_prepare_without_naming_an_old_process() -> None:
    with prepared_data_lock(exclusively=True):
        pass
    with prepared_data_lock(exclusively=False), prepared_data_lock(exclusively=False):
        expected = r"^the folder artifacts/prepare is in use by another process; wait for it, or end it$"
        with pytest.raises(ArtifactError, match=expected), prepared_data_lock(exclusively=True):
            pass
    with prepared_data_lock(exclusively=True):
        pass
