"""A process keeps freed memory if it asks for that; tested in a process of its own, as this cannot be undone."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from yolov7.system.memory import keep_memory

def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

def use() -> None:
    bytearray(64 << 20)

use()
before = resident()
assert sys.argv[1] == "plain" or keep_memory()
for _ in range(3):
    use()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the C library of Linux")
def test_freed_memory_is_kept() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "plain")
    )
    assert given_back < 8 << 10 < 56 << 10 < kept
