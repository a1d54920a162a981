"""The project in a folder of its own, with parameters that train in seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.experiment import Experiment

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CODE = ("yolov7", "pipeline", "dvc.yaml", "experiments", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore")
SMALL: dict[str, Any] = {
    "data": {"path": "yolov7/data/synthetic", "synthetic": {"train_images": 16, "val_images": 8, "image_size": 128}},
    "seeds": [0],
    "variants": {"nano": {"spec": "nano"}, "deep": {"spec": "nano", "scale": {"depth": 2}}},
    "train": {"epochs": 1, "batch_size": 8, "image_size": 128},
    "reparam": {"images": 4},
    "evaluate": {"examples": 4},
    "benchmark": {"rounds": 3, "seconds_per_round": 0.05, "warmup_seconds": 0},
    "tracking": {},
}


class Project:
    """A copy of the project, as a git repository or as an unpacked archive, with parameters that train in seconds."""

    def __init__(self, folder: Path, *, git: bool) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        for name in CODE:
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, target)
        self.write(SMALL)
        if git:
            self.run("git", "init", "--quiet")
            self.commit("begin")
        else:
            self.run("dvc", "config", "--local", "core.no_scm", "true")

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run(
            "git",
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "commit",
            "--quiet",
            "--allow-empty",
            "-m",
            message,
        )

    def write(self, params: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))

    def run(self, *command: str, **environment: str) -> str:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"PATH": path, "PYTHONPATH": str(self.folder), "DVC_NO_ANALYTICS": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self) -> list[str]:
        """The stages that ran, apart from `resolve`, which always runs."""
        ran = re.findall(r"Running stage '([^']+)'", self.run("dvc", "repro"))
        assert ran[0] == "resolve"
        return ran[1:]

    def json(self, path: str) -> Any:
        return json.loads((self.folder / "artifacts" / path).read_text())


def run_to_evaluate(experiment: Experiment) -> None:
    """Run all stages up to `evaluate` in this process and the current folder, with the first seed."""
    from pipeline.commands import run_stages as commands  # imports much that most users of this module do not need

    chosen = [(variant, experiment.seeds[0]) for variant in experiment.variants.values()]
    commands.run_resolve(experiment)
    commands.run_prepare(experiment)
    commands.run_train(experiment, chosen)
    commands.run_reparam(experiment, chosen)
    commands.run_evaluate(experiment, chosen)
