"""Many short trainings: from the command to the first step, and a matrix of variants and seeds.

It takes minutes, and is therefore not among the other benchmarks: python -m tests.bench.bench_many [--variants N]
[--seeds N] [--epochs N] [--ways each,turn,jobs] [--code FOLDER]. `--code` names another checkout of the project, such
as that of an earlier version, whose commands are measured instead. CPU time is that of all processes of the commands.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tests.integration.project import BIN, ROOT

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2): processes that lose their parent become children of this one
TRAIN = {"batch_size": 4, "image_size": 64, "loader_workers": 1, "optim": {"nominal_batch": 8}}
DATA = {"path": "yolov7/data", "synthetic": {"train_images": 16, "val_images": 4, "image_size": 64}}


def main() -> None:
    """Run the trainings in each way, and print wall-clock and CPU seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_many")
    parser.add_argument("--variants", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--ways", default="first,each,turn,jobs", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout whose commands are measured")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with TemporaryDirectory() as folder:
        commands = Commands(Path(folder), code=options.code.resolve())
        commands.prepare(variants=options.variants, seeds=options.seeds, epochs=options.epochs)
        for way in options.ways.split(","):
            with commands.measured(WAYS_TEXT[way]):
                WAYS[way](commands)
            commands.forget()


class Commands:
    """The commands of a checkout in a project of their own."""

    def __init__(self, folder: Path, *, code: Path) -> None:
        self.folder, self._note = folder, ""
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": path, "PYTHONPATH": str(code), "DVC_NO_ANALYTICS": "1"}
        self.pairs: list[tuple[str, str]] = []

    def prepare(self, *, variants: int, seeds: int, epochs: int) -> None:
        """Write params.yaml with models of different widths, and prepare the data."""
        names = {f"m{i}": {"spec": "nano", "scale": {"rule": "width", "width": 0.5 + i / 20}} for i in range(variants)}
        params: dict[str, Any] = {"data": DATA, "seeds": list(range(seeds)), "variants": names}
        params |= {"train": TRAIN | {"epochs": epochs}, "ray": {"cpus_per_worker": 1}}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))
        (self.folder / DATA["path"]).mkdir(parents=True)
        self.run("prepare")
        self.pairs = [(name, str(seed)) for name in names for seed in range(seeds)]

    def run(self, *arguments: str) -> None:
        subprocess.run(
            ["yolov7", *arguments], cwd=self.folder, env=self._environment, stdout=subprocess.DEVNULL, check=True
        )

    def first_step(self) -> None:
        """Start a training, and end it after its first step."""
        (variant, seed), *_ = self.pairs
        began, progress = time.monotonic(), self.folder / "runs" / variant / seed / "progress.json"
        process = subprocess.Popen(
            ["yolov7", "train", variant, "--seed", seed],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not progress.is_file() and process.poll() is None:
            time.sleep(0.01)
        self._note = f"{time.monotonic() - began:.1f} s to the first step; the rest is the end of the command"
        process.terminate()
        process.wait()

    @contextmanager
    def measured(self, case: str) -> Iterator[None]:
        self._note = ""
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        yield
        wall = time.monotonic() - began
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{case:60s} {wall:7.1f} s {cpu:7.1f} s of CPU  {self._note}".rstrip(), flush=True)

    def forget(self) -> None:
        for name in ("runs", "artifacts/train", "mlflow.db"):
            path = self.folder / name
            shutil.rmtree(path, ignore_errors=True)
            if path.is_file():
                path.unlink()


def _each(commands: Commands) -> None:
    for variant, seed in commands.pairs:
        commands.run("train", variant, "--seed", seed)


WAYS: dict[str, Callable[[Commands], None]] = {
    "first": Commands.first_step,
    "each": _each,
    "turn": lambda commands: commands.run("train"),
    "jobs": lambda commands: commands.run("train", "--jobs", "0"),
}
WAYS_TEXT = {
    "first": "from `yolov7 train VARIANT` to the first step",
    "each": "all, a command each, as `dvc repro` does",
    "turn": "all in turn, one command",
    "jobs": "all at the same time, one command (--jobs 0)",
}


if __name__ == "__main__":
    sys.exit(main())
