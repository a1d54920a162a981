"""All benchmarks as one table, kept as JSON: python -m tests.bench [NAME ...] [--output PATH] [--repeats N] [--cpu]"""

from __future__ import annotations

import argparse
import json
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
)
from tests.bench.comparison import Row, Stopwatch
from yolov7.system.precision import precision_name, resolve_precision

CASES: dict[str, Callable[[Stopwatch], Iterator[Row]]] = {
    "loss": bench_loss.rows,
    "assigners": bench_assigners.rows,
    "loss-memory": bench_loss.memory,
    "step": bench_step.rows,
    "step-compiled": bench_step.compiled,
    "method": bench_method.rows,
    "loader": bench_loader.rows,
    "cache": bench_loader.cache,
    "loader-wait": bench_loader.wait,
    "nms": bench_nms.rows,
    "coco": bench_coco.rows,
    "inference": bench_inference.rows,
    "engines": bench_engines.rows,
}


def main() -> None:
    """Prints each row when it is measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all where none is named")
    parser.add_argument("--output", type=Path, default=Path("artifacts/bench.json"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="seconds of this process, where others share the machine")
    options = parser.parse_args()
    if unknown := set(options.names) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    print(f"{'case':76s}{'plain':>11s}{'ours':>11s}{'ratio':>8s}")
    rows, stopwatch = [], Stopwatch(options.repeats, time.process_time if options.cpu else time.perf_counter)
    for name in options.names or CASES:
        for row in CASES[name](stopwatch):
            print(row.line(), flush=True)
            rows.append({"name": name, **row.as_dict()})
    _keep(options.output, rows, clock="process" if options.cpu else "wall")


def _keep(path: Path, rows: list[dict[str, object]], *, clock: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "clock": clock,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "precision": precision_name(resolve_precision("auto", torch.device("cpu"))),
    }
    path.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"kept in {path}")


if __name__ == "__main__":
    main()
