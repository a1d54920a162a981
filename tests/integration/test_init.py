"""A project outside of the repository: `yolov7 init` in an empty folder, and the whole pipeline there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.integration.project import BIN, ROOT, SMALL

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pipeline_runs_in_an_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my próject"
    assert "ran `dvc init --quiet --no-scm`" in run(tmp_path, "yolov7", "init", str(folder))
    small = SMALL | {"data": SMALL["data"] | {"path": "data"}, "variants": {"nano": {"spec": "nano"}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(small))
    assert "Running stage 'tables'" in run(folder, "dvc", "repro")
    assert (folder / "artifacts/tables/index.html").is_file()
    assert sorted(path.stem for path in (folder / "artifacts/resolve/code").iterdir())[0] == "benchmark"
    assert re.findall(r"Running stage '([^']+)'", run(folder, "dvc", "repro")) == ["resolve"]
