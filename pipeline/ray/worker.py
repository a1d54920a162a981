"""What each Ray worker does: run the plain training loop on its share of every batch."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from pipeline.ray.follow import TICK_SECONDS
from pipeline.ray.placement import WorkerResources
from pipeline.ray.shared_memory import lack_of_shared_memory
from yolov7.errors import is_mendable, told
from yolov7.system.threads import wanted_threads
from yolov7.training.job import TrainJob

if TYPE_CHECKING:
    from yolov7.training.worker import Worker

STOP_FILE = "stop"  # created by the driver: write a checkpoint and leave; removed by the workers when they have
ERROR_FILE = "error.txt"  # written by a worker: an error that the user has to correct
STARTED_FILE = "started"  # created by the first worker when all workers have begun
TOKEN_FILE = "shared"  # written by the driver: workers that read something else see another folder
_VISIBLE_SECONDS = 10.0  # within which shared storage shows a new file to every node
_PREEMPTION_SECONDS = 5.0  # between two checks whether a node will be removed


def work(config: dict[str, Any]) -> dict[str, Any]:
    """Train as one of the workers, from the last checkpoint of the run folder.

    Args:
        config: What `work_config` returned.

    Returns:
        Of rank 0: `complete`: whether the run has ended; False if it was asked to stop. `refusal`: why it cannot run
        here, or None.

    Raises:
        Exception: Whatever the loop raises. Ray then ends all workers.
    """
    import ray.train
    import torch
    from ray.train.torch import get_device

    from yolov7.data.loader import count_workers
    from yolov7.training.loop import fit
    from yolov7.training.worker import Worker

    context = ray.train.get_context()
    torch.set_num_threads(config["threads"])
    job = TrainJob.model_validate(config["job"])
    worker = Worker(
        device=get_device(),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        loader_workers=count_workers(job.settings.loader_workers, cpus=config["cpus"]),
        processes_on_machine=context.get_local_world_size(),
        sync_batch_norm=config["sync"],
        follows_load=config["follows_load"],
    )
    started_file, stop_file = job.run_folder / STARTED_FILE, job.run_folder / STOP_FILE
    refusal = _find_refusal(job, worker, token=config["token"], is_one_machine=not config["joined"])
    if any_refusal := next(filter(None, worker.gather(refusal)), None):
        return {"complete": False, "refusal": any_refusal}
    if worker.is_lead:
        started_file.touch()
    preemption = _Preemption(is_watched=config["joined"])
    try:
        complete = fit(job, worker, should_stop=stop_file.is_file, should_hurry=preemption.is_announced)
    except Exception as error:
        if not is_mendable(error):
            raise  # another attempt may help
        (job.run_folder / ERROR_FILE).write_text(told(error), encoding="utf-8")
        if worker.world_size > 1:
            raise  # otherwise the other workers would wait for this one
        return {"complete": False, "refusal": told(error)}
    stop_file.unlink(missing_ok=True)
    return {"complete": complete, "refusal": None}


def work_config(
    job: TrainJob, resources: WorkerResources, token: str, *, is_joined: bool, follows_load: bool
) -> dict[str, Any]:
    """Return what `work` needs, as plain values.

    Args:
        job: What to train.
        resources: What each worker gets.
        token: The content of TOKEN_FILE.
        is_joined: Whether the workers run on a cluster that goes on without the training.
        follows_load: Whether the number of threads depends on the load when the run begins.

    Returns:
        The configuration.
    """
    return {
        "job": job.model_dump(mode="json"),
        "cpus": resources.cpus,
        "threads": wanted_threads(resources.cpus),
        "follows_load": follows_load,
        "sync": job.settings.sync_batch_norm,
        "token": token,
        "joined": is_joined,
    }


def _find_refusal(job: TrainJob, worker: Worker, *, token: str, is_one_machine: bool) -> str | None:
    """Return why the job cannot run in this worker, else None."""
    return (
        _read_error(job)
        or find_invisible(job, token, is_one_machine=is_one_machine)
        or lack_of_shared_memory(
            job,
            loader_workers=worker.loader_workers,
            world_size=worker.world_size,
            workers_here=worker.processes_on_machine,
        )
    )


def find_invisible(job: TrainJob, token: str, *, is_one_machine: bool) -> str | None:
    """Return a message if this node cannot access all files that training needs, else None.

    Args:
        job: The training.
        token: What the machine that started the training wrote into the run folder.
        is_one_machine: Whether that machine is this one.

    Returns:
        The node, the file, and the remedy.
    """
    from yolov7.data.index import load_index

    token_file, train = job.run_folder / TOKEN_FILE, job.data_folder / "train.npz"
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not (is_shared := _reads(token_file, token)) and time.monotonic() < deadline:
        time.sleep(TICK_SECONDS)
    images = [Path(load_index(train).paths[0])] if train.is_file() else []
    invisible = [*([] if is_shared else [job.run_folder]), *(path for path in (train, *images) if not path.is_file())]
    if not invisible:
        return None
    if is_one_machine:
        return f"{invisible[0]} is missing; restore it, or run `yolov7 prepare` again"
    return (
        f"the node {socket.gethostname()} cannot access {invisible[0]} of the machine that started the training; the "
        "project and its images must be on storage that all nodes share (such as NFS), under the same path"
    )


def _read_error(job: TrainJob) -> str | None:
    """Return the error that a worker recorded for the user before Ray started the workers again, if any."""
    file = job.run_folder / ERROR_FILE
    return file.read_text(encoding="utf-8") if file.is_file() else None


@final
class _Preemption:
    """The announcement of Ray that a node of this training will be removed.

    Ray answers all workers at once, so all have to ask equally often. Each therefore has a thread that asks.
    """

    def __init__(self, *, is_watched: bool) -> None:
        self._announced = threading.Event()
        if is_watched:
            threading.Thread(target=self._watch, name="watch-preemption", daemon=True).start()

    def is_announced(self) -> bool:
        return self._announced.is_set()

    def _watch(self) -> None:
        import ray.train

        with suppress(ray.exceptions.RayError):  # the workers are about to end
            while True:
                if ray.train.get_preemption_info() is not None:
                    self._announced.set()
                time.sleep(_PREEMPTION_SECONDS)


def _reads(path: Path, content: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == content
