"""Train with one worker on this machine, which needs no Ray cluster.

Ray Train has a local mode for this: `TorchTrainer` calls the training function in its own process. Here, this process
is not the command itself. The command can therefore show the progress, stop the training with a checkpoint, and start
it again if it is killed, as it does with the workers of a cluster. Torch and Ray are imported while the command
prepares the training.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.params import RaySettings
from pipeline.ray.attempt import begin_attempt, death_error, has_error, is_complete, last_line
from pipeline.ray.cluster import cpus_to_offer, interrupt_on_sigterm
from pipeline.ray.environment import cluster_address, set_ray_environment
from pipeline.ray.follow import follow
from pipeline.ray.parent_process import end_with_command
from pipeline.ray.placement import check_batch_norm, choose_resources, lack_of_room, this_machine
from pipeline.ray.worker import STOP_FILE, work, work_config
from yolov7.errors import UserError, told
from yolov7.training.job import TrainJob
from yolov7.training.record import RunRecord

WORKER_LOG = "worker.log"
"""The file of a run folder with what the training process and its libraries print."""

if find_spec("ray") is None:  # as an import would, which takes seconds and is left to the training process
    raise ModuleNotFoundError("No module named 'ray'", name="ray")

_PRELOADED = ["ray.train.torch", "yolov7.training.loop", __name__]
_GPUS = "CUDA_VISIBLE_DEVICES"  # of the command when it starts the training, not when it preloads
_TORCHRUN = ("RANK", "WORLD_SIZE")  # with these and others, Ray's local mode would join processes of torchrun
_EXIT_SECONDS = 10.0  # for a training process that has ended its work


def needs_no_cluster(settings: RaySettings) -> bool:
    """Return whether a training has one worker, on this machine."""
    return cluster_address() is None and settings.most_workers == 1


def preload(*modules: str) -> None:
    """Start a process that imports what a training needs, and from which training processes are forked later.

    Does nothing the second time, in a process that was forked from there, and on systems without fork.

    Args:
        modules: What else is imported there.
    """
    set_ray_environment()
    if process_context().get_start_method() != "forkserver":
        return
    multiprocessing.set_forkserver_preload([*_PRELOADED, *modules])
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is for the command only
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def process_context() -> ForkContext | ForkServerContext | SpawnContext:
    """Return the context that starts processes: where the system can fork, it forks the process of `preload`."""
    if forkserver.get_inherited_fds() is not None and _PRELOADED[0] in sys.modules:
        return multiprocessing.get_context("fork")  # this process was forked from there, and did not compute since
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def train_locally(job: TrainJob, settings: RaySettings, *, on_tick: Callable[[], None]) -> None:
    """Train a job with one worker in a process of its own, from its last checkpoint if there is one.

    Args:
        job: What to train. Its run folder exists, and no other process uses it.
        settings: Where to train.
        on_tick: Called about twice a second in this thread.

    Raises:
        UserError: If the user has to correct something.
        RuntimeError: If the process raised an error more often than `max_failures`; a note shows its traceback.
        KeyboardInterrupt: After SIGINT or SIGTERM, when the process has left a checkpoint.
    """
    interrupt_on_sigterm()
    failures = 0
    while True:
        result = _attempt(job, settings, on_tick=on_tick)
        if isinstance(result, dict) or has_error(job):
            if is_complete(job, result if isinstance(result, dict) else {}):
                return
            continue
        failures += 1
        if failures > settings.max_failures:
            raise _give_up(settings, result)
        how = f"failed ({last_line(result)})" if isinstance(result, str) else _end(result)
        RunRecord(job.run_folder).add_note(f"the training process {how} and starts again")


def _attempt(job: TrainJob, settings: RaySettings, *, on_tick: Callable[[], None]) -> dict[str, Any] | str | int:
    """Return what `work` returns, the traceback of an error, or the exit code of a process that was ended."""
    token = begin_attempt(job)
    preload()
    context = process_context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, job, settings, token, os.environ.get(_GPUS)), name="train")
    process.start()
    sender.close()
    try:
        return follow(lambda: _outcome(process, receiver), stop=job.run_folder / STOP_FILE, on_tick=on_tick)
    finally:
        process.join(_EXIT_SECONDS)
        process.kill()
        process.join()


def _outcome(process: BaseProcess, receiver: Connection) -> dict[str, Any] | str | int:
    wait([receiver, process.sentinel])
    try:
        outcome: dict[str, Any] | str = receiver.recv()
    except EOFError:
        process.join()
        return process.exitcode or 0
    return outcome


def _give_up(settings: RaySettings, result: str | int) -> Exception:
    if isinstance(result, int):
        return death_error(settings.max_failures, f"the last one {_end(result)}")
    error = RuntimeError(f"training failed: {last_line(result)}")
    error.add_note(f"The traceback of the training process:\n{result}")
    return error


def _end(exit_code: int) -> str:
    return f"was ended by signal {-exit_code}" if exit_code < 0 else f"ended with the exit code {exit_code}"


def _run(sender: Connection, job: TrainJob, settings: RaySettings, token: str, gpus: str | None) -> None:
    """Train in this process, and send the result or the traceback of an error."""
    if settings.gpus_per_worker == 0:
        os.environ[_GPUS] = ""
    elif gpus is not None:
        os.environ[_GPUS] = gpus
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_command(getattr(signal, "SIGKILL", signal.SIGTERM))  # the latter on Windows, where it kills, too
    log = os.open(job.run_folder / WORKER_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        sender.send(_train(job, settings, token))
    except Exception:
        sender.send(traceback.format_exc())


def _train(job: TrainJob, settings: RaySettings, token: str) -> dict[str, Any]:
    """Return what `work` returns."""
    for name in _TORCHRUN:
        os.environ.pop(name, None)
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    nodes = [this_machine(cpus_to_offer(settings))]
    resources = choose_resources(settings, nodes)
    try:
        check_batch_norm(job.settings, resources)
    except UserError as error:
        return {"complete": False, "refusal": told(error)}
    if lack := lack_of_room(settings, nodes, resources):
        return {"complete": False, "refusal": lack}
    follows_load = settings.cpus_per_worker == "auto"
    trainer = TorchTrainer(
        work,
        train_loop_config=work_config(job, resources, token, is_joined=False, follows_load=follows_load),
        scaling_config=ScalingConfig(num_workers=0),
    )
    result: dict[str, Any] = trainer.fit().return_value
    return result
