"""Train with Ray Train on one or more workers.

Each worker runs the plain training loop (`yolov7.training.loop`). The state of a run is its folder, which all workers
see. A TorchTrainer has a fixed number of workers here. Whenever that number changes, because of a failure or because
there is room for more, this module starts another one, which continues from the last checkpoint of the folder.
Everything that it uses of Ray is public.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, final

from pipeline.params import RaySettings
from pipeline.ray.attempt import begin_attempt, death_error, has_error, is_complete, last_line
from pipeline.ray.cluster import check_reachable, connect, nodes_alive
from pipeline.ray.environment import cluster_address
from pipeline.ray.errors import ClusterError
from pipeline.ray.follow import TICK_SECONDS, follow
from pipeline.ray.local import needs_no_cluster, train_locally
from pipeline.ray.placement import WorkerResources, check_batch_norm, choose_resources, lack_of_room, room
from pipeline.ray.reservations import Patience, Reservations
from pipeline.ray.worker import STARTED_FILE, STOP_FILE, work, work_config
from yolov7.errors import SettingError
from yolov7.training.job import TrainJob
from yolov7.training.record import NOTES, PROGRESS, RunRecord


def train_with_ray(job: TrainJob, settings: RaySettings, *, on_tick: Callable[[], None]) -> None:
    """Train a job to its end, from its last checkpoint if there is one.

    Joins the cluster of RAY_ADDRESS. Without it, one worker needs no cluster; for several, one is started on this
    machine for the time of the training.

    Args:
        job: What to train. Its run folder exists, and no other process uses it.
        settings: Where to train.
        on_tick: Called about twice a second in this thread.

    Raises:
        UserError: If the user has to correct something.
        RuntimeError: If the workers raised an error more often than `max_failures`; the traceback shows theirs.
        KeyboardInterrupt: After SIGINT or SIGTERM, when the workers have left a checkpoint.
    """
    _check_batch_size(job, settings)
    for name in (NOTES, PROGRESS):
        (job.run_folder / name).unlink(missing_ok=True)
    if needs_no_cluster(settings):
        train_locally(job, settings, on_tick=on_tick)
        return
    training, is_complete = _Training(job, settings, on_tick=on_tick), False
    while not is_complete:
        with connect(settings):  # anew for each attempt: Ray frees all that the attempt before has left
            is_complete = training.attempt()


def find_lack(settings: RaySettings, resources: WorkerResources, *, has_room: bool) -> str | None:
    """Return what is missing for training on the cluster of RAY_ADDRESS, else None.

    Args:
        settings: Where to train.
        resources: What each worker gets.
        has_room: Whether the workers have room, or are running.

    Returns:
        The message: the cluster does not answer, is too small, or is used by others.
    """
    address = cluster_address()
    try:
        if address is not None:
            check_reachable(address)
    except ClusterError as error:
        return str(error)
    if has_room:
        return None
    return lack_of_room(settings, nodes_alive(), resources) or (
        "the cluster's nodes are large enough, but other jobs use them. Wait for those, or add nodes"
    )


@final
class _Training:
    """The attempts at one training, each with a fixed number of workers."""

    def __init__(self, job: TrainJob, settings: RaySettings, *, on_tick: Callable[[], None]) -> None:
        self._job, self._settings, self._on_tick = job, settings, on_tick
        self._resources: WorkerResources | None = None  # chosen for all attempts on the first connection
        self._reservations: Reservations | None = None
        self._has_room = True
        self._patience = Patience(
            self._find_lack, seconds=settings.start_timeout, say=RunRecord(job.run_folder).add_note
        )
        is_fixed = cluster_address() is None or settings.fewest_workers == settings.most_workers
        self._restarts_by_ray = settings.max_failures if is_fixed else 0  # faster, but with the same number of workers
        self._failures: Counter[str] = Counter()
        self._workers, self._next_look = 0, 0.0
        self._has_asked_for_more = False

    def _find_room(self, resources: WorkerResources) -> int:
        """Return the number of workers for the next attempt; wait for room in a cluster that others use too."""
        if self._reservations is not None:
            return self._reservations.wait_for_room(self._wait_tick, tick_seconds=TICK_SECONDS)
        nodes = nodes_alive()
        lack = lack_of_room(self._settings, nodes, resources)
        if lack:
            raise ClusterError(lack)
        return min(self._settings.most_workers, room(nodes, resources))

    def _find_lack(self) -> str | None:
        resources = self._resources
        return None if resources is None else find_lack(self._settings, resources, has_room=self._has_room)

    def _wait_tick(self, has_room: bool) -> None:
        self._has_room = has_room
        self._tick()

    def _tick(self) -> None:
        self._on_tick()
        if self._reservations is not None:
            self._patience.look()

    def attempt(self) -> bool:
        """Return whether the run is complete; False after a failure that may be repaired, or to change the workers."""
        token, stop_file = begin_attempt(self._job), self._job.run_folder / STOP_FILE
        resources = self._resources = self._resources or choose_resources(self._settings, nodes_alive())
        check_batch_norm(self._job.settings, resources)
        self._reservations = Reservations(self._settings, resources) if cluster_address() else None
        self._has_asked_for_more = False
        try:
            self._workers = self._find_room(resources)
            self._has_room = True
            self._next_look = time.monotonic() + self._settings.resize_seconds
            result = follow(lambda: self._fit(resources, token), stop=stop_file, on_tick=self._attempt_tick)
        except Exception as error:
            if not has_error(self._job):
                self._judge(error)
                return False
            result = {}
        return is_complete(self._job, result)

    def _fit(self, resources: WorkerResources, token: str) -> dict[str, Any]:
        """Train with the number of workers of this attempt; return what `work` returns."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        has_gpu = resources.gpus > 0
        trainer = TorchTrainer(
            work,
            # The processes of Ray are busy when the workers start, so the load says nothing.
            train_loop_config=work_config(
                self._job, resources, token, is_joined=cluster_address() is not None, follows_load=False
            ),
            torch_config=TorchConfig(backend="nccl" if has_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self._workers,
                use_gpu=has_gpu,
                resources_per_worker=resources.as_dict(),
                placement_strategy=self._settings.placement,
            ),
            run_config=RunConfig(
                name=f"ray-{os.getpid()}",
                storage_path=str(self._job.run_folder),
                failure_config=FailureConfig(
                    max_failures=self._restarts_by_ray, controller_failure_limit=0, max_preemption_failures=0
                ),
            ),
        )
        result: dict[str, Any] = trainer.fit().return_value
        return result

    def _attempt_tick(self) -> None:
        self._tick()
        if self._reservations is None or not (self._job.run_folder / STARTED_FILE).is_file():
            return
        if not self._has_asked_for_more:  # not earlier: these requests would compete with those of Ray Train
            self._has_asked_for_more = True
            self._reservations.request_more(self._settings.most_workers - self._workers)
        elif time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + self._settings.resize_seconds
            if self._find_lack() is None and self._reservations.has_room():
                (self._job.run_folder / STOP_FILE).touch()

    def _judge(self, error: Exception) -> None:
        """Return if another attempt may help, and raise otherwise."""
        from ray.train import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError

        deaths = _deaths(error) if isinstance(error, WorkerGroupError) else []
        if isinstance(error, PreemptionError) or any(death.preempted for death in deaths):
            return
        if isinstance(error, TrainingFailedError):
            kind = type(error).__name__
            self._failures[kind] += 1
            if (
                self._failures[kind] + self._restarts_by_ray * (kind == "WorkerGroupError")
                <= self._settings.max_failures
            ):
                RunRecord(self._job.run_folder).add_note(f"the workers failed and start again: {_last_line(error)}")
                return
        elif not type(error).__module__.startswith("ray."):
            raise error
        if address := cluster_address():
            check_reachable(address)  # if the head has ended, that is the cause
        if isinstance(error, WorkerGroupError) and len(deaths) == len(error.worker_failures):
            raise death_error(self._settings.max_failures, _last_line(error)) from error
        if isinstance(error, ControllerError):
            raise ClusterError(f"the Ray workers do not start: {_last_line(error)}") from error
        raise RuntimeError(f"training failed on its Ray workers: {_last_line(error)}") from error


def _check_batch_size(job: TrainJob, settings: RaySettings) -> None:
    batch, workers = job.settings.batch_size, settings.most_workers
    if batch < workers:
        raise SettingError(
            f"train.batch_size={batch} must be at least ray.workers={workers}, one image for each worker; "
            f"try train.batch_size: {workers}"
        )


def _deaths(error: Any) -> list[Any]:
    """Return the failures of workers whose process ended, in contrast to workers that raised an error."""
    from ray.exceptions import RayActorError

    return [failure for failure in error.worker_failures.values() if isinstance(failure, RayActorError)]


def _last_line(error: BaseException) -> str:
    return last_line(str(error)) or type(error).__name__
