"""The command `train --jobs`: train variants and seeds at the same time, as many as there is room for.

Each training is a process with a command's work of its own: lock, tracking, progress, and the training process or the
Ray cluster. These processes are forked from one that has imported everything they need.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import read_json, stage_folder
from pipeline.artifacts.reports import TrainSummary
from pipeline.commands.run_stages import run_train
from pipeline.console import console, duration, stage_line
from pipeline.experiment import Experiment, ResolvedVariant
from pipeline.params import RaySettings
from pipeline.ray.cluster import interrupt_on_sigterm
from pipeline.ray.environment import cluster_address
from pipeline.ray.local import preload, process_context
from pipeline.ray.parent_process import end_with_command
from pipeline.ray.run_folders import is_finished
from pipeline.ray.slots import FreeRoom, Slot, divide, find_nodes
from pipeline.stages.train import build_job
from yolov7.errors import ArtifactError, TrainingError, UserError, counted, is_mendable, one_line, told
from yolov7.training.job import TrainJob

_EXIT_SECONDS = 60.0  # for a training that was asked to end, with its checkpoint
_INTERRUPTED = 130


@dataclass(frozen=True)
class _Task:
    variant: ResolvedVariant
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant.name}/{self.seed}"

    @property
    def stage(self) -> str:
        """The name of the DVC stage."""
        return f"train@{self.variant.name}-{self.seed}"


@dataclass(frozen=True)
class _Running:
    task: _Task
    process: BaseProcess
    slots: tuple[Slot, ...]
    printer: threading.Thread


def train_many(experiment: Experiment, selection: Sequence[tuple[ResolvedVariant, int]], *, jobs: int) -> None:
    """Train variants and seeds at the same time, and keep the finished runs for `dvc repro`.

    Those whose training is finished, or recorded by DVC with the same inputs, are not trained again. Variants with
    given weights are left to `dvc repro`.

    Args:
        experiment: The resolved experiment.
        selection: What to train.
        jobs: The most trainings at the same time; 0 for as many as there is room for.

    Raises:
        TrainingError: If some trainings failed; the others are finished.
        UserError: If no training can start.
        KeyboardInterrupt: After SIGINT or SIGTERM, when all trainings have left a checkpoint.
    """
    for note in experiment.notes:
        console.print(stage_line("train", "", note))
    trained = [_Task(variant, seed) for variant, seed in selection if variant.given is None]
    tasks = _unfinished(trained)
    if len(tasks) < len(trained):
        done = f"{len(trained) - len(tasks)} of {counted(len(trained), 'training')}"
        console.print(stage_line("train", "", f"{done} finished before with the same data, settings and code"))
    if not tasks:
        return
    interrupt_on_sigterm()
    preload("mlflow", __name__)
    failed = _train_all(replace(experiment, notes=()), tasks, jobs=jobs or len(tasks))
    if failed:
        raise TrainingError(
            f"{len(failed)} of {counted(len(tasks), 'training')} failed ({', '.join(failed)}), for the reasons above; "
            "run the same command again to repeat these only"
        )
    console.print(stage_line("train", "", "all trainings are finished; `dvc repro` uses their weights"))


def _unfinished(tasks: Sequence[_Task]) -> list[_Task]:
    """Return the trainings that are not finished and whose results DVC has not recorded."""
    jobs = {task.stage: build_job(task.variant, seed=task.seed) for task in tasks}
    left = [task for task in tasks if not is_finished(jobs[task.stage])]
    recorded = _recorded_by_dvc([task.stage for task in left if _has_result(task, jobs[task.stage])])
    return [task for task in left if task.stage not in recorded]


def _has_result(task: _Task, job: TrainJob) -> bool:
    """Return whether the stage `train` has written a result of the same data and settings."""
    path = stage_folder("train", task.variant.name, task.seed) / "train.json"
    if not path.is_file():
        return False
    summary = read_json(path, TrainSummary, made_by="train")
    return job.model_copy(update={"continued_from": summary.continued_from}).fingerprint == summary.fingerprint


def _recorded_by_dvc(stages: Sequence[str]) -> set[str]:
    """Return the stages that `dvc repro` would not run again."""
    if not stages or not Path("dvc.yaml").is_file() or not Path("dvc.lock").is_file():
        return set()
    command = [sys.executable, "-m", "dvc", "status", "--json", *stages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = one_line((done.stderr.strip().splitlines() or ["no message"])[-1])
        raise ArtifactError(f"`dvc status` fails ({reason}); run it to see why, and then the same command again")
    changed: dict[str, object] = json.loads(done.stdout)
    return set(stages) - changed.keys()


def _train_all(experiment: Experiment, tasks: Sequence[_Task], *, jobs: int) -> list[str]:
    """Train all tasks, and return the names of those that failed."""
    nodes = find_nodes(tasks[0].variant.ray)
    free, began, failed = FreeRoom(nodes), time.monotonic(), []
    waiting = [(task, divide(task.variant.ray, nodes, trainings=min(jobs, len(tasks)))) for task in tasks]
    with _ended_with_this() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                task, settings = waiting[0]
                slots = free.take(settings)
                if slots is None and running:
                    break
                del waiting[0]
                running.append(_start(experiment, task, settings, slots or ()))  # without room, it says so itself
            ended = wait([one.process.sentinel for one in running])
            for one in [one for one in running if one.process.sentinel in ended]:
                running.remove(one)
                one.process.join()
                one.printer.join(_EXIT_SECONDS)
                free.give_back(one.slots)
                if one.process.exitcode:
                    failed.append(one.task.name)
                _show(len(tasks) - len(waiting) - len(running), len(tasks), seconds=time.monotonic() - began)
    return failed


@contextmanager
def _ended_with_this() -> Iterator[list[_Running]]:
    """Provide a list of what runs, all of which is asked to end when the body ends."""
    running: list[_Running] = []
    try:
        yield running
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join(_EXIT_SECONDS)
            one.process.kill()


def _show(done: int, total: int, *, seconds: float) -> None:
    left = f", about {duration(seconds / done * (total - done))} left" if done < total else ""
    console.print(stage_line("train", "", f"{done} of {counted(total, 'training')} ended{left}"))


def _start(experiment: Experiment, task: _Task, settings: RaySettings, slots: Sequence[Slot]) -> _Running:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    gpus = None if cluster_address() else ",".join(str(number) for slot in slots for number in slot.gpus)
    variant = replace(task.variant, ray=settings)
    process = process_context().Process(
        target=_train_one, args=(sender, experiment, variant, task.seed, gpus), name=f"train {task.name}"
    )
    process.start()
    sender.close()
    printer = threading.Thread(target=_print_from, args=(receiver,), name=f"print {task.name}", daemon=True)
    printer.start()
    return _Running(task, process, tuple(slots), printer)


def _print_from(receiver: Connection) -> None:
    with os.fdopen(os.dup(receiver.fileno()), encoding="utf-8", errors="backslashreplace") as lines:
        receiver.close()
        for line in lines:
            console.print(line.rstrip("\n"))


def _train_one(output: Connection, experiment: Experiment, variant: ResolvedVariant, seed: int, gpus: Any) -> None:
    """Train in this process as a command of its own would; what it prints goes to the command."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    end_with_command(signal.SIGTERM)
    interrupt_on_sigterm()
    try:
        run_train(experiment, [(variant, seed)])
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except (UserError, OSError) as error:
        if not isinstance(error, UserError) and not is_mendable(error):
            raise
        print(stage_line("train", f"{variant.name}/{seed}", told(error)), file=sys.stderr)
        sys.exit(2)
