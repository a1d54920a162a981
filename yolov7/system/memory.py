"""How this process gets memory from the system. It matters on the CPU, where tensors come from the C library."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # options of mallopt(3)
_BLOCK = 1 << 30  # bytes; larger blocks are mapped one by one


def keep_memory() -> bool:
    """Keep freed memory for the next tensors instead of returning it to the system.

    Otherwise every large tensor is mapped anew, page by page, which takes a quarter of a training step on the CPU. The
    process then keeps its peak size until it ends.

    Returns:
        Whether the C library supports this; only glibc does.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    options = {_MMAP_THRESHOLD: _BLOCK, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
    return all(mallopt(option, value) == 1 for option, value in options.items())
