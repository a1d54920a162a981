"""How this process gets its memory from the system; matters on the CPU, where tensors come from the C library."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of mallopt(3)
_BLOCK = 1 << 30  # bytes; larger blocks are mapped one by one


def keep_memory() -> bool:
    """Keeps freed memory for the next tensors instead of giving it back; False where the C library cannot (no glibc).

    Else every large tensor is mapped anew, page by page, which takes a quarter of a training step on the CPU. The
    process stays at its peak size.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    options = {_MMAP_THRESHOLD: _BLOCK, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
    return all(mallopt(option, value) == 1 for option, value in options.items())
