"""The driver of a search: starts and ends trials, keeps within the budget, and writes the journal. Imports no Ray."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pipeline.tuning.budget.plan import BudgetAccount
from pipeline.tuning.search.search import Search, Status, Trial
from pipeline.tuning.search.space import Candidate
from pipeline.tuning.trial.check import final_ap, find_mismatch, trained_values
from pipeline.tuning.trial.journal import Journal
from pipeline.tuning.trial.training import TrialTask, read_steps
from yolov7.errors import TrainingError, UserError, one_line
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS
from yolov7.training.record import read_epochs

ERROR_FILE = "error.txt"  # written by the process of a trial: an error that the user has to correct
STOP_FILE = "stop"  # read by the processes of all trials: write a checkpoint and end
STOP_SECONDS = 20.0  # for the current step of trials and their checkpoint when the search is interrupted
_MAX_FAILURES = 3  # a search ends after this number of failures in a row


@dataclass(frozen=True)
class Clock:
    """The seconds that a search has used.

    Attributes:
        began: When this command started, in seconds since the Unix epoch.
        before: Seconds that earlier commands used for the same search.
    """

    began: float
    before: float = 0.0

    def seconds(self) -> float:
        """Return the seconds used so far."""
        return self.before + time.time() - self.began

    def at(self, seconds: float) -> float:
        """Return when a number of seconds will have been used, in seconds since the Unix epoch."""
        return self.began + seconds - self.before


@final
class Driver:
    """Start trials while the budget allows it, and record how they end."""

    def __init__(
        self,
        search: Search,
        account: BudgetAccount,
        journal: Journal,
        *,
        folder: Path,
        clock: Clock,
        make_job: Callable[[Candidate], TrainJob],
        warm_start: bool,
        on_end: Callable[[Trial], None],
    ) -> None:
        """Take over the trials of the search and remove the stop file of an interrupted command.

        Args:
            search: The search, with the trials of its journal.
            account: The budget.
            journal: The journal, which has a first line.
            folder: The folder of the search.
            clock: The time that the search has used.
            make_job: Returns the training of a model.
            warm_start: Whether trials start from the weights of the most similar finished trial.
            on_end: Is called with each trial that ended.
        """
        self.search, self.account, self.clock = search, account, clock
        self._journal, self._folder, self._make_job = journal, folder.resolve(), make_job  # trials run elsewhere
        self._warm_start, self._on_end = warm_start, on_end
        self._unfinished = [trial for trial in search.trials.values() if trial.status == "running"]
        self._began: dict[str, float] = {}  # when the running trials started
        self._failures = 0
        self._interrupted: float | None = None
        (folder / STOP_FILE).unlink(missing_ok=True)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials in the order in which they started."""
        return tuple(self.search.trials.values())

    @property
    def deadline(self) -> float | None:
        """When trials end, in seconds since the Unix epoch; None if the budget is not a time."""
        return self.clock.at(self.account.amount) if self.account.budget.kind == "seconds" else None

    @property
    def is_done(self) -> bool:
        """Whether `next_task` will not return another trial, once it has returned None."""
        return self._interrupted is not None or not self._began

    @property
    def must_stop(self) -> bool:
        """Whether trials that still run have to be stopped.

        At the deadline and after an interrupt, trials end by themselves. They are stopped if a validation takes more
        than half of the time that is reserved for the results, or a checkpoint more than `STOP_SECONDS`.
        """
        if self._interrupted is not None:
            return time.time() > self._interrupted + STOP_SECONDS
        grace = (self.account.budget.amount - self.account.amount) / 2
        return self.deadline is not None and time.time() > self.deadline + grace

    def interrupt(self) -> None:
        """Ask all trials to write a checkpoint and to end. They stay "running", so that they can be resumed."""
        self._interrupted = time.time()
        (self._folder / STOP_FILE).touch()

    def next_task(self) -> tuple[str, TrialTask] | None:
        """Return the key of the next trial and its task, or None if the budget allows no further trial now."""
        if self._interrupted is not None or self._failures >= _MAX_FAILURES:
            return None
        while self._unfinished:
            trial = self._unfinished.pop(0)
            if self._can_resume(trial):
                return self._start(trial)
            self._finish(trial, "cut")
        new = self.search.ask(
            lambda candidate: self.account.affords(candidate, self.trials, seconds=self.clock.seconds())
        )
        if new is None:
            return None
        nearest = self.search.nearest(new.candidate) if self._warm_start else None
        new.warm_start = nearest.candidate.key if nearest else ""
        self._journal.started(new)
        return self._start(new)

    def report(self, key: str, line: Mapping[str, Any]) -> bool:
        """Record an epoch that the process of a trial reported, and return whether the trial continues.

        Args:
            key: The trial.
            line: `epoch`, `AP` and `steps`.
        """
        trial = self.search.trials[key]
        if line["epoch"] <= trial.epochs:
            return True
        compute = self.account.plan.compute(trial.candidate, steps=line["steps"])
        continues = self.search.report(key, epoch=line["epoch"], compute=compute, AP=line["AP"])
        self._journal.reported(trial, AP=line["AP"])
        return continues

    def end(self, key: str, *, error: str = "") -> None:
        """Record what a trial left when its process ended; nothing is recorded after an interrupt.

        Args:
            key: The trial.
            error: Why its process failed, if it did.
        """
        if self._interrupted is not None or key not in self._began:
            return
        trial = self.search.trials[key]
        job = self._make_job(trial.candidate)
        for line in read_epochs(job.run_folder):  # includes epochs whose report was lost
            if line.get("AP") is not None:
                self.report(key, {**line, "steps": read_steps(job.run_folder)})
        error_file = job.run_folder / ERROR_FILE
        error = error_file.read_text(encoding="utf-8") if error_file.is_file() else error
        if not error and trial.epochs:
            try:
                error = find_mismatch(trial.candidate, job)
            except (UserError, OSError) as fault:
                error = one_line(fault)
        trial.trained = trained_values(trial.candidate, job)
        is_whole = (job.run_folder / WEIGHTS).is_file()
        status: Status = "failed" if error else "complete" if is_whole else "cut"
        if status == "cut" and trial.status == "stopped":
            status = "stopped"
        self._finish(trial, status, AP=final_ap(job) if status == "complete" else None, error=error)

    def end_all(self) -> None:
        """Record what the running trials left; the budget is used up."""
        for key in list(self._began):
            self.end(key)

    def check(self) -> None:
        """Check that trials do not fail one after the other.

        Raises:
            TrainingError: If they do; the message contains the error of the last one.
        """
        if self._failures >= _MAX_FAILURES:
            last = [trial for trial in self.trials if trial.status == "failed"][-1]
            raise TrainingError(f"{self._failures} trials in a row failed; the last one: {last.error}")

    def _can_resume(self, trial: Trial) -> bool:
        """Return whether the budget holds the rest of an interrupted trial; lost compute counts as spent."""
        if self.account.budget.kind != "flop":
            return True
        plan, folder = self.account.plan, trial_folder(self._folder, trial.candidate.key)
        done = read_steps(folder)
        trial.reserved = plan.compute(trial.candidate, steps=done + plan.steps - _checkpoint_step(folder))
        trial.compute = plan.compute(trial.candidate, steps=done)
        return self.account.spent(self.trials, seconds=0.0) <= self.account.amount * (1 + 1e-9)

    def _start(self, trial: Trial) -> tuple[str, TrialTask]:
        candidate, plan = trial.candidate, self.account.plan
        self._began[candidate.key] = time.time()
        job = self._make_job(candidate)
        (job.run_folder / ERROR_FILE).unlink(missing_ok=True)
        max_steps = round(trial.reserved / plan.compute(candidate) * plan.steps)
        task = TrialTask(
            job=job,
            stop_file=self._folder / STOP_FILE,
            max_steps=max_steps if self.account.budget.kind == "flop" else None,
            deadline=self.deadline,
            warm_start=trial_folder(self._folder, trial.warm_start) / WEIGHTS if trial.warm_start else None,
        )
        return candidate.key, task

    def _finish(self, trial: Trial, status: Status, *, AP: float | None = None, error: str = "") -> None:
        key = trial.candidate.key
        folder = trial_folder(self._folder, key)
        seconds = trial.seconds + time.time() - self._began.pop(key, time.time())
        trial.compute = max(trial.compute, self.account.plan.compute(trial.candidate, steps=read_steps(folder)))
        self.search.end(key, status, AP=AP, seconds=seconds, error=one_line(error) if error else "")
        self._failures = self._failures + 1 if status == "failed" else 0
        self._journal.ended(trial)
        for path in folder.glob("checkpoint-*.pt"):
            path.unlink(missing_ok=True)
        self._on_end(trial)


def trial_folder(folder: Path, key: str) -> Path:
    """Return the run folder of a trial.

    Args:
        folder: The folder of the search.
        key: The trial.
    """
    return folder / "trials" / key


def delete_search(folder: Path) -> None:
    """Delete the folder of a search that has ended."""
    finished = folder.with_name(f"{folder.name}.finished")
    shutil.rmtree(finished, ignore_errors=True)
    folder.rename(finished)  # in one step, because an incomplete folder would look like an interrupted search
    shutil.rmtree(finished)


def _checkpoint_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, which is part of its file name; 0 if there is none."""
    return max((int(path.stem.rpartition("-")[2]) for path in folder.glob("checkpoint-*.pt")), default=0)
