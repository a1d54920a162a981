"""Run trials with Ray Tune, each as a plain function in a process of its own.

Ray is imported inside the functions, after `set_environment` has set the variables that Ray reads on import.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.ray.placement import Node
from pipeline.tuning.budget.latency import device_name, measure_latency
from pipeline.tuning.budget.plan import SpeedSample
from pipeline.tuning.trial.driver import ERROR_FILE, STOP_SECONDS, Driver
from pipeline.tuning.trial.resources import TrialResources, choose_resources
from pipeline.tuning.trial.training import TrialTask, measure_speed, train_trial
from yolov7.errors import TrainingError, is_mendable, one_line, told
from yolov7.training.job import TrainJob
from yolov7.training.worker import Worker

_TICK_SECONDS = 0.5
_CLEANUP_SECONDS = 10.0  # within which Ray Tune has to end after the command to stop all trials
_ENVIRONMENT = {
    # Do not start a cluster when Ray is called after `ray.shutdown`, as Ray Tune's thread may do.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Do not write CSV, JSON and TensorBoard logs; the journal is the record of a search.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ask for one new trial at a time, so that each choice is based on the results of all earlier trials.
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    # Do not warn about slow steps of Ray Tune before they take a minute.
    "TUNE_WARN_THRESHOLD_S": "60",
    # Kill the process of a stopped trial after two seconds; it has nothing left to save.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "2",
    # Use the classic output, which prints nothing with `verbose=0`.
    "RAY_AIR_NEW_OUTPUT": "0",
}


def set_environment() -> None:
    """Set the environment variables of Ray and Ray Tune; values that the user has set are kept."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def cluster_resources(*, trials_per_gpu: int) -> TrialResources:
    """Choose the resources of a trial in the cluster that this process is connected to.

    Args:
        trials_per_gpu: How many trials share a GPU.

    Raises:
        SettingError: If no node has room for a trial.
    """
    import ray

    alive = [(node["NodeManagerHostname"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    nodes = [Node(name, cpus=offered.get("CPU", 0.0), gpus=offered.get("GPU", 0.0)) for name, offered in alive]
    return choose_resources(nodes, trials_per_gpu=trials_per_gpu)


def sample_speed(jobs: Sequence[tuple[TrainJob, float]], resources: TrialResources) -> list[SpeedSample]:
    """Measure a few steps of several trainings side by side, as trials run.

    Args:
        jobs: Each training with the GFLOPs of one forward pass of its model.
        resources: The resources of a trial.
    """
    import ray

    measure = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_measure_speed)
    now = time.time()
    return list(ray.get([measure.remote(job.model_dump(mode="json"), gflops, resources, now) for job, gflops in jobs]))


def name_device(resources: TrialResources) -> str:
    """Return the name of the device that `sample_latency` measures on."""
    import ray

    name = ray.remote(**_whole_device(resources))(device_name)
    return str(ray.get(name.remote(cuda=resources.gpus > 0, threads=resources.device_threads)))


def sample_latency(models: Sequence[tuple[str, int]], resources: TrialResources, *, num_classes: int) -> list[float]:
    """Measure the latency of models that have the device to themselves.

    Args:
        models: Each model's spec as JSON and its image size in pixels.
        resources: The resources of a trial.
        num_classes: The number of classes that the models detect.

    Returns:
        Milliseconds of each model.
    """
    import ray

    measure = ray.remote(**_whole_device(resources))(measure_latency)
    threads, cuda = resources.device_threads, resources.gpus > 0
    return list(ray.get(measure.remote(models, num_classes=num_classes, threads=threads, cuda=cuda)))


def run_trials(
    driver: Driver, resources: TrialResources, *, folder: Path, max_failures: int, on_tick: Callable[[], None]
) -> None:
    """Run trials until the driver has no more, or until the budget is used up.

    Args:
        driver: The driver of the search.
        resources: The resources of a trial.
        folder: The folder of the search.
        max_failures: How often the process of a trial is restarted.
        on_tick: Is called about twice per second.

    Raises:
        KeyboardInterrupt: After SIGINT or SIGTERM, when the trials have written checkpoints.
        TrainingError: If Ray Tune fails.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    done: Future[None] = Future()

    def run() -> None:
        try:
            _fit(driver, resources, folder=folder, max_failures=max_failures)
            done.set_result(None)
        except BaseException as error:  # raised again by `done.result`
            done.set_exception(error)

    # A thread of its own, because in the main thread Ray Tune would handle SIGINT and leave no checkpoints. It is
    # awaited through a future: `Thread.join` may return early once a signal has interrupted it (CPython issue 90882).
    threading.Thread(target=run, name="ray-tune", daemon=True).start()
    try:
        while not done.done() and not driver.must_stop:
            wait([done], timeout=_TICK_SECONDS)
            on_tick()
    except BaseException:
        driver.interrupt()
        wait([done], timeout=STOP_SECONDS + _CLEANUP_SECONDS)
        raise
    if wait([done], timeout=_CLEANUP_SECONDS).done and (error := done.exception()) is not None:
        if not type(error).__module__.startswith("ray."):
            raise error
        raise TrainingError(f"Ray Tune failed: {one_line(error)}; run the same command with --resume") from error
    driver.end_all()


def _fit(driver: Driver, resources: TrialResources, *, folder: Path, max_failures: int) -> None:
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner, with_resources

    from pipeline.tuning.trial.tune_adapters import DriverScheduler, DriverSearcher, DriverStopper

    tuner = Tuner(
        with_resources(_train, {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})),
        tune_config=TuneConfig(
            search_alg=DriverSearcher(driver, asdict(resources)),
            scheduler=DriverScheduler(driver),
            num_samples=-1,
            max_concurrent_trials=resources.concurrent_trials,
        ),
        run_config=RunConfig(
            name=f"ray-{os.getpid()}",
            storage_path=str(folder.resolve()),
            stop=DriverStopper(driver),
            failure_config=FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    )
    tuner.fit()


def _whole_device(resources: TrialResources) -> dict[str, float]:
    return {"num_cpus": resources.device_threads, "num_gpus": 1 if resources.gpus else 0}


def _worker(resources: TrialResources) -> Worker:
    torch.set_num_threads(resources.cpus)
    return Worker(
        device=torch.device(resources.device),
        loader_workers=resources.loader_workers,
        processes_on_machine=resources.concurrent_trials,  # at most; trials may be on several machines
    )


def _measure_speed(job: dict[str, Any], gflops: float, resources: TrialResources, began: float) -> SpeedSample:
    return measure_speed(TrainJob.model_validate(job), _worker(resources), training_gflops=gflops, began=began)


def _train(config: dict[str, Any]) -> None:
    """Train a trial; this function runs in its process."""
    from ray.tune import report

    task = TrialTask.model_validate(config["task"])
    try:
        train_trial(task, _worker(TrialResources(**config["resources"])), report=report)
    except (ValueError, OSError) as error:
        if not is_mendable(error):
            raise  # a restart may help
        task.job.run_folder.mkdir(parents=True, exist_ok=True)
        (task.job.run_folder / ERROR_FILE).write_text(told(error), encoding="utf-8")
