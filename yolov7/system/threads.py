"""How many threads a process computes with, and how they wait for each other. Imports torch only to set its threads."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

_WAITING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""How long a thread of OpenMP spins until it sleeps: some tenths of a millisecond (GNU), 1 ms (LLVM and Intel)."""

_WAITING_OF_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_COUNT = "OMP_NUM_THREADS"
_LOOKS, _LOOK_SECONDS = 3, 0.1
_SHARED = 0.5  # what several threads that wait for each other reach of their share of CPUs that others use too
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # of a second, the unit of /proc/stat
_COMPETING = (0, 2, 5, 6, 7)  # columns of /proc/stat: user, system, irq, softirq, steal; not nice, idle, iowait


@dataclass(frozen=True)
class Threads:
    """The threads that a process computes with, and why.

    Attributes:
        count: The number of threads.
        cpus: The CPUs that the process may use.
        busy: How many of them other processes kept busy when the number was chosen; None if it was not measured.
    """

    count: int
    cpus: int
    busy: float | None


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads of OpenMP sleep soon when they wait for each other.

    By default they spin for many milliseconds. If other processes are busy, the thread that is waited for may not run
    because one that waits occupies the CPU. OpenMP reads the variables when it is loaded, which is when torch is
    imported; processes that are started afterwards inherit them. Variables that the user has set keep their values.

    Args:
        environment: The environment variables, which are changed.
    """
    if not any(name in environment for name in _WAITING_OF_THE_USER):
        environment.update(_WAITING)


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the number of CPUs that this process may use: by its affinity, and by the quota of its control groups.

    Args:
        root: The root of the file system.

    Returns:
        At least 1. A quota that is not a whole number is rounded up.
    """
    quota = _quota(root)
    return _allowed_cpus() if math.isinf(quota) else max(1, min(_allowed_cpus(), math.ceil(quota)))


def wanted_threads(cpus: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of threads for a process that has a number of CPUs to itself.

    Args:
        cpus: The number of CPUs.
        environment: The environment variables. OMP_NUM_THREADS has precedence.

    Returns:
        At least 1.
    """
    first = environment.get(_COUNT, "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else max(1, cpus)


def choose_threads(most: int, *, cpus: int, busy: float) -> int:
    """Return the number of threads with which a computation ends first while other processes are busy.

    All threads have to finish a layer before the next one begins, so the slowest thread decides. If n threads and b
    busy processes share c CPUs, a CPU may have to run ceil((n + b) / c) of them by turns. The speed is therefore at
    most n / ceil((n + b) / c). Several threads reach about half of it if CPUs are shared, because the turns of one
    thread are not those of another. If several numbers are equally fast, the smallest one is best for the others.

    Args:
        most: The largest number.
        cpus: The number of CPUs c.
        busy: How many CPUs other processes keep busy.

    Returns:
        The number n of threads, from 1 to `most`.
    """
    others = round(busy)

    def speed(count: int) -> float:
        turns = math.ceil((count + others) / cpus)
        return count / turns * (_SHARED if count > 1 and turns > 1 else 1.0)

    return max(range(1, most + 1), key=lambda count: (speed(count), -count))


@final
class LoadMeter:
    """Measures how many of the CPUs that this process may use other processes keep busy.

    Processes of lower priority (nice) do not count, because they make room. Only Linux says what is needed; elsewhere
    the load is unknown.
    """

    def __init__(self, *, family: int | None = None, root: Path = Path("/")) -> None:
        """Begin to measure.

        Args:
            family: The id of a process that does not count as another one, nor do the processes that it has started;
                None is this process.
            root: The root of the file system.
        """
        self._processes = root / "proc"
        self._family = os.getpid() if family is None else family
        self._cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._began, self._own, self._all = time.monotonic(), self._own_seconds(), self._all_seconds()

    def busy(self) -> float | None:
        """Return the mean since the beginning, from 0 to the number of CPUs; None if it is unknown."""
        seconds = time.monotonic() - self._began
        if not self._all or seconds <= 0:
            return None
        others = self._all_seconds() - self._all - (self._own_seconds() - self._own)
        return min(max(0.0, others / seconds), float(len(self._cpus)))

    def _all_seconds(self) -> float:
        """Return the time in seconds that the CPUs were busy since the start of the system; 0 if it is unknown."""
        wanted = {f"cpu{number}" for number in self._cpus}
        rows = [row for row in map(str.split, _read_lines(self._processes / "stat")) if row and row[0] in wanted]
        return sum(int(row[1 + column]) for row in rows for column in _COMPETING) / _TICKS

    def _own_seconds(self) -> float:
        """Return the CPU time in seconds that the processes of the family have used."""
        ticks, parents = {}, {}
        for folder in self._processes.glob("[0-9]*"):
            for line in _read_lines(folder / "stat")[:1]:
                fields = line.rpartition(")")[2].split()  # the name before it may contain blanks
                process = int(folder.name)
                parents[process], ticks[process] = int(fields[1]), sum(map(int, fields[11:15]))
        return sum(ticks[one] for one in ticks if self._family in _ancestry(one, parents)) / _TICKS


def measure_busy_cpus(*, family: int | None = None) -> float | None:
    """Measure for a moment how many CPUs other processes keep busy all the time.

    Args:
        family: See `LoadMeter`.

    Returns:
        The smallest of some means, so that a process that has just started or ends does not count; None if the load is
        unknown.
    """
    means = []
    for _ in range(_LOOKS):
        meter = LoadMeter(family=family)
        time.sleep(_LOOK_SECONDS)
        means.append(meter.busy())
    return min((mean for mean in means if mean is not None), default=None)


def use_free_cpus(*, family: int | None = None) -> Threads:
    """Let torch compute in this process with as many threads as other processes leave room for.

    Call it before engines are opened, which take over the number. In float32, the last digits of a result depend on
    the number of threads. A training may therefore call it once only, when it begins. If OMP_NUM_THREADS is set,
    nothing is changed.

    Args:
        family: See `LoadMeter`.

    Returns:
        What was chosen: at most one thread for each CPU, and not more than torch has used before, which by default is
        one for each core.
    """
    import torch

    cpus = usable_cpus()
    if states_threads():
        return Threads(torch.get_num_threads(), cpus, None)
    most = min(_default_threads(), cpus)
    busy = measure_busy_cpus(family=family)
    count = choose_threads(most, cpus=_allowed_cpus(), busy=busy or 0.0)
    torch.set_num_threads(count)
    return Threads(count, cpus, busy)


def states_threads(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the user has stated the number of threads.

    Args:
        environment: The environment variables.
    """
    return bool(environment.get(_COUNT))


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # a process that has ended, or another system
        return []


def _ancestry(process: int, parents: Mapping[int, int]) -> Iterator[int]:
    """Yield a process, the process that started it, and so on."""
    while process in parents:
        yield process
        process = parents[process]


def _allowed_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _default_threads() -> int:
    """Return how many threads torch uses by itself; remembered from before the number was changed."""
    import torch

    return torch.get_num_threads()


def _quota(root: Path) -> float:
    """Return the smallest CPU quota of the control groups that this process is in; infinity without one."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        parts = [part for part in group.split("/") if part not in {"", ".."}]
        levels = ["/".join(parts[:depth]) for depth in range(len(parts) + 1)]
        if not controllers:
            quotas += [_quota_v2(root / "sys/fs/cgroup" / level) for level in levels]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_v1(root / "sys/fs/cgroup/cpu" / level) for level in levels]
    return min(quotas)


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    except OSError:
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float:
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    try:
        quota, period = (int((folder / name).read_text(encoding="ascii")) for name in names)
    except OSError:
        return math.inf
    return quota / period if quota > 0 else math.inf
