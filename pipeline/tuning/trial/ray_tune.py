"""Ray Tune around the search: the one module beside `distributed` that knows Ray.

Trials are plain functions, one process each. What to train next, what to stop and when the budget ends is decided by
`pipeline.tuning`, which Ray Tune asks through its own interfaces: a searcher and a scheduler.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import ray
import torch
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner, with_resources
from ray.tune import report as report_to_tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.ray.worker import first_cause
from pipeline.tuning.budget.latency import device_name, measure_latency
from pipeline.tuning.budget.plan import Probe
from pipeline.tuning.trial.driver import ERROR, STOP, Driver
from pipeline.tuning.trial.training import TrialTask, probe, train_trial
from yolov7.errors import is_mendable
from yolov7.training.job import TrainJob
from yolov7.training.worker import Worker

_TICK_SECONDS = 0.5
_STOP_SECONDS = 20.0  # that trials have for the step under way and their checkpoints
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the record
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "2",  # a trial that is to end has nothing left to do
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Share:
    """What of a cluster a trial has, and how many trials run at once."""

    cpus: int
    gpus: float
    at_once: int

    @property
    def resources(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    @property
    def loader_workers(self) -> int:
        """Processes that prepare samples: none where a trial has one CPU to itself."""
        return min(self.cpus - 1, 8)

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def share_of_cluster(*, trials_per_gpu: float) -> Share:
    """Of the cluster that this process is connected to: GPUs in fractions where there are any, else a CPU a trial."""
    found = ray.cluster_resources()
    cpus, gpus = int(found.get("CPU", 1)), found.get("GPU", 0.0)
    if not gpus:
        return Share(cpus=1, gpus=0.0, at_once=max(1, cpus))
    at_once = max(1, int(gpus * trials_per_gpu))
    return Share(cpus=max(1, cpus // at_once), gpus=1 / trials_per_gpu, at_once=at_once)


def run_probes(jobs: Sequence[tuple[TrainJob, float]], share: Share) -> list[Probe]:
    """A few steps of each training, given with its GFLOPs; side by side, as trials run."""
    start, now = ray.remote(**_remote(share))(_probe), time.time()
    return list(ray.get([start.remote(job.model_dump(mode="json"), gflops, share, now) for job, gflops in jobs]))


def device_of(share: Share) -> str:
    """What latencies belong to."""
    return str(ray.get(ray.remote(**_whole(share))(device_name).remote(cuda=share.gpus > 0, threads=_threads(share))))


def run_latency(models: Sequence[tuple[str, int]], share: Share, *, num_classes: int) -> list[float]:
    """Milliseconds of each model, given as (spec as JSON, image size), alone on the device."""
    start = ray.remote(**_whole(share))(measure_latency)
    found = ray.get(start.remote(models, num_classes=num_classes, threads=_threads(share), cuda=share.gpus > 0))
    return [float(value) for value in found]


def _threads(share: Share) -> int:
    """All of one machine's, or a trial's share beside a GPU."""
    return share.cpus if share.gpus else min(int(ray.cluster_resources().get("CPU", 1)), os.cpu_count() or 1)


def _whole(share: Share) -> dict[str, float]:
    return {"num_cpus": _threads(share), "num_gpus": 1 if share.gpus else 0}


def run_trials(driver: Driver, share: Share, *, folder: Path, max_failures: int, on_tick: Callable[[], None]) -> None:
    """Trains trials until the driver has no more; at its deadline whatever still runs is left behind.

    KeyboardInterrupt after SIGINT and SIGTERM, when trials have left checkpoints.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = Tuner(
        with_resources(_train, share.resources),
        tune_config=TuneConfig(
            search_alg=_Searcher(driver, share),
            scheduler=_Halver(driver),
            num_samples=-1,
            max_concurrent_trials=share.at_once,
        ),
        run_config=RunConfig(
            name=f"ray-{os.getpid()}",
            storage_path=str(folder.resolve()),
            failure_config=FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    )
    thread = threading.Thread(target=tuner.fit, name="ray-tune", daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not _is_over(driver):
            thread.join(_TICK_SECONDS)
            on_tick()
    except KeyboardInterrupt:
        driver.interrupted = True
        (folder / STOP).touch()
        thread.join(_STOP_SECONDS)
        raise
    driver.cut_all()


def _is_over(driver: Driver) -> bool:
    """Past the deadline, at which trials end by themselves, by what a validation under way may take at most."""
    return driver.deadline is not None and time.time() > driver.deadline + driver.grace


def _remote(share: Share) -> dict[str, float]:
    return {"num_cpus": share.cpus, "num_gpus": share.gpus}


def _worker(share: Share) -> Worker:
    torch.set_num_threads(share.cpus)
    return Worker(
        device=torch.device(share.device),
        loader_workers=share.loader_workers,
        processes_on_machine=share.at_once,  # at most, as the trials may be on several machines
    )


def _probe(job: dict[str, Any], gflops: float, share: Share, began: float) -> Probe:
    return probe(TrainJob.model_validate(job), _worker(share), training_gflops=gflops, began=began)


def _train(config: dict[str, Any]) -> None:
    """What the process of a trial does."""
    task = TrialTask.model_validate(config["task"])
    try:
        train_trial(task, _worker(Share(**config["share"])), report=report_to_tune)
    except (ValueError, OSError) as error:
        if not is_mendable(error):
            raise  # starting again may help
        task.job.run_folder.mkdir(parents=True, exist_ok=True)
        (task.job.run_folder / ERROR).write_text(first_cause(error), encoding="utf-8")


@final
class _Searcher(Searcher):  # type: ignore[misc]
    """Asks the driver for trials."""

    def __init__(self, driver: Driver, share: Share) -> None:
        super().__init__(metric="AP", mode="max")
        self._driver, self._share = driver, share
        self._keys: dict[str, str] = {}  # of trials, by Ray's names

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes down its searcher and scheduler; ours have the journal

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        found = self._driver.next_task()
        if found is None:
            return None if self._driver.has_running else str(Searcher.FINISHED)
        key, task = found
        self._keys[trial_id] = key
        return {"key": key, "task": task.model_dump(mode="json"), "share": vars(self._share)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._driver.end(self._keys[trial_id], error="its process ended again and again" if error else "")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""


@final
class _Halver(FIFOScheduler):  # type: ignore[misc]
    """Asks the driver which trials go on."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = self._driver.report(trial.config["key"], result)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)
