"""A search in MLflow: one run for the search, and a child run for each trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

from pipeline.tracking import RunKey, TrackedRun, Tracker
from pipeline.tuning.report.messages import count_by_status
from pipeline.tuning.search.search import Trial
from pipeline.tuning.setup import Setup


@final
class TrackedSearch:
    """The MLflow runs of one search; failures of tracking raise nothing."""

    def __init__(self, tracker: Tracker, parent: TrackedRun, setup: Setup) -> None:
        """Keep the open run of the search.

        Args:
            tracker: The tracker of the experiment.
            parent: The run of the search.
            setup: What is searched.
        """
        self._tracker, self._parent, self._setup = tracker, parent, setup

    def log_trial(self, trial: Trial) -> None:
        """Log a trial as a run of its own: the model or the settings as parameters, its AP and costs as metrics."""
        candidate, setup = trial.candidate, self._setup
        fingerprint = f"{setup.fingerprint}-{candidate.key}"
        key = RunKey(variant=candidate.label, seed=setup.settings.seed, fingerprint=fingerprint)
        with self._tracker.run(key, parent=self._parent.key) as run:
            run.set_tags({"status": trial.status, "rules": " ".join(candidate.rules)})
            rule = {"rule": candidate.rules[0]} if candidate.rules else {}
            run.log_params(rule | (dict(candidate.train) or dict(candidate.features)))
            for epoch, AP in trial.curve:
                run.log_metrics({"AP_by_epoch": AP}, step=epoch)
            run.log_metrics(
                {
                    "AP": trial.AP,
                    "gflops": candidate.gflops,
                    "parameters": candidate.parameters_deployed,
                    "training_flop": trial.compute,
                    "seconds": trial.seconds,
                }
            )

    def log_results(self, folder: Path, trials: Sequence[Trial]) -> None:
        """Log the folder of results and the number of trials by status.

        Args:
            folder: The folder of results.
            trials: All trials.
        """
        self._parent.log_artifact(folder, "tune")
        self._parent.log_metrics({f"tune/{name}": number for name, number in count_by_status(trials).items()})


@contextmanager
def track_search(experiment: str, setup: Setup, *, epochs: int) -> Iterator[TrackedSearch]:
    """Open the run of a search, in an experiment of its own.

    Args:
        experiment: The experiment of the project; the search's experiment has the same name followed by `-tune`.
        setup: What is searched.
        epochs: Epochs of a whole trial.
    """
    key = RunKey(variant=f"tune {setup.base_name}", seed=setup.settings.seed, fingerprint=setup.fingerprint)
    with Tracker(f"{experiment}-tune") as tracker, tracker.run(key) as parent:
        parent.log_params(setup.settings.model_dump() | {"base": setup.base_name, "epochs": epochs})
        yield TrackedSearch(tracker, parent, setup)
