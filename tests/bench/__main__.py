"""All benchmarks: python -m tests.bench [NAME ...] [--output PATH] [--repeats N] [--cpu] [--busy N] | --markdown

Each row is kept as JSON as soon as it is measured. Each case runs in a process of its own, so that one that fails
leaves the others as they are. Cases that are measured again replace their earlier rows. `--markdown` measures nothing;
it writes all that was kept into the page about performance.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from tests.bench.tables import PAGE, date, keep, markdown_ratios, markdown_rows, read, write_between
from yolov7.system.precision import precision_name, resolve_precision

BUSY_CASES = ("step", "loader-wait", "inference")  # where other processes make a difference of their own
FOLDER = Path("artifacts")
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


def main() -> None:
    """Print each row when it is measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all where none is named")
    parser.add_argument("--output", type=Path, help="by default artifacts/bench.json, or artifacts/bench-busy-N.json")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="seconds of this process, where others share the machine")
    parser.add_argument(
        "--busy", type=int, default=0, metavar="N", help=f"beside N busy processes; default {', '.join(BUSY_CASES)}"
    )
    parser.add_argument("--markdown", action="store_true", help=f"write the kept measurements into {PAGE}")
    options = parser.parse_args()
    if options.markdown:
        _write_page(PAGE, FOLDER)
        return
    if unknown := set(options.names) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    names = options.names or (BUSY_CASES if options.busy else CASES)
    output = options.output or FOLDER / (f"bench-busy-{options.busy}.json" if options.busy else "bench.json")
    print(f"{'case':76s}{'plain':>11s}{'ours':>11s}{'ratio':>8s}", flush=True)
    with busy_processes(options.busy):
        for name in names:
            process = multiprocessing.get_context("spawn").Process(target=_measure, args=(name, options, output))
            process.start()
            process.join()
            if process.exitcode:
                row = Row(name, figure=f"ended with exit code {process.exitcode}; the rows before it are kept")
                print(row.line(), flush=True)
    print(f"kept in {output}")


def _measure(name: str, options: argparse.Namespace, output: Path) -> None:
    """Measure one case; keep each row in the place of those of an earlier measurement of the case."""
    facts = {**_machine(), "clock": "process" if options.cpu else "wall", "busy": options.busy}
    kept = [row for row in read(output)["rows"] if row["name"] != name] if output.is_file() else []
    watch = Stopwatch(options.repeats, time.process_time if options.cpu else time.perf_counter)
    for row in CASES[name](watch):
        print(row.line(), flush=True)
        kept.append({"name": name, **row.as_dict()})
        keep(output, facts, sorted(kept, key=lambda row: list(CASES).index(row["name"])))


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Let this number of processes compute without end meanwhile."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _write_page(page: Path, folder: Path) -> None:
    """Write the kept measurements into a page; those of `make bench-gpu` only if there was a GPU."""
    results = [
        read(path) for path in [folder / "bench.json", *sorted(folder.glob("bench-busy-*.json"))] if path.is_file()
    ]
    gpu = [result for path in folder.glob("bench-gpu.json") if "memory" in (result := read(path))]
    if results:
        write_between(page, "figures of make bench", markdown_ratios(results))
    for result in gpu:
        write_between(page, "figures of make bench-gpu", markdown_rows(result))
    print(f"written into {page}: {len(results)} measurements of make bench, {len(gpu)} of make bench-gpu")


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


if __name__ == "__main__":
    main()
