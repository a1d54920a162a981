"""Callbacks of the training loop: code of the user that is called during a run, with a state that is in checkpoints."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from yolov7.errors import SettingError, shown
from yolov7.nn.model import DetectionModel
from yolov7.system.plugins import CALLBACK, hash_of_source, load_plugin, naming
from yolov7.training.job import TrainJob
from yolov7.training.record import read_epochs
from yolov7.training.state import TrainState
from yolov7.training.worker import Worker

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class RunState:
    """What a callback sees of a run. In `on_step_end`, it may change the model, the average and the optimizer.

    Attributes:
        job: What is trained.
        worker: This process.
        model: The model that is trained.
        average: The moving average of its weights.
        optimizer: The optimizer.
        epoch: Completed epochs.
        step: Completed steps since the beginning, one for each batch.
        total_steps: Number of steps of the whole run.
    """

    job: TrainJob
    worker: Worker
    model: DetectionModel
    average: DetectionModel
    optimizer: torch.optim.Optimizer
    epoch: int
    step: int
    total_steps: int

    @property
    def folder(self) -> Path:
        """The folder of the run, for files of a callback. It is removed when the run is trained again."""
        return self.job.run_folder


class Callback(ABC):  # noqa: B024  # every method has a default
    """Code that is called during a training, in every worker, so that all of them can change the model alike.

    A callback that writes files or prints does so if `run.worker.is_lead`. A run that was interrupted continues with
    the state that the last checkpoint of the leading worker has, so that it ends as without the interruption, if
    `state_dict` has everything that the methods depend on.
    """

    def on_start(self, run: RunState) -> None:  # noqa: B027
        """Do something when the run begins, and each time it is continued, before its state is restored.

        Args:
            run: The run, as if it were at its beginning.
        """

    def on_step_end(self, run: RunState) -> None:  # noqa: B027
        """Do something after each step of the optimizer, for which the gradients of several batches may be summed.

        It is not called after a step that was skipped because its loss or gradient was not finite.

        Args:
            run: The run.
        """

    def on_epoch_end(self, run: RunState, figures: Figures) -> None:  # noqa: B027
        """Do something after each epoch and its validation.

        Args:
            run: The run; `epoch` counts this epoch.
            figures: The line of the epoch in `epochs.jsonl`: losses, and AP if it was measured.
        """

    def on_end(self, run: RunState) -> None:  # noqa: B027
        """Do something after the last epoch, before the final weights are written.

        Args:
            run: The run.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: tensors, numbers, texts, None, and lists and dicts of these."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore the state of a checkpoint.

        Args:
            state: What `state_dict` returned.
        """


@final
class Callbacks:
    """The callbacks of a run, those of its settings first. Their errors name them."""

    def __init__(
        self, job: TrainJob, worker: Worker, state: TrainState, *, total_steps: int, others: Sequence[Callback] = ()
    ) -> None:
        """Make the callbacks.

        Args:
            job: The run, whose settings name callbacks.
            worker: This process.
            state: The state of the run.
            total_steps: Number of steps of the whole run.
            others: Further callbacks.

        Raises:
            SettingError: One of them is no `Callback`.
        """
        self._job, self._worker, self._state, self._total_steps = job, worker, state, total_steps
        named = [(name, load_plugin(name, CALLBACK)) for name in job.settings.callbacks]
        made: list[tuple[str, Any]] = []
        for name, make in named:
            with naming("the callback", name):
                made.append((name, make()))
        made += [(_name_of(other), other) for other in others]
        for name, callback in made:
            if not isinstance(callback, Callback):
                raise SettingError(f"the callback {name} is no yolov7.Callback; derive its class from that")
        self._callbacks: list[tuple[str, Callback]] = made
        self._saved: dict[str, Any] = {}

    def __bool__(self) -> bool:
        """Return whether there are callbacks."""
        return bool(self._callbacks)

    def start(self) -> None:
        """Call `on_start`, before the state of the run is restored."""
        self._each("on_start", lambda callback, run: callback.on_start(run))
        self.set_restore_point()

    def end_step(self) -> None:
        """Call `on_step_end`."""
        self._each("on_step_end", lambda callback, run: callback.on_step_end(run))

    def end_epoch(self) -> None:
        """Call `on_epoch_end` with the line that the leading worker has recorded for the epoch."""
        if self._callbacks:
            recorded = read_epochs(self._job.run_folder)[-1] if self._worker.is_lead else None
            (line, *_) = self._worker.gather(recorded)
            assert line is not None
            self._each("on_epoch_end", lambda callback, run: callback.on_epoch_end(run, line))

    def end(self) -> None:
        """Call `on_end`."""
        self._each("on_end", lambda callback, run: callback.on_end(run))

    def set_restore_point(self) -> None:
        """Copy the states, so that the next checkpoint has them."""
        states: dict[str, Any] = {}
        for number, (name, callback) in enumerate(self._callbacks):
            with naming("state_dict of the callback", name):
                states[f"{number} {name}"] = _plain(callback.state_dict(), name=name)
        self._saved = states

    @property
    def saved(self) -> dict[str, Any]:
        """The states at the last restore point, which do not change any more."""
        return self._saved

    def restore(self, states: Mapping[str, Any]) -> None:
        """Restore the states of a checkpoint.

        Args:
            states: What `saved` was; a callback without an entry keeps its state.
        """
        for number, (name, callback) in enumerate(self._callbacks):
            if (state := states.get(f"{number} {name}")) is not None:
                with naming("load_state_dict of the callback", name):
                    callback.load_state_dict(_plain(state, name=name))
        self.set_restore_point()

    def _each(self, method: str, call: Callable[[Callback, RunState], None]) -> None:
        state, progress = self._state, self._state.progress
        for name, callback in self._callbacks:
            run = RunState(
                job=self._job,
                worker=self._worker,
                model=state.model,
                average=state.ema.model,
                optimizer=state.optimizer,
                epoch=progress.epoch,
                step=progress.step,
                total_steps=self._total_steps,
            )
            with naming(f"{method} of the callback", name):
                call(callback, run)


def hash_callbacks(callbacks: Sequence[Callback]) -> dict[str, str]:
    """Return digests of the sources of callbacks, by name, for the fingerprint of a run.

    Args:
        callbacks: The callbacks.
    """
    return {_name_of(callback): hash_of_source(type(callback)) for callback in callbacks}


def _name_of(callback: object) -> str:
    return f"{type(callback).__module__}.{type(callback).__qualname__}"


def _plain(value: Any, *, name: str) -> Any:
    """Copy nested containers of plain values and tensors, which go to the CPU; raise SettingError for other values."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) is dict and all(type(key) in (str, int) for key in value):
        return {key: _plain(item, name=name) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, name=name) for item in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise SettingError(
        f"the state of the callback {name} has {shown(value)}, a {type(value).__name__}; state_dict must return "
        "tensors, numbers, texts, None, and lists and dicts of these"
    )
