"""Between a search and the processes that train its trials: asks, tells, counts the budget, keeps the journal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pipeline.tuning.budget.plan import Ledger
from pipeline.tuning.search.search import Search, Status, Trial
from pipeline.tuning.search.space import Candidate
from pipeline.tuning.trial.journal import Journal
from pipeline.tuning.trial.training import TrialTask, prove, read_steps
from yolov7.errors import one_line
from yolov7.training.job import TrainJob
from yolov7.training.loop import WEIGHTS
from yolov7.training.record import read_epochs

ERROR = "error.txt"  # from a trial's process: what the user has to mend
STOP = "stop"  # to the processes of all trials: write a checkpoint and leave
_MOST_FAILURES = 3  # one after the other, with which a search gives up


@dataclass(frozen=True)
class Clock:
    """The seconds that a search has used: `began` is this command's start, `before` what earlier ones used."""

    began: float
    before: float = 0.0

    def seconds(self) -> float:
        return self.before + time.time() - self.began

    def at(self, seconds: float) -> float:
        """When so many will have been used, in seconds since the epoch."""
        return self.began + seconds - self.before


@final
class Driver:
    """Hands out trials while the budget affords them. `make_job`: the training of a model."""

    def __init__(
        self,
        search: Search,
        ledger: Ledger,
        journal: Journal,
        *,
        folder: Path,
        clock: Clock,
        make_job: Callable[[Candidate], TrainJob],
        warm_start: bool,
        on_end: Callable[[Trial], None],
    ) -> None:
        self.search, self.ledger, self.clock = search, ledger, clock
        self._journal, self._folder, self._make_job = journal, folder, make_job
        self._warm_start, self._on_end = warm_start, on_end
        self._left = [trial for trial in search.trials.values() if trial.status == "running"]
        self._began: dict[str, float] = {}
        self._failures = 0
        self.interrupted = False
        (folder / STOP).unlink(missing_ok=True)

    @property
    def deadline(self) -> float | None:
        """When trials have to end, in seconds since the epoch."""
        return self.clock.at(self.ledger.amount) if self.ledger.budget.kind == "seconds" else None

    @property
    def grace(self) -> float:
        """Seconds after the deadline in which what is under way, a validation, may come to its end."""
        return (self.ledger.budget.amount - self.ledger.amount) / 2

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All, in the order of their start."""
        return tuple(self.search.trials.values())

    @property
    def has_running(self) -> bool:
        """Whether any trial is under way."""
        return bool(self._began)

    def next_task(self) -> tuple[str, TrialTask] | None:
        """The key of the next trial and what its process needs; None where the budget affords no further one."""
        if self.interrupted or self._failures >= _MOST_FAILURES:
            return None
        while self._left:
            trial = self._left.pop(0)
            if self._can_go_on(trial):
                return self._task(trial)
            self._finish(trial, "cut")
        trial_or_none = self.search.ask(self._affords)
        if trial_or_none is None:
            return None
        donor = self.search.nearest(trial_or_none.candidate) if self._warm_start else None
        trial_or_none.donor = donor.candidate.key if donor else ""
        self._journal.started(trial_or_none)
        return self._task(trial_or_none)

    def report(self, key: str, line: Mapping[str, Any]) -> bool:
        """Whether the trial goes on after an epoch that its process reported."""
        trial = self.search.trials[key]
        if line["epoch"] <= trial.epochs:
            return True
        compute = self.ledger.plan.compute(trial.candidate, steps=line["steps"])
        goes_on = self.search.report(key, epoch=line["epoch"], compute=compute, AP=line["AP"])
        self._journal.reported(trial, AP=line["AP"])
        return goes_on

    def end(self, key: str, *, error: str = "") -> None:
        """Takes up what a trial's process left when it ended."""
        if self.interrupted or key not in self._began:
            return
        trial = self.search.trials[key]
        folder = self._trial_folder(trial.candidate)
        for line in read_epochs(folder):  # the record is the truth, also where its report came too late
            if line.get("AP") is not None:
                self.report(key, {**line, "steps": read_steps(folder)})
        error = _read(folder / ERROR) or error
        if not error and trial.epochs:
            error = prove(trial.candidate, self._make_job(trial.candidate))
        whole = (folder / WEIGHTS).is_file()
        status: Status = "failed" if error else "complete" if whole else "cut"
        if status == "cut" and trial.status == "stopped":
            status = "stopped"
        self._finish(trial, status, error=error)

    def cut_all(self) -> None:
        """The end of the budget: what is running ends as it is."""
        for key in list(self._began):
            self.end(key)

    def check(self) -> None:
        """ValueError where trials fail one after the other."""
        if self._failures >= _MOST_FAILURES:
            last = [trial for trial in self.trials if trial.status == "failed"][-1]
            raise ValueError(f"{self._failures} trials failed one after the other; the last one: {last.error}")

    def _affords(self, candidate: Candidate) -> bool:
        return self.ledger.affords(candidate, self.trials, seconds=self.clock.seconds())

    def _can_go_on(self, trial: Trial) -> bool:
        """Whether the budget holds the rest of an interrupted trial; what was lost by the interruption counts."""
        if self.ledger.budget.kind != "flop":
            return True
        plan, folder = self.ledger.plan, self._trial_folder(trial.candidate)
        steps = read_steps(folder) + plan.steps - _checkpoint_step(folder)
        trial.reserved = plan.compute(trial.candidate, steps=steps)
        trial.compute = plan.compute(trial.candidate, steps=read_steps(folder))
        return self.ledger.spent(self.trials, seconds=0.0) <= self.ledger.amount * (1 + 1e-9)

    def _task(self, trial: Trial) -> tuple[str, TrialTask]:
        candidate = trial.candidate
        self._began[candidate.key] = time.time()
        job = self._make_job(candidate)
        (job.run_folder / ERROR).unlink(missing_ok=True)
        task = TrialTask(
            job=job,
            stop_file=self._folder / STOP,
            most_steps=self._most_steps(trial),
            deadline=self.deadline,
            donor=self._trial_folder_of(trial.donor) / WEIGHTS if trial.donor else None,
        )
        return candidate.key, task

    def _most_steps(self, trial: Trial) -> int | None:
        """Where compute is what counts, those that are reserved."""
        if self.ledger.budget.kind != "flop":
            return None
        plan = self.ledger.plan
        return round(trial.reserved / plan.compute(trial.candidate) * plan.steps)

    def _finish(self, trial: Trial, status: Status, *, error: str = "") -> None:
        key = trial.candidate.key
        folder = self._trial_folder(trial.candidate)
        seconds = trial.seconds + time.time() - self._began.pop(key, time.time())
        trial.compute = max(trial.compute, self.ledger.plan.compute(trial.candidate, steps=read_steps(folder)))
        self.search.end(key, status, seconds=seconds, error=one_line(error) if error else "")
        self._failures = self._failures + 1 if status == "failed" else 0
        self._journal.ended(trial)
        for path in folder.glob("checkpoint-*.pt"):
            path.unlink(missing_ok=True)
        self._on_end(trial)

    def _trial_folder(self, candidate: Candidate) -> Path:
        return self._trial_folder_of(candidate.key)

    def _trial_folder_of(self, key: str) -> Path:
        return trial_folder(self._folder, key)


def trial_folder(folder: Path, key: str) -> Path:
    """Where a trial of the search in `folder` keeps its state."""
    return folder / "trials" / key


def forget(folder: Path) -> None:
    """Removes the state of a search that has ended."""
    finished = folder.with_name(f".{folder.name}.finished")
    shutil.rmtree(finished, ignore_errors=True)
    folder.rename(finished)  # at once: half of it would be taken for an interrupted search
    shutil.rmtree(finished)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _checkpoint_step(folder: Path) -> int:
    """Of the newest checkpoint, which its file's name says; 0 where there is none."""
    return max((int(path.stem.rpartition("-")[2]) for path in folder.glob("checkpoint-*.pt")), default=0)
