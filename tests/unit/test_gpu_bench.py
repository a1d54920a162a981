"""The benchmark of a GPU: it runs with few packages, on the CPU at tiny sizes, and a case that fails stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.bench import tables
from tests.bench.__main__ import busy_processes
from tests.bench.gpu import _answers
from tests.bench.gpu_cases import CASES
from tests.bench.gpu_setup import SPECS, Setup, load
from yolov7.spec.spec_files import load_spec, spec_to_json

ROOT = Path(__file__).parents[2]
# What an image of CUDA with torch, NumPy, OpenCV, safetensors, pydantic and typer has, with what these require.
BARE = """
import importlib, pkgutil, sys

ALLOWED = {
    "torch", "torchgen", "functorch", "triton", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec",
    "filelock", "setuptools", "numpy", "cv2", "safetensors", "pydantic", "pydantic_core", "annotated_types",
    "typing_extensions", "typing_inspection", "typer", "click", "shellingham", "yolov7", "tests",
}

class Hide:  # a finder that finds no other package
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        is_allowed = top in ALLOWED or top in sys.stdlib_module_names or top.startswith("_")
        return self.finder.find_spec(name, path, target) if is_allowed else None

sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""
IMPORT_ALL = """
import yolov7
for module in pkgutil.walk_packages(yolov7.__path__, "yolov7."):
    if module.name != "yolov7.system.strict_yaml":  # the parser of YAML files
        importlib.import_module(module.name)
"""


def run_bare(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BARE + code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FEW = ("equality", "inference", "step-wide", "one-rank", "step-graphs")


@pytest.mark.parametrize("names", [FEW, pytest.param((), id="all", marks=pytest.mark.slow)])
def test_library_and_benchmark_run_with_few_packages(names: tuple[str, ...], tmp_path: Path) -> None:
    """Import every module of the library, then measure on the CPU."""
    output = tmp_path / "figures.json"
    told = run_bare(IMPORT_ALL + "from tests.bench.gpu import main; main()", *names, "--output", str(output))
    result = json.loads(output.read_text(encoding="utf-8"))
    assert "say nothing about a GPU" in told
    expected = set(names or (name for name, case in CASES.items() if case.is_for_cpu))
    assert {row["name"] for row in result["rows"]} == expected
    assert not [row for row in result["rows"] if "failed" in (row["figure"] or "")]
    assert [row["figure"] for row in result["rows"] if row["name"] == "equality"] == ["equal results"] * 2
    table = output.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    assert len([line for line in table if line.startswith("| ")]) == 1 + len(result["rows"])


def test_a_case_that_fails_ends_or_hangs_is_reported() -> None:
    for work, expected in (
        (_fail, ["row", ("error", "RuntimeError: no such kernel")]),
        (_die, ["row", ("error", "the process ended with 3")]),
        (_hang, ["row", ("error", "not complete after 1 s")]),
    ):
        began = time.monotonic()
        first, last = _answers(work, seconds=1.0 if work is _hang else 60.0)
        assert [first[0], last] == expected
        assert time.monotonic() - began < 60


def _fail(_: Setup, answers: Connection) -> None:
    answers.send(("row", 1))
    raise RuntimeError("no such kernel\nmore about it")


def _die(_: Setup, answers: Connection) -> None:
    answers.send(("row", 1))
    os._exit(3)


def _hang(_: Setup, answers: Connection) -> None:
    answers.send(("row", 1))
    time.sleep(600)


def test_its_specifications_are_the_packaged_ones() -> None:
    """To write them anew, set each value of the file to the JSON of `spec_to_json`."""
    for name, written in json.loads(SPECS.read_text(encoding="utf-8")).items():
        assert written == json.loads(spec_to_json(load_spec(name)))
        assert load(name) == load_spec(name)


def test_measurements_become_one_table(tmp_path: Path) -> None:
    page, machine = tmp_path / "page.md", {"date": "2026-01-02 03:04 UTC", "cpu": "A", "cores": 2}
    rows = [
        {"case": "step", "plain_s": 2.0, "ours_s": 0.5, "ratio": 4.0, "figure": None},
        {"case": "wait", "plain_s": None, "ours_s": None, "ratio": None, "figure": "1.0% of 9 s"},
    ]
    for busy, count in ((0, 2), (4, 1)):
        tables.keep(tmp_path / f"{busy}.json", {**machine, "busy": busy}, rows[:count])
    results = [tables.read(tmp_path / f"{busy}.json") for busy in (0, 4)]
    page.write_text("# Title\n\n<!-- figures -->\nold\n<!-- end of figures -->\n\nEnd.\n", encoding="utf-8")
    for _ in range(2):  # a second time it replaces what it wrote
        tables.write_between(page, "figures", tables.markdown_ratios(results))
    assert page.read_text(encoding="utf-8").splitlines() == [
        "# Title",
        "",
        "<!-- figures -->",
        "- 2026-01-02 03:04 UTC, quiet, cpu A, cores 2",
        "- 2026-01-02 03:04 UTC, beside 4 busy processes, cpu A, cores 2",
        "",
        "| case | quiet | beside 4 busy processes |",
        "|---|---:|---:|",
        "| step | 4.00 (2000.0 ms : 500.0 ms) | 4.00 (2000.0 ms : 500.0 ms) |",
        "| wait | 1.0% of 9 s |  |",
        "<!-- end of figures -->",
        "",
        "End.",
    ]


def test_busy_processes_run_meanwhile_and_end() -> None:
    with busy_processes(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert [process.returncode for process in processes] == [-9, -9]


def test_a_case_of_make_bench_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.bench",
        "loss-memory",
        "--repeats",
        "1",
        "--output",
        tmp_path / "bench.json",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (row,) = tables.read(tmp_path / "bench.json")["rows"]
    assert row["name"] == "loss-memory"
    assert "MiB" in row["figure"]
