"""Ray Train around `yolov7.train`: the one module that knows Ray.

Each worker runs the plain training loop. State that outlives a worker is the run folder, which all of them see;
a worker group that Ray starts again after a failure takes up its checkpoint there.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.params import RayTrainSettings
from pipeline.repro import Repro
from yolov7.errors import is_mendable, one_line, told
from yolov7.train.job import TrainJob
from yolov7.train.record import NOTES

log = logging.getLogger(__name__)

_ERROR_FILE = "error.txt"  # from a worker: what the user has to mend
_STOP_FILE = "stop"  # to the workers: write a checkpoint and leave; gone when they have
_TICK_SECONDS = 0.5
_STOP_SECONDS = 20.0  # that a worker has for the step under way and its checkpoint
_REACH_SECONDS = 10.0


def train_with_ray(job: TrainJob, settings: RayTrainSettings, *, on_tick: Callable[[], None]) -> None:
    """Trains a job on one or more Ray workers; `on_tick` is called about twice a second meanwhile.

    Joins the cluster of RAY_ADDRESS, or starts one on this machine for the time of the training.
    ValueError for what the user can mend, RuntimeError where the workers failed more often than allowed,
    KeyboardInterrupt after SIGINT, SIGTERM and the death of the DVC above, when the workers have left a checkpoint.
    """
    repro = Repro()

    def tick() -> None:
        on_tick()
        repro.check()

    _check_batch(job, settings)
    for name in (_ERROR_FILE, _STOP_FILE, NOTES):
        (job.run_folder / name).unlink(missing_ok=True)
    error_file = job.run_folder / _ERROR_FILE
    with cluster(settings) as cpus_per_worker:
        try:
            _follow(lambda: _fit(job, settings, cpus_per_worker), stop=job.run_folder / _STOP_FILE, on_tick=tick)
        finally:
            if error_file.is_file():  # says more than what Ray made of it
                raise ValueError(error_file.read_text(encoding="utf-8"))


def _check_batch(job: TrainJob, settings: RayTrainSettings) -> None:
    batch, workers = job.settings.batch_size, settings.workers
    if batch % workers:
        nearest = max(1, round(batch / workers)) * workers
        raise ValueError(
            f"train.batch_size={batch} must be a multiple of train.workers={workers}, for every worker the same share; "
            f"try train.batch_size: {nearest}"
        )


@contextmanager
def cluster(settings: RayTrainSettings) -> Iterator[int]:
    """A connection to Ray; yields the CPUs of a worker."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(settings.start_timeout))
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets anything else on the machine starve a training
    import ray

    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        _check_reachable(address)
        _join(address, quiet)
        cpus = _cpus(settings, int(ray.cluster_resources().get("CPU", 1)))
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody drains this machine
        cpus = _cpus(settings, _own_cpus())
        _start(cpus * settings.workers, quiet)
    try:
        if threading.current_thread() is threading.main_thread():  # SIGTERM is as Ctrl-C, whatever Ray made of it
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield cpus
    finally:
        ray.shutdown()


def _start(cpus: int, quiet: dict[str, Any], *, again: bool = True) -> None:
    import ray

    try:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    except Exception as error:  # Ray has no class of its own for processes that do not come up
        if again and "timed out" in str(error):  # its half a minute is short on a machine that has other work too
            ray.shutdown()
            _start(cpus, quiet, again=False)
            return
        raise RuntimeError(
            f"Ray does not start on this machine ({one_line(error)}); it needs memory and room in its temporary "
            "folder, /tmp/ray"
        ) from error


def _join(address: str, quiet: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise ConnectionError(
            f"the Ray cluster at RAY_ADDRESS={address} lets nobody in: {error}; it needs this version of Ray "
            f"({ray.__version__}) and the same token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)"
        ) from None


def _check_reachable(address: str) -> None:
    """ConnectionError where nothing listens at RAY_ADDRESS; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto` and the like: Ray looks by itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error.strerror or error}); "
            "start it, or unset RAY_ADDRESS to train on this machine"
        ) from None


def _own_cpus() -> int:
    """The CPUs that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpus(settings: RayTrainSettings, available: int) -> int:
    wanted = settings.cpus_per_worker
    return max(1, available // settings.workers) if wanted == "auto" else wanted


def _gpus(settings: RayTrainSettings) -> float:
    import ray

    available = ray.cluster_resources().get("GPU", 0)
    if settings.gpus_per_worker == "auto":
        return 1.0 if available >= settings.workers else 0.0
    wanted = settings.gpus_per_worker * settings.workers
    if wanted > available and not os.environ.get("RAY_ADDRESS"):  # a cluster may still grow
        raise ValueError(
            f"train.gpus_per_worker={settings.gpus_per_worker:g} with train.workers={settings.workers} "
            f"needs {wanted:g} GPUs, this machine has {available:g}; use train.gpus_per_worker: auto"
        )
    return settings.gpus_per_worker


def _fit(job: TrainJob, settings: RayTrainSettings, cpus: int) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = _gpus(settings)
    resources: dict[str, float] = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job.model_dump(mode="json"), "cpus": cpus},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"ray-{os.getpid()}",
            storage_path=str(job.run_folder),
            failure_config=FailureConfig(
                max_failures=settings.max_failures,
                controller_failure_limit=settings.max_failures,  # Ray's default waits for resources for ever
            ),
        ),
    )
    if not os.environ.get("RAY_ADDRESS"):
        _leave_out_cleaner(trainer)
    try:
        trainer.fit()
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise
        raise RuntimeError(f"training failed on its Ray workers: {_cause(error)}") from error


def _leave_out_cleaner(trainer: Any) -> None:
    """A cluster that ends with the training needs nobody to clear up behind a dead controller.

    Ray's actor for that asks the dashboard, which is not there, and each training would wait twelve seconds for it.
    """
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    make = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [
        callback for callback in make() if not isinstance(callback, PlacementGroupCleanerCallback)
    ]


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _work(config: dict[str, Any]) -> None:
    """What every worker does."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from yolov7.train.loop import fit
    from yolov7.train.worker import Worker

    context = ray.train.get_context()
    cpus = int(config["cpus"])
    torch.set_num_threads(cpus)
    job = TrainJob.model_validate(config["job"])
    error_file, stop_file = job.run_folder / _ERROR_FILE, job.run_folder / _STOP_FILE
    if error_file.is_file():  # the group was started again, but this is the user's to mend
        return
    worker = Worker(
        device=get_device(),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        loader_workers=_loader_workers(job, cpus),
    )
    try:
        fit(job, worker, should_stop=stop_file.is_file)
        stop_file.unlink(missing_ok=True)
    except (ValueError, OSError) as error:
        if not is_mendable(error):
            raise  # starting again may help
        error_file.write_text(first_cause(error), encoding="utf-8")
        if worker.world_size > 1:
            raise  # or else the other workers would wait for this one


def first_cause(error: Exception) -> str:
    """An error's message in one line; of one that a loader's process handed on with its traceback, the last line."""
    lines = str(error).splitlines()
    if not lines or not lines[0].startswith("Caught "):  # as torch begins it
        return told(error)
    return lines[-1].partition(": ")[2] or lines[-1]


def _loader_workers(job: TrainJob, cpus: int) -> int:
    wanted = job.settings.loader_workers
    return min(cpus, 8) if wanted == "auto" else wanted


def _follow(work: Callable[[], None], *, stop: Path, on_tick: Callable[[], None]) -> None:
    """Does the work in a thread of its own: in this one Ray would take Ctrl-C for itself and end without a checkpoint.

    On an interrupt the file `stop` asks the workers to leave.
    """
    done: Future[None] = Future()
    threading.Thread(target=_settle, args=(done, work), name="ray-train", daemon=True).start()
    try:
        _tick_until(done, on_tick)
    except KeyboardInterrupt:
        _ask_to_leave(done, stop)
        raise
    done.result()


def _ask_to_leave(done: Future[None], stop: Path) -> None:
    """Waits for the workers alone: Ray may have its own view of an interrupt."""
    stop.touch()
    until = time.monotonic() + _STOP_SECONDS
    while stop.exists() and not done.done() and time.monotonic() < until:
        time.sleep(_TICK_SECONDS / 5)


def _settle(done: Future[None], work: Callable[[], None]) -> None:
    try:
        work()
        done.set_result(None)
    except BaseException as error:  # raised again by `result`
        done.set_exception(error)


def _tick_until(done: Future[None], on_tick: Callable[[], None]) -> None:
    """Ticks until it is done, and once more."""
    while True:
        wait([done], timeout=_TICK_SECONDS)
        over = done.done()
        with suppress(OSError):  # storage that hiccups must not end a training
            on_tick()
        if over:
            return
