"""Check that the batches of the loader workers fit into /dev/shm.

Loader workers hand batches over in shared memory. If that is full, training waits without a message or is killed.
Docker gives a container 64 MB by default.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from yolov7.training.job import TrainJob

SHARED_MEMORY = Path("/dev/shm")
_HELD = 2  # batches: the one that is trained on, and the one that comes next


def lack_of_shared_memory(
    job: TrainJob, *, loader_workers: int, world_size: int, workers_here: int, folder: Path = SHARED_MEMORY
) -> str | None:
    """Return a message if the batches of all workers on this node do not fit into shared memory, else None.

    Args:
        job: The training.
        loader_workers: The number of loader workers of each worker.
        world_size: The number of workers that share a batch.
        workers_here: How many of them are on this node.
        folder: Where shared memory is mounted. Systems without it are not checked.

    Returns:
        How much there is, how much is needed, and the remedy.
    """
    from yolov7.data.loader import PREFETCH

    if not loader_workers or not folder.is_dir():
        return None
    images = -(-job.settings.batch_size // world_size)
    batch = images * 3 * job.settings.image_size**2  # uint8
    needed = workers_here * (loader_workers * PREFETCH + _HELD) * batch
    state = os.statvfs(folder)
    free, size = state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
    if needed <= free:
        return None
    return (
        f"{folder} of {socket.gethostname()} has a size of {_mb(size)}, {_mb(free)} of it free, but {loader_workers} "
        f"loader workers for each of {workers_here} workers need {_mb(needed)} for their batches; give it more room "
        f"(docker run --shm-size={_mb(needed * 2).replace(' ', '').lower()}), or set train.loader_workers: 0"
    )


def _mb(count: int) -> str:
    return f"{-(-count // 1_000_000)} MB"
