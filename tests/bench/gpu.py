"""Measure this machine's GPU in ten minutes: python -m tests.bench.gpu [CASE ...] [--output PATH] [--seconds N]

It needs torch, NumPy, OpenCV, safetensors and pydantic, and nothing else. Each case runs in a process of its own, so
that a failure or a case without an end leaves the others as they are. The rows are printed, and are kept as JSON and as
a table in Markdown beside it. Without a GPU the same cases run at tiny sizes on the CPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from tests.bench.comparison import Row
from tests.bench.gpu_cases import CASES
from tests.bench.gpu_setup import Setup, describe, find_setup
from tests.bench.tables import date, keep, markdown_rows, read

LEAST_SECONDS = 15.0  # a case with less time left is not started
Answer = tuple[str, object]


def main() -> None:
    """Run the cases; each row is printed when it is measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu")
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all if none is named")
    parser.add_argument("--output", type=Path, default=Path("artifacts/bench-gpu.json"))
    parser.add_argument("--seconds", type=float, default=570.0, help="time for all cases together")
    options = parser.parse_args()
    if unknown := set(options.names) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    until = time.monotonic() + options.seconds
    facts, rows = {"date": date()}, []
    for kind, value in _answers(_describe, seconds=60.0):
        if kind == "error":
            raise SystemExit(f"the device cannot be used: {value}")
        facts |= value  # type: ignore[operator]
    is_gpu = "memory" in facts
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    names = options.names or [name for name, case in CASES.items() if is_gpu or case.is_for_cpu]
    for name in names:
        for row in _run(name, until=until):
            print(row.line(), flush=True)
            rows.append({"name": name, **row.as_dict()})
    keep(options.output, facts, rows)
    table = options.output.with_suffix(".md")
    table.write_text("\n".join(markdown_rows(read(options.output))) + "\n", encoding="utf-8")
    print(f"kept in {options.output} and {table}")


def _run(name: str, *, until: float) -> Iterator[Row]:
    """Yield the rows of a case; an error becomes a row."""
    left = until - time.monotonic()
    if left < LEAST_SECONDS:
        yield Row(name, figure="left out: no time is left")
        return
    for kind, value in _answers(_measure, name, seconds=min(left, CASES[name].seconds)):
        if kind == "row":
            assert isinstance(value, Row)
            yield value
        else:
            yield Row(name, figure=f"failed: {value}")


def _answers(work: object, *arguments: object, seconds: float) -> Iterator[Answer]:
    """Yield what `work` sends from its own process; after `seconds` the process and its children are ended."""
    context = multiprocessing.get_context("fork")  # torch is imported once; this process never uses the GPU
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_begin, args=(work, there, *arguments))
    process.start()
    there.close()
    until = time.monotonic() + seconds
    while here.poll(max(0.0, until - time.monotonic())):
        try:
            yield here.recv()
        except EOFError:
            process.join()
            if process.exitcode:
                yield "error", f"the process ended with {process.exitcode}"
            return
    yield "error", f"not complete after {seconds:.0f} s"
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()


def _begin(work: object, answers: Connection, *arguments: object) -> None:
    os.setsid()
    try:
        work(find_setup(), answers, *arguments)  # type: ignore[operator]
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        answers.send(("error", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"))


def _describe(setup: Setup, answers: Connection) -> None:
    answers.send(("facts", describe(setup)))


def _measure(setup: Setup, answers: Connection, name: str) -> None:
    for row in CASES[name].rows(setup):
        answers.send(("row", row))


if __name__ == "__main__":
    main()
