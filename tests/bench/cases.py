"""The cases of the benchmark. Each is measured in a separate process.

A process that is spawned imports this module; it cannot import `__main__`.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.bench import (
    bench_assigners,
    bench_coco,
    bench_engines,
    bench_inference,
    bench_loader,
    bench_loss,
    bench_method,
    bench_nms,
    bench_step,
    bench_threads,
)
from tests.bench.comparison import Row, Stopwatch
from tests.bench.tables import date, keep, read
from yolov7.system.precision import precision_name, resolve_precision

CASES: dict[str, Callable[[Stopwatch], Iterator[Row]]] = {
    "loss": bench_loss.rows,
    "assigners": bench_assigners.rows,
    "loss-memory": bench_loss.memory,
    "step": bench_step.rows,
    "step-parts": bench_step.parts,
    "step-compiled": bench_step.compiled,
    "method": bench_method.rows,
    "loader": bench_loader.rows,
    "cache": bench_loader.cache,
    "loader-wait": bench_loader.wait,
    "nms": bench_nms.rows,
    "coco": bench_coco.rows,
    "inference": bench_inference.rows,
    "engines": bench_engines.rows,
    "threads": bench_threads.rows,
}


def measure(name: str, options: argparse.Namespace, output: Path) -> None:
    """Measure one case, and replace the rows of its earlier measurement in the output file.

    Args:
        name: The name of the case.
        options: Of the command line: `repeats`, `cpu` and `busy`.
        output: The file of the rows.
    """
    facts = {**_machine(), "clock": "process" if options.cpu else "wall", "busy": options.busy}
    kept = [row for row in read(output)["rows"] if row["name"] != name] if output.is_file() else []
    watch = Stopwatch(options.repeats, time.process_time if options.cpu else time.perf_counter)
    for row in CASES[name](watch):
        print(row.line(), flush=True)
        kept.append({"name": name, **row.as_dict()})
        keep(output, facts, sorted(kept, key=lambda row: list(CASES).index(row["name"])))


def _machine() -> dict[str, object]:
    names = (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name"))
    return {
        "date": date(),
        "cpu": next(names, platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precision": precision_name(resolve_precision("auto", torch.device("cpu"))),
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
