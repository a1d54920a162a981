"""All benchmarks: python -m tests.bench [NAME ...] [--output PATH] [--repeats N] [--cpu] [--busy N] | --markdown

Each row is kept as JSON as soon as it is measured. Each case runs in a process of its own, so that one that fails
leaves the others as they are. Cases that are measured again replace their earlier rows. `--markdown` measures nothing;
it writes all that was kept into the page about performance.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.cases import CASES, measure
from tests.bench.comparison import Row
from tests.bench.tables import PAGE, markdown_ratios, markdown_rows, read, write_between

BUSY_CASES = ("step", "loader-wait", "inference")  # where other processes make a difference of their own
FOLDER = Path("artifacts")


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
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, options, output))
            process.start()
            process.join()
            if process.exitcode:
                row = Row(name, figure=f"ended with exit code {process.exitcode}; the rows before it are kept")
                print(row.line(), flush=True)
    print(f"kept in {output}")


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


if __name__ == "__main__":
    main()
