"""The training loop of one process. Several processes can share a run, one per device.

The only mutable state is `TrainState` and the run's folder.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import final

import torch

from yolov7.errors import TrainingError
from yolov7.nn.model import DetectionModel
from yolov7.system.memory import keep_memory
from yolov7.system.precision import resolve_precision
from yolov7.training.batches import build_loader, statistics_batches, timed_batches
from yolov7.training.callbacks import Callback, Callbacks
from yolov7.training.checkpoint import Checkpoint, Checkpoints
from yolov7.training.conditions import (
    describe_continuation,
    describe_early_end,
    describe_epoch,
    describe_progress,
    describe_skipped_steps,
    settle_threads,
    with_lasting_precision,
)
from yolov7.training.continuation import newest_checkpoint
from yolov7.training.distillation import Distillation, open_teacher
from yolov7.training.final_weights import FinalWeights
from yolov7.training.job import TrainJob, check_own_code
from yolov7.training.optim import build_schedule
from yolov7.training.record import RunRecord, read_epochs
from yolov7.training.start import build_start, set_training
from yolov7.training.state import Progress, TrainState
from yolov7.training.steps import DivergedError, Stepper
from yolov7.training.training_split import load_training_split
from yolov7.training.validation import Validator
from yolov7.training.worker import Worker
from yolov7.weights.weight_files import save_weights

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
_MAX_ROLLBACKS = 3
_Ask = Callable[[], bool]
_Own = Sequence[Callback]
_HURRIED_SECONDS = 5.0  # between checkpoints if the process may be ended at any time


def _no() -> bool:
    return False


def fit(
    job: TrainJob, worker: Worker, *, callbacks: _Own = (), should_stop: _Ask = _no, should_hurry: _Ask = _no
) -> bool:
    """Train until the last epoch, continuing from the last checkpoint if there is one, and write the weights.

    Afterwards the run folder holds `weights.safetensors`, `epochs.jsonl` and the last checkpoints.

    Args:
        job: The run.
        worker: This process.
        callbacks: Called during the run, beside those that the settings name.
        should_stop: Called after every step. Once it returns True, a checkpoint is written and training stops.
        should_hurry: While it returns True, a checkpoint is written every few seconds, because the process may be
            ended at any time.

    Returns:
        Whether the run is complete; False if it was stopped.

    Raises:
        TrainingError: Training diverges even with lower learning rates.
        SettingError: The settings do not fit the data.
        ArtifactError: A file that the run needs is missing or damaged, or another process trains in the folder.
        SpecError: The settings name a row that the model does not have.
        OSError: The run folder cannot be written.
    """
    if worker.device.type == "cpu":
        keep_memory()
    with job.sole_writer() if worker.is_lead else nullcontext():
        trainer = Trainer(job, worker, callbacks=callbacks, should_stop=should_stop, should_hurry=should_hurry)
        trainer.resume()
        while not trainer.is_complete:
            try:
                trainer.run_epoch()
            except DivergedError as reason:
                trainer.roll_back(reason)
            except _Stopped:
                return False
        trainer.finish()
    return True


@final
class Trainer:
    """A run in one process.

    Attributes:
        is_complete: Whether all epochs are trained, or the run has ended early because AP did not improve.
    """

    def __init__(
        self, job: TrainJob, worker: Worker, *, callbacks: _Own = (), should_stop: _Ask = _no, should_hurry: _Ask = _no
    ) -> None:
        """Prepare a run; `resume` must be called before it is trained.

        Args:
            job: The run.
            worker: This process.
            callbacks: See `fit`.
            should_stop: See `fit`.
            should_hurry: See `fit`.

        Raises:
            SettingError: The settings need a validation split, and there is none.
            ArtifactError: A file that the run needs is missing or damaged.
        """
        check_own_code(job)
        torch.manual_seed(job.seed)
        self._job, self._worker = job, worker
        self._record = RunRecord(job.run_folder) if worker.is_lead else None
        self._checkpoints = Checkpoints(job.run_folder, kept=job.settings.checkpoints_kept, report=self._report)
        self._found = self._last_checkpoint()
        settings = with_lasting_precision(job.settings, self._found, worker)
        if note := settle_threads(self._found, worker):
            self._report(note, logging.INFO)
        self._should_stop, self._should_hurry = should_stop, should_hurry
        self._train_index = load_training_split(job)
        self._validator = Validator(job.data_folder, settings)
        self._loader = build_loader(job, worker, self._train_index)
        schedule = build_schedule(
            settings.optim, batch_size=settings.batch_size, steps_per_epoch=len(self._loader), epochs=settings.epochs
        )
        self._total_steps = schedule.total_steps
        teacher = open_teacher(job, self._train_index.class_names)
        self._start = build_start(job, self._train_index, teacher=teacher)
        model = self._start.model.to(worker.device)
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dtype = resolve_precision(settings.precision, worker.device)
        self._precision = settings.precision
        distillation = Distillation(teacher, model, settings, dtype=dtype) if teacher else None
        adapters = distillation.adapters if distillation else None
        self._state = TrainState(model, settings=settings, schedule=schedule, device=worker.device, adapters=adapters)
        self._stepper = Stepper(job, worker, self._state, schedule=schedule, dtype=dtype, distillation=distillation)
        self._callbacks = Callbacks(job, worker, self._state, total_steps=self._total_steps, others=callbacks)
        self._final_weights = FinalWeights(job.run_folder, settings, class_names=self._train_index.class_names)
        self.is_complete = False
        self._clock = self._saved = time.monotonic()

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self._state.progress

    def resume(self) -> None:
        """Continue from the last intact checkpoint; one of other data or settings is deleted, and this is reported.

        Raises:
            ArtifactError: There are checkpoints, but all are damaged.
            OSError: The run folder cannot be written.
        """
        if self._worker.is_lead:
            self._checkpoints.delete_drafts()
        checkpoint, self._found = self._found, None
        self._callbacks.start()
        if checkpoint is not None:
            self._restore(checkpoint)
        if self._record:
            self._record.start_after(self._epochs_trained)
        if checkpoint is None:
            self._save_beginning()
        elif checkpoint.step:
            text = describe_continuation(self._job, checkpoint, self._worker, total_steps=self._total_steps)
            self._report(text, logging.INFO)
        self._clock = time.monotonic()
        if self._epochs_trained > self.progress.epoch:
            self.run_epoch()  # complete the epoch, whose steps are all taken
        else:
            self._check_completion()

    def run_epoch(self) -> None:
        """Train the rest of an epoch, save and validate if that is due, and record what was measured.

        Raises:
            DivergedError: Training cannot continue from the current state.
        """
        settings, before = self._job.settings, self.progress.epoch
        set_training(self._state.model, settings, epoch=before)
        for batch in timed_batches(self._loader, self.progress, mosaic=before < settings.first_closing_epoch):
            self._stepper.step(batch)
            self._end_optimizer_step()
            self._after_step()
        self._stepper.end_epoch()
        self._end_optimizer_step()
        if is_due := ((before + 1) % settings.checkpoint_every == 0 or before + 1 == settings.epochs):
            self._save()  # it is written while the model is validated
        self._validate_and_record(before + 1)
        self.progress.end_epoch()
        self._callbacks.end_epoch()
        self._set_restore_point()
        self._check_completion()
        if self.is_complete and not is_due:  # a longer run may continue from here
            self._save()

    def roll_back(self, reason: DivergedError) -> None:
        """Return to the last checkpoint and halve the learning rate.

        Args:
            reason: Why training cannot continue from the current state.

        Raises:
            TrainingError: The run has returned to a checkpoint too often, or there is none.
        """
        lr, rollbacks = self._stepper.lr(self.progress.step), self.progress.rollbacks + 1
        skipped = self.progress.skipped_steps
        if rollbacks > _MAX_ROLLBACKS:
            limit = "" if self._job.largest_norm else "state optim.clip_norm: 10, "
            raise TrainingError(
                f"{reason}, also after {_MAX_ROLLBACKS} returns to a checkpoint and with a learning rate of {lr:.2g}; "
                f"{limit}lower optim.lr0={self._job.settings.optim.lr0} or use precision: float32"
            )
        self._wait_for_checkpoint()
        self._worker.wait_for_all()
        checkpoint = self._last_checkpoint()
        if checkpoint is None:
            raise TrainingError(f"{reason}, and there is no checkpoint to return to in {self._job.run_folder}")
        self._restore(checkpoint)
        self._stepper.reset()
        self.is_complete = False
        self.progress.rollbacks, self.progress.skipped_steps = rollbacks, skipped
        self._stepper.set_restore_point()
        if self._record:
            self._record.start_after(self._epochs_trained)
        self._report(
            f"{reason}: training returns to the checkpoint of step {checkpoint.step}, with half the learning rate"
        )

    def finish(self) -> None:
        """Write the final weights of the run.

        Raises:
            OSError: They cannot be written.
            ArtifactError: Stored weights of an epoch are damaged.
        """
        self._callbacks.end()
        if note := describe_skipped_steps(self.progress):
            self._report(note)
        if self._record:
            training = {**self._job.origin, "epochs": self.progress.epoch}
            training |= {"precision": self._precision, "ancestors": list(self._start.ancestors)}
            save_weights(
                self._job.run_folder / WEIGHTS,
                self._make_final_model(self._record),
                class_names=self._train_index.class_names,
                image_size=self._job.settings.image_size,
                training=training,
            )
        self._wait_for_checkpoint()

    def _make_final_model(self, record: RunRecord) -> DetectionModel:
        """Return the final model; if it is not that of an epoch, put its AP into the record."""
        lines, device, ema = read_epochs(self._job.run_folder), self._worker.device, self._state.ema.model
        images = statistics_batches(self._train_index, image_size=self._job.settings.image_size, device=device)
        model, description = self._final_weights.make(lines, ema=ema, images=images, device=device)
        if not description:
            return model
        before = lines[-1].get("AP_before", lines[-1].get("AP"))
        alone = Worker(device=device, loader_workers=self._worker.loader_workers)
        figures = self._validator.measure(model, alone)
        record.amend(figures)
        if figures.get("AP") is not None and before is not None:
            self._report(f"AP {figures['AP']:.4f} with {description}, {before:.4f} with the moving average at the end")
        return model

    def _end_optimizer_step(self) -> None:
        """Call the callbacks if the optimizer took a step, because weights may change at restore points only."""
        if self._callbacks and self._stepper.has_moved:
            self._callbacks.end_step()
            self._set_restore_point()

    def _set_restore_point(self) -> None:
        """Make this moment the restore point of the state and of the callbacks, if no gradients are pending."""
        if self._stepper.set_restore_point():
            self._callbacks.set_restore_point()

    def _checkpoint(self) -> Checkpoint:
        """Return the state at the restore point."""
        state = self._state.checkpoint(fingerprint=self._job.fingerprint)
        return dataclasses.replace(state, callbacks=self._callbacks.saved)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._state.restore(checkpoint)
        self._callbacks.restore(checkpoint.callbacks)

    def _check_completion(self) -> None:
        """End the run if all epochs are trained, or if AP on the validation split has not improved for too long."""
        epoch, settings = self.progress.epoch, self._job.settings
        lines = read_epochs(self._job.run_folder) if self._worker.is_lead else []
        ends_early = self._final_weights.is_out_of_patience(lines)
        if self._record and ends_early and epoch < settings.epochs:
            self._report(*describe_early_end(lines[-1], settings))
            self._record.state_epochs(settings.epochs)
        (self.is_complete,) = self._worker.any_of(ends_early or epoch >= settings.epochs)

    def _save_beginning(self) -> None:
        """Write a first checkpoint to return to, which also shows whether the folder can be written."""
        if self._worker.is_lead:
            self._checkpoints.clear()
            self._checkpoints.save(self._checkpoint())
            self._checkpoints.wait()
            for note in self._start.notes:
                self._report(note)

    def _after_step(self) -> None:
        self._add_time()
        stop, due = self._worker.any_of(self._should_stop(), self._worker.is_lead and self._is_checkpoint_due())
        if self._record:
            self._record.show(describe_progress(self.progress, total_steps=self._total_steps), now=stop)
        if stop or due:
            self._save()
        if stop:
            self._wait_for_checkpoint()
            raise _Stopped

    def _is_checkpoint_due(self) -> bool:
        pause = _HURRIED_SECONDS if self._should_hurry() else 60 * self._job.settings.checkpoint_minutes
        return time.monotonic() - self._saved >= pause

    def _save(self) -> None:
        """Copy the state, which is written while training continues; do nothing after a skipped step."""
        if not self._stepper.last_step_succeeded:
            return
        if not self._state.is_finite():
            raise DivergedError("the weights are not finite")
        self._saved = time.monotonic()
        if self._worker.is_lead:
            self._wait_for_checkpoint()
            self._checkpoints.save(self._checkpoint())

    def _last_checkpoint(self) -> Checkpoint | None:
        """Read the newest intact checkpoint of this run.

        The leading worker decides which one it is, because storage may show new files to other machines later.
        """
        is_lead = self._worker.is_lead
        own = newest_checkpoint(self._job, self._checkpoints, report=self._report) if is_lead else None
        step = self._worker.gather(own.step if own else None)[0]
        return own if is_lead or step is None else self._checkpoints.of_step(step)

    def _wait_for_checkpoint(self) -> None:
        try:
            self._checkpoints.wait()
        except OSError as error:
            self._report(f"a checkpoint could not be written ({error}); the one before it is kept")

    def _validate_and_record(self, epoch: int) -> None:
        """Validate if that is due, and record the epoch unless it was recorded before an interruption."""
        rates = self.progress.rates()
        is_new = self._record is not None and self._record.last_epoch < epoch
        is_due = epoch % self._job.settings.validate_every == 0 or epoch == self._job.settings.epochs
        figures = {}
        if is_due and any(self._worker.any_of(is_new)):
            figures = self._validator.measure_average(self._state.ema.model, self._worker)
        if self._record and is_new:
            self._add_time()
            lr = self._stepper.lr(self.progress.step - 1)
            told = describe_epoch(self.progress, self._job.settings, self._worker, precision=self._precision)
            line = {**told, "lr": lr, **rates, **self._stepper.rates(), **figures}
            earlier = read_epochs(self._job.run_folder)
            self._final_weights.store_epoch(line, earlier=earlier, model=self._state.model, ema=self._state.ema.model)
            self._record.add_epoch(line)
            self._record.show(describe_progress(self.progress, total_steps=self._total_steps), now=True)
        self._worker.wait_for_all()

    def _report(self, text: str, level: int = logging.WARNING) -> None:
        log.log(level, "%s", text)
        if self._record:
            self._record.add_note(text)

    def _add_time(self) -> None:
        now = time.monotonic()
        self.progress.add_time(now - self._clock)
        self._clock = now

    @property
    def _epochs_trained(self) -> int:
        """Epochs whose steps are completed, including one that may still have to be validated."""
        return self.progress.epoch + (self.progress.batch == len(self._loader))


class _Stopped(Exception):  # noqa: N818  # it is not an error
    """The run was asked to stop, and its checkpoint is written."""
