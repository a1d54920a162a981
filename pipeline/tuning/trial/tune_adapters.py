"""Adapters for Ray Tune: the driver decides which trial is next, which continues, and when all trials end.

Ray Tune pickles its searcher and its scheduler to save the state of an experiment. The journal is that state here, so
that both are pickled empty.
"""

from __future__ import annotations

from typing import Any, final

from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.tuning.trial.driver import Driver


@final
class DriverSearcher(Searcher):  # type: ignore[misc]
    """Ask the driver for the next trial."""

    def __init__(self, driver: Driver, resources: dict[str, Any]) -> None:
        """Start without trials.

        Args:
            driver: The driver of the search.
            resources: The resources of a trial as plain values, which are handed to its process.
        """
        super().__init__(metric="AP", mode="max")
        self._driver, self._resources = driver, resources
        self._keys: dict[str, str] = {}  # the driver's keys by Ray's trial ids

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, because the journal is the state."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the configuration of the next trial, None if there is none now, or `FINISHED`."""
        found = self._driver.next_task()
        if found is None:
            return str(Searcher.FINISHED) if self._driver.is_done else None
        key, task = found
        self._keys[trial_id] = key
        return {"key": key, "task": task.model_dump(mode="json"), "resources": self._resources}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report to the driver that the process of a trial ended."""
        self._driver.end(self._keys[trial_id], error="its process failed repeatedly" if error else "")

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, because the journal is the state."""


@final
class DriverScheduler(FIFOScheduler):  # type: ignore[misc]
    """Ask the driver whether a trial continues after an epoch."""

    def __init__(self, driver: Driver) -> None:
        """Keep the driver.

        Args:
            driver: The driver of the search.
        """
        super().__init__()
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, because the journal is the state."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return `CONTINUE` or `STOP`."""
        continues = self._driver.report(trial.config["key"], result)
        return str(TrialScheduler.CONTINUE if continues else TrialScheduler.STOP)


@final
class DriverStopper(Stopper):  # type: ignore[misc]
    """Stop all trials if they have not ended by themselves after the deadline or an interrupt."""

    def __init__(self, driver: Driver) -> None:
        """Keep the driver.

        Args:
            driver: The driver of the search.
        """
        self._driver = driver

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, because the journal is the state."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False, because the scheduler stops single trials."""
        return False

    def stop_all(self) -> bool:
        """Return whether all trials have to stop."""
        return self._driver.must_stop
