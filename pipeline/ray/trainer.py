"""Ray Train around `yolov7.training`: the one module that knows Ray.

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
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.params import RaySettings
from pipeline.ray.follow import TICK_SECONDS, ask_to_leave, follow
from pipeline.ray.parent_process import Repro
from pipeline.ray.placement import LOOK_SECONDS, Lookout, Node, Share, choose_share, lack_of_room, room
from yolov7.errors import is_mendable, one_line, told
from yolov7.training.job import TrainJob
from yolov7.training.record import NOTES, PROGRESS, RunRecord

log = logging.getLogger(__name__)

_ERROR_FILE = "error.txt"  # from a worker: what the user has to mend
_NOTICE_FILE = "notice"  # to the workers: a node of theirs will be taken away; gone when it was
_STOP_FILE = "stop"  # to the workers: write a checkpoint and leave; gone when they have
_SHARED_FILE = "shared"  # from the driver: what each worker must read there, or it is another folder
_RESERVED_FILE = "reserved"  # from the driver: under which name Ray keeps room for its workers
_REACH_SECONDS = 10.0
_SETTINGS = b"\x04"  # the kind of frame that an HTTP/2 server, as gRPC's is, begins with; and so does a client
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
_SIGHT_SECONDS = 10.0  # in which shared storage shows a new file to every node
_ELASTIC_START_SECONDS = 15.0  # after which Ray looks again how many workers have room


def train_with_ray(job: TrainJob, settings: RaySettings, *, on_tick: Callable[[], None]) -> None:
    """Trains a job on one or more Ray workers; `on_tick` is called about twice a second meanwhile.

    Joins the cluster of RAY_ADDRESS, or starts one on this machine for the time of the training.
    ValueError for what the user can mend, RuntimeError where the workers failed more often than allowed,
    KeyboardInterrupt after SIGINT, SIGTERM and the death of the DVC above, when the workers have left a checkpoint.
    """
    repro = Repro()
    _check_batch(job, settings)
    for name in (_ERROR_FILE, _NOTICE_FILE, _STOP_FILE, NOTES, PROGRESS):
        (job.run_folder / name).unlink(missing_ok=True)
    error_file = job.run_folder / _ERROR_FILE
    with cluster(settings) as share:
        _check_statistics(job, share)
        _give_room_back(job.run_folder)
        lookout = Lookout(
            lambda: _lack(settings, share), patience=settings.start_timeout, say=RunRecord(job.run_folder).add_note
        )

        def tick() -> None:
            on_tick()
            lookout.look()
            repro.check()

        try:
            follow(lambda: _fit(job, settings, share), stop=job.run_folder / _STOP_FILE, on_tick=tick)
        finally:
            _give_room_back(job.run_folder)
            if error_file.is_file():  # says more than what Ray made of it
                raise ValueError(error_file.read_text(encoding="utf-8"))


def _check_batch(job: TrainJob, settings: RaySettings) -> None:
    batch, workers = job.settings.batch_size, settings.most_workers
    if batch < workers:
        raise ValueError(
            f"train.batch_size={batch} must be at least an image for each of train.workers={workers}; "
            f"try train.batch_size: {workers}"
        )


def _check_statistics(job: TrainJob, share: Share) -> None:
    if job.settings.sync_batch_norm and not share.gpus:
        raise ValueError(
            f"train.sync_batch_norm=true needs GPUs, for torch has it on them alone, and a worker gets {share} here; "
            "use train.sync_batch_norm: false"
        )


@contextmanager
def cluster(settings: RaySettings) -> Iterator[Share]:
    """A connection to Ray; yields what a worker gets."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    is_elastic = settings.fewest_workers < settings.most_workers
    patience = _ELASTIC_START_SECONDS if is_elastic else settings.start_timeout + 2 * LOOK_SECONDS
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(patience))
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets anything else on the machine starve a training
    import ray

    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        _check_reachable(address)
        _join(address, quiet)
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody drains this machine
        wanted, workers = settings.cpus_per_worker, settings.most_workers
        _start(workers * (max(1, _own_cpus() // workers) if wanted == "auto" else wanted), quiet)
    try:
        if threading.current_thread() is threading.main_thread():  # SIGTERM is as Ctrl-C, whatever Ray made of it
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        share = choose_share(settings, _nodes())
        lack = None if address else lack_of_room(settings, _nodes(), share)  # a cluster may still grow
        if lack:
            raise ValueError(lack)
        yield share
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
    except (ConnectionError, RuntimeError) as error:  # the latter for another version
        raise ConnectionError(
            f"the Ray cluster at RAY_ADDRESS={address} lets nobody in: {one_line(error)}; it needs this version of "
            f"Ray ({ray.__version__}) and the same token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)"
        ) from None


def _check_reachable(address: str) -> None:
    """ConnectionError where nothing listens at RAY_ADDRESS, or no gRPC server; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto` and the like: Ray looks by itself
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS) as line:
            line.sendall(_GREETING)
            if not os.environ.get("RAY_USE_TLS") and line.recv(4)[3:] != _SETTINGS:
                raise ConnectionError("something else has that port")
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error.strerror or error}); "
            "start it, or unset RAY_ADDRESS to train on this machine"
        ) from None


def _own_cpus() -> int:
    """The CPUs that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _nodes() -> list[Node]:
    """The cluster's nodes that are alive."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    found = [(node["NodeManagerHostname"], node["Resources"]) for node in alive]
    return [Node(name, cpus=lent.get("CPU", 0.0), gpus=lent.get("GPU", 0.0)) for name, lent in found]


def _free_nodes() -> list[Node]:
    """The same with what nobody has taken."""
    from ray._private.state import available_resources_per_node

    return [
        Node(name, cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0))
        for name, free in available_resources_per_node().items()
    ]


def _lack(settings: RaySettings, share: Share) -> str | None:
    """What is missing for the workers, if anything: the cluster's head, or room."""
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            _check_reachable(address)
        except ConnectionError as error:
            return str(error)
    try:
        lack = lack_of_room(settings, _nodes(), share)
        if lack is None and not _has_place() and room(_free_nodes(), share) < settings.fewest_workers:
            return "the cluster's nodes are large enough, but taken by something else. Wait for it, or add nodes"
    except Exception:  # the head has gone since
        return None
    return lack


def _has_place() -> bool:
    """Whether Ray has given this driver's workers a place; an identity ends with that of the driver."""
    import ray
    from ray.util import placement_group_table

    driver = ray.get_runtime_context().get_job_id()
    groups = placement_group_table().items()
    return any(name.endswith(driver) and group["state"] not in {"PENDING", "REMOVED"} for name, group in groups)


def _reservation(context: Any) -> str:
    """The name under which Ray keeps room for the workers of a TrainRunContext."""
    return f"train-{context.run_id}"


def _give_room_back(run_folder: Path) -> None:
    """What a driver of this run has reserved with Ray; for a killed one Ray would keep it for three minutes."""
    from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
        TrainAutoscalingCoordinatorClient,
    )

    address, reserved = os.environ.get("RAY_ADDRESS"), run_folder / _RESERVED_FILE
    if not address or not reserved.is_file():
        return
    with suppress(ConnectionError):
        _check_reachable(address)
        TrainAutoscalingCoordinatorClient(reserved.read_text(encoding="utf-8")).cancel_resource_request()


def _fit(job: TrainJob, settings: RaySettings, share: Share) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    token = uuid.uuid4().hex
    (job.run_folder / _SHARED_FILE).write_text(token, encoding="utf-8")
    config = {
        "job": job.model_dump(mode="json"),
        "cpus": share.cpus,
        "sync": job.settings.sync_batch_norm,
        "token": token,
    }
    trainer = TorchTrainer(
        _work,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if share.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=share.gpus > 0,
            resources_per_worker=share.resources(),
            placement_strategy=settings.placement,
            elastic_resize_monitor_interval_s=settings.resize_seconds,
        ),
        run_config=RunConfig(
            name=f"ray-{os.getpid()}",
            storage_path=str(job.run_folder),
            callbacks=[_helper(job.run_folder)],
            failure_config=FailureConfig(
                max_failures=settings.max_failures,  # and starts in vain, of which Ray's default allows any number
                controller_failure_limit=settings.max_failures + int(settings.start_timeout / _ELASTIC_START_SECONDS),
            ),
        ),
    )
    (job.run_folder / _RESERVED_FILE).write_text(_reservation(trainer.train_run_context), encoding="utf-8")
    _leave_out_idle(trainer)
    try:
        blindness = trainer.fit().return_value
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise
        if address := os.environ.get("RAY_ADDRESS"):
            _check_reachable(address)  # where the head is gone, that is what to tell
        raise RuntimeError(f"training failed on its Ray workers: {_cause(error)}") from error
    if blindness:
        raise ValueError(blindness)


def _helper(run_folder: Path) -> Any:
    """What Ray's controller lacks: it would kill workers as they are, and count dead nodes for up to 20 seconds."""
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )
    from ray.train.v2._internal.execution.callback import ControllerCallback

    notice, stop = run_folder / _NOTICE_FILE, run_folder / _STOP_FILE

    class Helper(ControllerCallback):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            self._name = _reservation(train_run_context)

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            """Lets workers leave with a checkpoint before their number changes, and hurry before a node goes."""
            before, now = type(previous_state).__name__, type(current_state).__name__
            if now == "ResizingState":
                ask_to_leave(stop)
                stop.unlink(missing_ok=True)  # or the next workers would leave at once
            if "PreemptingState" == now != before:
                notice.touch()
            elif before == "PreemptingState" != now:
                notice.unlink(missing_ok=True)

        def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
            """Counts the nodes anew."""
            with suppress(ray.exceptions.RayError):
                keeper = get_or_create_autoscaling_coordinator()
                ray.get(keeper.get_reserved_resources.remote(self._name, recompute=True), timeout=_REACH_SECONDS)

    return Helper()


def _leave_out_idle(trainer: Any) -> None:
    """What Ray would start in vain: an actor for its data sets, which wakes a hundred times a second, and its cleaner.

    That one clears up behind a dead controller; it asks the dashboard, and without one lives on for ever. Each training
    would wait twelve seconds for it. What workers have taken is free when their driver ends.
    """
    from ray._private.worker import get_dashboard_url
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    idle = DatasetsCallback if get_dashboard_url() else (DatasetsCallback, PlacementGroupCleanerCallback)
    make = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [callback for callback in make() if not isinstance(callback, idle)]


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _work(config: dict[str, Any]) -> str | None:
    """What every worker does; returns what a worker cannot see, for the driver to tell."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from yolov7.training.loop import fit
    from yolov7.training.worker import Worker

    context = ray.train.get_context()
    cpus = int(config["cpus"])
    torch.set_num_threads(cpus)
    job = TrainJob.model_validate(config["job"])
    error_file, stop_file = job.run_folder / _ERROR_FILE, job.run_folder / _STOP_FILE
    worker = Worker(
        device=get_device(),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        loader_workers=_loader_workers(job, cpus),
        processes_on_machine=context.get_local_world_size(),
        sync_batch_norm=config["sync"],
    )
    blindness = next(filter(None, worker.gather(_blindness(job, config["token"]))), None)
    if blindness or error_file.is_file():  # the group was started again, but this is the user's to mend
        return blindness
    try:
        fit(job, worker, should_stop=stop_file.is_file, should_hurry=(job.run_folder / _NOTICE_FILE).is_file)
        stop_file.unlink(missing_ok=True)
    except (ValueError, OSError) as error:
        if not is_mendable(error):
            raise  # starting again may help
        error_file.write_text(first_cause(error), encoding="utf-8")
        if worker.world_size > 1:
            raise  # or else the other workers would wait for this one
    return None


def _blindness(job: TrainJob, token: str) -> str | None:
    """What this node does not see of the project; None where it sees all that training needs."""
    from yolov7.data.index import load_index

    shared, train = job.run_folder / _SHARED_FILE, job.data_folder / "train.npz"
    until = time.monotonic() + _SIGHT_SECONDS
    while not (sees := shared.is_file() and shared.read_text(encoding="utf-8") == token) and time.monotonic() < until:
        time.sleep(TICK_SECONDS)
    images = [Path(load_index(train).paths[0])] if train.is_file() else []
    unseen = [*([] if sees else [job.run_folder]), *(path for path in (train, *images) if not path.is_file())]
    if not unseen:
        return None
    return (
        f"the node {socket.gethostname()} does not see {unseen[0]} of the machine that started the training; project "
        "and images must be on storage that all nodes share (NFS or the like), under the same path"
    )


def first_cause(error: Exception) -> str:
    """An error's message in one line; of one that a loader's process handed on with its traceback, the last line."""
    lines = str(error).splitlines()
    if not lines or not lines[0].startswith("Caught "):  # as torch begins it
        return told(error)
    return lines[-1].partition(": ")[2] or lines[-1]


def _loader_workers(job: TrainJob, cpus: int) -> int:
    wanted = job.settings.loader_workers
    return min(cpus, 8) if wanted == "auto" else wanted
