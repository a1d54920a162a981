"""How many threads compute, and how long they spin: by affinity, control groups, other processes, and the user."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from yolov7.system import threads
from yolov7.system.threads import (
    LoadMeter,
    Threads,
    bound_spinning,
    choose_threads,
    usable_cpus,
    use_free_cpus,
    wanted_threads,
)
from yolov7.training.checkpoint import Checkpoint
from yolov7.training.conditions import settle_threads
from yolov7.training.worker import Worker

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads files of Linux")
TICKS = os.sysconf("SC_CLK_TCK")


def test_threads_spin_for_a_bounded_time() -> None:
    environment = {"PATH": "/bin"}
    bound_spinning(environment)
    assert environment == {"PATH": "/bin", "GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY"])
def test_how_threads_wait_is_left_to_a_user_who_says_it(name: str) -> None:
    environment = {name: "PASSIVE"}
    bound_spinning(environment)
    assert environment == {name: "PASSIVE"}


@pytest.mark.parametrize(
    ("value", "count"), [(None, 4), ("2", 2), (" 3,2 ", 3), ("", 4), ("0", 4), ("many", 4), ("64", 64)]
)
def test_the_number_of_threads_that_the_user_states_has_precedence(value: str | None, count: int) -> None:
    environment = {} if value is None else {"OMP_NUM_THREADS": value}
    assert wanted_threads(4, environment) == count


def test_a_process_with_less_than_a_cpu_has_a_thread() -> None:
    assert wanted_threads(0, {}) == 1


@pytest.mark.parametrize(
    ("cpus", "busy", "count"),
    [
        (2, 0.0, 2),
        (2, 0.3, 2),  # a browser in the background
        (2, 1.0, 1),  # the second thread would run in turns with the other process, and the first would wait for it
        (2, 2.0, 1),  # two threads would wait for each other while the other processes have their turns
        (8, 1.0, 7),
        (8, 4.0, 4),
        (8, 6.0, 2),
        (8, 8.0, 8),  # eight threads get four times the share of one, and reach half of it
        (1, 0.0, 1),
        (1, 1.0, 1),
    ],
)
def test_the_number_of_threads_follows_the_cpus_that_are_free(cpus: int, busy: float, count: int) -> None:
    assert choose_threads(cpus, cpus=cpus, busy=busy) == count


def test_a_quota_limits_threads_and_not_the_cpus_that_are_shared() -> None:
    assert choose_threads(4, cpus=64, busy=40.0) == 4
    assert choose_threads(4, cpus=64, busy=62.0) == 2


@needs_linux
@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ("0::/", {"sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        ("0::/", {"sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
        ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "100000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 1),
        ("0::/../../a", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),  # as a container with its own namespace shows it
        (
            "4:memory:/m\n3:cpu,cpuacct:/c\n0::/",
            {"sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "150000", "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "200000"},
            1,
        ),
        (
            "1:cpu:/",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            None,
        ),
        (None, {}, None),
    ],
)
def test_cpus_are_counted_by_affinity_and_control_groups(
    tmp_path: Path, groups: str | None, files: dict[str, str], cpus: int | None
) -> None:
    if groups is not None:
        files = {**files, "proc/self/cgroup": groups}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert usable_cpus(tmp_path) == (len(os.sched_getaffinity(0)) if cpus is None else cpus)


@needs_linux
def test_a_quota_of_one_and_a_half_cpus_counts_as_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for name, content in {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cpus(tmp_path) == 2


def cpu_line(name: str, *, user: float, nice: float = 0.0) -> str:
    return " ".join([name, *(str(round(value * TICKS)) for value in (user, nice, 0, 0, 0, 0, 0, 0, 0, 0))])


def process_line(process: int, *, parent: int, user: float) -> str:
    return f"{process} (a) b) S {parent} {' 0' * 9} {round(user * TICKS)} 0 0 0 20 0 1"


@needs_linux
def test_the_load_of_others_counts_on_the_own_cpus_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may use two of four CPUs. A low priority, its own work and that of its children do not count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2})
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def pass_seconds(seconds: float) -> None:
        now[0] += seconds
        lines = [cpu_line("cpu", user=9 * now[0]), *(cpu_line(f"cpu{k}", user=now[0]) for k in (0, 2, 3))]
        content = {"stat": "\n".join([*lines, cpu_line("cpu1", user=7.0, nice=now[0]), "intr 3"])}
        content["10/stat"] = process_line(10, parent=1, user=0.1 * now[0])
        content["11/stat"] = process_line(11, parent=10, user=0.2 * now[0])
        content["12/stat"] = process_line(12, parent=11, user=0.3 * now[0])
        content["13/stat"] = process_line(13, parent=1, user=0.4 * now[0])
        for name, text in content.items():
            (tmp_path / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "proc" / name).write_text(text + "\n")

    pass_seconds(0)
    meters = {family: LoadMeter(family=family, root=tmp_path) for family in (10, 12, 99)}
    pass_seconds(10)
    busy = {family: meter.busy() for family, meter in meters.items()}
    assert busy == {family: pytest.approx(value, abs=0.01) for family, value in ((10, 0.4), (12, 0.7), (99, 1.0))}


@needs_linux
def test_a_busy_process_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        meter = LoadMeter()
        for _ in range(200):
            time.sleep(0.05)
            if (meter.busy() or 0.0) > 0.2:
                break
        other.kill()
    assert (meter.busy() or 0.0) > 0.2


def test_a_system_that_says_nothing_about_its_load_has_an_unknown_one(tmp_path: Path) -> None:
    assert LoadMeter(root=tmp_path).busy() is None


SPINNING = """
import os, sys
from yolov7.system.threads import bound_spinning
assert "torch" not in sys.modules
bound_spinning()
os.environ["OMP_DISPLAY_ENV"] = "VERBOSE"
import torch
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux only")
def test_the_openmp_of_torch_reads_the_bound() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP", "KMP"))}
    shown = subprocess.run(
        [sys.executable, "-c", SPINNING], check=True, capture_output=True, text=True, env=environment
    ).stderr
    assert "GOMP_SPINCOUNT = '10000'" in shown


COMMAND_LINE = """
import sys
from pipeline.cli import main
main.app = lambda: None
assert "torch" not in sys.modules
main.main()
import os
print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


def test_the_command_line_bounds_spinning_before_torch_is_imported() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP", "KMP"))}
    program = [sys.executable, "-c", COMMAND_LINE]
    shown = subprocess.run(program, check=True, capture_output=True, text=True, env=environment).stdout
    assert shown.split() == ["10000", "False"]


def threads_of(monkeypatch: pytest.MonkeyPatch, *, busy: float | None, stated: str = "") -> Threads:
    monkeypatch.setattr(threads, "measure_busy_cpus", lambda **_: busy)
    monkeypatch.setattr(threads, "usable_cpus", lambda: 4)
    monkeypatch.setattr(threads, "_allowed_cpus", lambda: 4)
    monkeypatch.setattr(threads, "_default_threads", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", stated)
    return use_free_cpus()


@pytest.fixture
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restored")
def test_torch_computes_on_the_free_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of(monkeypatch, busy=1.1) == Threads(3, cpus=4, busy=1.1)
    assert torch.get_num_threads() == 3
    assert threads_of(monkeypatch, busy=None).count == torch.get_num_threads() == 4
    assert threads_of(monkeypatch, busy=3.0, stated="4") == Threads(4, cpus=4, busy=None)


@pytest.mark.usefixtures("restored")
def test_a_training_keeps_the_number_of_threads_with_which_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, Any] = {}
    found = Checkpoint("f", {"step": 1}, state, state, 1, state, state, threads=2)
    free = Worker(device=torch.device("cpu"), follows_load=True)
    threads_of(monkeypatch, busy=1.0)
    torch.set_num_threads(4)
    note = settle_threads(None, free)
    assert torch.get_num_threads() == 3
    assert note is not None
    assert note.startswith("computes with 3 instead of 4 threads, because other processes keep 1.0 of 4 CPUs busy")
    torch.set_num_threads(4)
    assert settle_threads(found, free) is None
    assert torch.get_num_threads() == 2
    for worker, stated in ((replace(free, follows_load=False), ""), (free, "4")):
        torch.set_num_threads(4)
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert settle_threads(found, worker) is None
        assert torch.get_num_threads() == 4
