"""Measure a training step and a detection beside 0, 1 and 4 busy processes, with the threads of torch and with ours.

Each measurement is a process of its own, because OpenMP reads its settings once. Plain and ours take turns. A process
prepares everything first; the busy processes are started just before it measures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from tests.bench.comparison import Row, Stopwatch
from yolov7.system.threads import bound_spinning, usable_cpus

LOADS = (0, 1, 4)
CPUS = 2
WORK = {"training step, batch 8, 320 px": 4, "detection of 4 images, 640 px": 3}  # and the number of samples of each
BUSY = "import os, sys\nos.sched_setaffinity(0, set(map(int, sys.argv[1:])))\nwhile True: pass"
SETTLE_SECONDS = 0.3  # until the scheduler has placed the busy processes


def rows(watch: Stopwatch) -> Iterator[Row]:
    """The median of each setting, for all loads."""
    for load in LOADS:
        times: dict[str, list[list[float]]] = {"plain": [], "ours": []}
        for _ in range(watch.at_most(2).repeats):
            for setting, runs in times.items():
                runs.append(_measure(setting, load))
        for place, name in enumerate(WORK):
            plain, ours = (_median([one for run in runs for one in run[place]]) for runs in times.values())
            chosen = {int(run[-1][0]) for run in times["ours"]}
            threads = " or ".join(map(str, sorted(chosen)))
            case = f"yolov7-tiny, {name}, beside {load} busy {'process' if load == 1 else 'processes'}"
            yield Row(case, plain, ours, f"{CPUS} threads that spin; {threads} that sleep soon")


def _measure(setting: str, load: int) -> list[list[float]]:
    """Return the seconds of every sample of each work, and last the number of threads."""
    program = [sys.executable, "-m", __name__, setting]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(setting)
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with ExitStack() as stack:
            for _ in range(load):
                busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY, *map(str, _cpus())]))
                stack.callback(busy.kill)
            time.sleep(SETTLE_SECONDS)
            child.stdin.write("\n")
            child.stdin.flush()
            return [[float(word) for word in child.stdout.readline().split()] for _ in range(len(WORK) + 1)]


def _cpus() -> list[int]:
    """The CPUs that all processes share."""
    return sorted(os.sched_getaffinity(0))[:CPUS]


def _environment(setting: str) -> Mapping[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "KMP_", "OMP_"))}
    if setting == "ours":
        bound_spinning(environment)
    return environment


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _child(setting: str) -> None:
    import torch

    from tests.bench import bench_step
    from yolov7.nn.fuse import fuse
    from yolov7.nn.model import DetectionModel
    from yolov7.spec.spec_files import load_spec
    from yolov7.system.memory import keep_memory
    from yolov7.system.precision import autocast, resolve_precision
    from yolov7.system.threads import use_free_cpus

    cpu = torch.device("cpu")
    dtype = resolve_precision("auto", cpu)
    torch.set_num_threads(CPUS)
    keep_memory()
    bench_step.BATCH = 8
    step = bench_step.Step(dtype=dtype, channels_last=True)
    model = fuse(DetectionModel(load_spec("yolov7-tiny"), num_classes=80).eval()).to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, 640, 640).contiguous(memory_format=torch.channels_last)

    def detect() -> None:
        with torch.inference_mode(), autocast(dtype, cpu):
            for _ in range(4):
                model.decode(model(image))

    step()
    detect()
    print("ready", flush=True)
    sys.stdin.readline()
    for work, count in zip((step, detect), WORK.values(), strict=True):
        if work is step and setting == "ours":
            use_free_cpus()
        print(*(_seconds(work) for _ in range(count)), flush=True)
    print(torch.get_num_threads(), flush=True)


def _seconds(work: object) -> float:
    assert callable(work)
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    os.sched_setaffinity(0, _cpus())
    assert usable_cpus() <= CPUS
    _child(sys.argv[1])
