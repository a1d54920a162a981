"""The training loop: one process of a run; several of them form a run over many devices.

Mutable state lives in `TrainState` and in the run's folder, and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import ImageIndex, load_index
from yolov7.data.loader import TrainLoader
from yolov7.evaluation.split import evaluate_split
from yolov7.nn.model import DetectionModel
from yolov7.settings import COCO_NMS
from yolov7.structures import Batch
from yolov7.system.memory import keep_memory
from yolov7.system.precision import precision_name, resolve_precision
from yolov7.training.checkpoint import Checkpoint, Checkpoints
from yolov7.training.job import TrainJob
from yolov7.training.optim import build_schedule
from yolov7.training.outcome import Outcome
from yolov7.training.record import Record, read_epochs
from yolov7.training.start import begin, set_training
from yolov7.training.state import Progress, TrainState
from yolov7.training.steps import DivergedError, Stepper
from yolov7.training.worker import Worker
from yolov7.weights.weight_files import save_weights

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
_MOST_ROLLBACKS = 3
_Asked = Callable[[], bool]
_HURRIED_PAUSE = 5.0  # seconds between checkpoints before the process is taken away
_VAL_BATCH = 16  # images, at most: small enough that many workers have batches to share
_BATCHES_FOR_STATISTICS = 64  # of training images, for the batch norm of averaged weights


def _no() -> bool:
    return False


def fit(job: TrainJob, worker: Worker, *, should_stop: _Asked = _no, should_hurry: _Asked = _no) -> bool:
    """Trains until the job's last epoch, from its last checkpoint where there is one, and leaves the weights.

    The run folder then holds `weights.safetensors`, `epochs.jsonl` and the last checkpoints. `should_stop` is asked
    after every step; once it says so, a checkpoint is written and the answer is False: the run is not complete.
    While `should_hurry` says so, there is a checkpoint every few seconds, for the process may end at any time.
    """
    if worker.device.type == "cpu":
        keep_memory()
    with job.sole_writer() if worker.leads else nullcontext():
        trainer = Trainer(job, worker, should_stop=should_stop, should_hurry=should_hurry)
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
    """A run in one process."""

    def __init__(self, job: TrainJob, worker: Worker, *, should_stop: _Asked = _no, should_hurry: _Asked = _no) -> None:
        torch.manual_seed(job.seed)
        settings = job.settings
        self._job, self._worker = job, worker
        self._should_stop, self._should_hurry = should_stop, should_hurry
        self._train_index = load_index(job.data_folder / "train.npz")
        self._val_index = _optional_index(job.data_folder / "val.npz")
        if settings.patience and self._val_index is None:
            raise ValueError(f"train.patience={settings.patience} needs a val split to watch; name one in data.val")
        self._loader = _build_loader(job, worker, self._train_index)
        schedule = build_schedule(
            settings.optim,
            batch_size=settings.batch_size,
            steps_per_epoch=len(self._loader),
            epochs=settings.epochs,
        )
        self._total_steps = schedule.total_steps
        self._start = begin(job, self._train_index)
        model = self._start.model.to(worker.device)
        dtype = resolve_precision(settings.precision, worker.device)
        self._precision = precision_name(dtype)
        self._state = TrainState(
            _in_memory_format(model, channels_last=settings.channels_last),
            settings=settings,
            schedule=schedule,
            scales_loss=dtype == torch.float16 and worker.device.type == "cuda",
            device=worker.device,
        )
        self._stepper = Stepper(job, worker, self._state, schedule=schedule, dtype=dtype)
        self._record = Record(job.run_folder) if worker.leads else None
        self._outcome = Outcome(job.run_folder, settings, class_names=self._train_index.class_names)
        self.is_complete = False
        self._checkpoints = Checkpoints(job.run_folder, kept=settings.checkpoints_kept, say=self._say)
        self._clock = self._saved = time.monotonic()

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self._state.progress

    def resume(self) -> None:
        """Takes up the run's last whole checkpoint; those of other data or settings are deleted."""
        if self._worker.leads:
            self._checkpoints.sweep()
        checkpoint = self._last_checkpoint()
        if checkpoint is not None:
            self._state.restore(checkpoint)
        if self._record:
            self._record.start_after(self._epochs_trained)
        if checkpoint is None:
            self._begin()
        elif checkpoint.step:
            together = f" with {self._worker.world_size} workers" if self._worker.world_size > 1 else ""
            self._say(f"goes on after step {checkpoint.step} of {self._total_steps}{together}", level=logging.INFO)
        self._judge()
        self._clock = time.monotonic()

    def run_epoch(self) -> None:
        """Trains the rest of an epoch, saves and validates where that is due, and records what was measured."""
        set_training(self._state.model, frozen=self._job.settings.freeze)
        for batch in self._timed_batches():
            self._stepper.step(batch)
            self._after_step()
        self._stepper.end_epoch()
        epoch, last = self.progress.epoch + 1, self._job.settings.epochs
        if epoch % self._job.settings.checkpoint_every == 0 or epoch == last:
            self._save()  # written while the model is validated
        self._measure(epoch)
        self.progress.end_epoch()
        self._stepper.settle()
        self._judge()

    def roll_back(self, reason: DivergedError) -> None:
        """Goes back to the last checkpoint with a lower learning rate; ValueError where that did not help before."""
        lr, rollbacks = self._stepper.lr(self.progress.step), self.progress.rollbacks + 1
        skipped = self.progress.skipped_steps
        if rollbacks > _MOST_ROLLBACKS:
            raise ValueError(
                f"{reason}, also after {_MOST_ROLLBACKS} rollbacks and with a learning rate of {lr:.2g}; "
                f"lower train.optim.lr0={self._job.settings.optim.lr0} or use train.precision: float32"
            )
        self._settle_checkpoint()
        self._worker.wait_for_all()
        checkpoint = self._last_checkpoint()
        if checkpoint is None:
            raise ValueError(f"{reason}, and there is no checkpoint to go back to in {self._job.run_folder}")
        self._state.restore(checkpoint)
        self._stepper.reset()
        self.progress.rollbacks, self.progress.skipped_steps = rollbacks, skipped
        self._stepper.settle()
        if self._record:
            self._record.start_after(self._epochs_trained)
        self._say(f"{reason}: back to the checkpoint of step {checkpoint.step}, with half the learning rate")

    def finish(self) -> None:
        """Writes the weights that are the result of the run."""
        if self._record:
            best = self._outcome.best(read_epochs(self._job.run_folder))
            training = {"fingerprint": self._job.fingerprint, "epochs": self.progress.epoch, "seed": self._job.seed}
            save_weights(
                self._job.run_folder / WEIGHTS,
                best or self._mean_of_last_epochs(self._record) or self._state.ema.model,
                class_names=self._train_index.class_names,
                image_size=self._job.settings.image_size,
                training={**training, "ancestors": list(self._start.ancestors)},
            )
        self._settle_checkpoint()

    def _mean_of_last_epochs(self, record: Record) -> DetectionModel | None:
        """Where it is wanted; the last line of the record then has its figures."""
        mean = self._outcome.mean(self._plain_images(), device=self._worker.device)
        if mean is None:
            return None
        before = read_epochs(self._job.run_folder)[-1].get("AP")
        figures = self._validate(mean, Worker(device=self._worker.device, loader_workers=self._worker.loader_workers))
        record.amend(figures)
        if figures.get("AP") is not None and before is not None:
            epochs = self._job.settings.swa_epochs
            self._say(
                f"AP {figures['AP']:.4f} of the mean of {epochs} epochs' weights, {before:.4f} of the moving average"
            )
        return mean

    def _plain_images(self) -> Iterator[Tensor]:
        """Batches of training images (B, 3, S, S) in 0..1 without mosaic, of one size."""
        batches = self._loader.epoch(self._job.settings.epochs, mosaic=False)
        size = -(-self._job.settings.batch_size // self._worker.world_size)
        for batch in islice(batches, _BATCHES_FOR_STATISTICS):
            if len(batch.index) == size:
                yield batch.images.to(self._worker.device).float() / 255

    def _judge(self) -> None:
        """Ends the run where its epochs are over, or AP on val has not grown for too long."""
        epoch, settings = self.progress.epoch, self._job.settings
        tired = self._worker.leads and self._outcome.is_out_of_patience(read_epochs(self._job.run_folder))
        if tired and epoch < settings.epochs:
            self._say(
                f"ends after epoch {epoch}: AP on val has not grown for {settings.patience} epochs", level=logging.INFO
            )
        (self.is_complete,) = self._worker.any_of(tired or epoch >= settings.epochs)

    def _begin(self) -> None:
        """A checkpoint of the beginning: something to go back to, and whether the folder can be written shows now."""
        if self._worker.leads:
            self._checkpoints.clear()
            self._checkpoints.save(self._state.checkpoint(fingerprint=self._job.fingerprint))
            self._checkpoints.wait()
            for note in self._start.notes:
                self._say(note)

    def _timed_batches(self) -> Iterator[Batch]:
        progress = self.progress
        mosaic = progress.epoch < self._first_plain_epoch
        batches = self._loader.epoch(progress.epoch, mosaic=mosaic, start=progress.batch)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            progress.wait += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def _after_step(self) -> None:
        self._add_time()
        stop, due = self._worker.any_of(self._should_stop(), self._worker.leads and self._is_checkpoint_due())
        if self._record:
            self._record.show(self._shown(), now=stop)
        if stop or due:
            self._save()
        if stop:
            self._settle_checkpoint()
            raise _Stopped

    def _is_checkpoint_due(self) -> bool:
        pause = _HURRIED_PAUSE if self._should_hurry() else 60 * self._job.settings.checkpoint_minutes
        return time.monotonic() - self._saved >= pause

    def _save(self) -> None:
        """Copies the state, to be written while training goes on; not where it is in doubt."""
        if not self._stepper.is_steady:
            return
        if not self._state.is_finite():
            raise DivergedError("the weights are not finite")
        self._saved = time.monotonic()
        if self._worker.leads:
            self._settle_checkpoint()
            self._checkpoints.save(self._state.checkpoint(fingerprint=self._job.fingerprint))

    def _last_checkpoint(self) -> Checkpoint | None:
        """The newest whole one. The leading worker says which that is: storage may show files to others later."""
        leads = self._worker.leads
        mine = self._checkpoints.newest(fingerprint=self._job.fingerprint) if leads else None
        step = self._worker.gather(mine.step if mine else None)[0]
        return mine if leads or step is None else self._checkpoints.of_step(step)

    def _settle_checkpoint(self) -> None:
        try:
            self._checkpoints.wait()
        except OSError as error:
            self._say(f"a checkpoint could not be written ({error}); the one before it stays")

    def _measure(self, epoch: int) -> None:
        """Validates where that is due and records; what the run measured before it was interrupted stays."""
        rates = self.progress.rates()
        is_new = self._record is not None and self._record.last_epoch < epoch
        due = epoch % self._job.settings.validate_every == 0 or epoch == self._job.settings.epochs
        figures = self._validate_together() if due and any(self._worker.any_of(is_new)) else {}
        if self._record and is_new:
            self._add_time()
            line = {**self._line(epoch), **rates, **figures}
            earlier = read_epochs(self._job.run_folder)
            self._outcome.keep(line, earlier=earlier, model=self._state.model, ema=self._state.ema.model)
            self._record.add_epoch(line)
            self._record.show(self._shown(), now=True)
        self._worker.wait_for_all()

    def _validate_together(self) -> dict[str, float | None]:
        """The moving average's figures; its batch norm is the leading worker's, as in a checkpoint."""
        ema = self._state.ema.model
        self._worker.follow_lead(ema.state_dict().values())
        return self._validate(ema, self._worker)

    def _validate(self, model: DetectionModel, worker: Worker) -> dict[str, float | None]:
        if self._val_index is None:
            return {}
        figures = evaluate_split(
            model,
            self._val_index,
            image_size=self._job.settings.image_size,
            batch_size=min(self._job.settings.batch_size, _VAL_BATCH),
            nms=COCO_NMS,
            precision=self._job.settings.precision,
            rank=worker.rank,
            world_size=worker.world_size,
            loader_workers=worker.loader_workers,
            gather=worker.gather,
        ).figures
        return {"AP": figures.AP, "AP50": figures.AP50}

    def _line(self, epoch: int) -> dict[str, float | str]:
        progress = self.progress
        return {
            "epoch": epoch,
            "epochs": self._job.settings.epochs,
            **progress.mean_losses(),
            "lr": self._stepper.lr(progress.step - 1),
            "skipped_steps": progress.skipped_steps,
            "rollbacks": progress.rollbacks,
            "seconds": progress.seconds,
            "precision": self._precision,
            "device": self._worker.device.type,
            "workers": self._worker.world_size,
        }

    def _shown(self) -> dict[str, float]:
        progress = self.progress
        place = {"epochs_done": progress.epoch, "step": progress.step, "total_steps": self._total_steps}
        return {**place, **progress.mean_losses(), **progress.rates()}

    def _say(self, text: str, *, level: int = logging.WARNING) -> None:
        log.log(level, "%s", text)
        if self._record:
            self._record.add_note(text)

    def _add_time(self) -> None:
        now = time.monotonic()
        self.progress.add_time(now - self._clock)
        self._clock = now

    @property
    def _epochs_trained(self) -> int:
        """Also one whose steps are done, but which may still have to be validated."""
        return self.progress.epoch + (self.progress.batch == len(self._loader))

    @property
    def _first_plain_epoch(self) -> int:
        """The first epoch without mosaic and mixup: the last `close_mosaic`, at most a fifth of the run."""
        epochs = self._job.settings.epochs
        return epochs - min(self._job.settings.close_mosaic, epochs // 5)


class _Stopped(Exception):  # noqa: N818  (no error)
    """The run was asked to stop, and its checkpoint is written."""


def _optional_index(path: Path) -> ImageIndex | None:
    return load_index(path) if path.is_file() else None


def _build_loader(job: TrainJob, worker: Worker, index: ImageIndex) -> TrainLoader:
    settings = job.settings
    dataset = DetectionDataset(
        index,
        image_size=settings.image_size,
        augment=settings.augment,
        seed=job.seed,
        cache=settings.cache_images,
        cache_folder=job.run_folder.parents[1] / ".cache",  # beside the variants' folders, for all of their runs
        processes=worker.processes_on_machine,
    )
    return TrainLoader(
        dataset,
        batch_size=settings.batch_size,
        seed=job.seed,
        balance=settings.class_balance,
        num_workers=worker.loader_workers,
        rank=worker.rank,
        world_size=worker.world_size,
    )


def _in_memory_format(model: DetectionModel, *, channels_last: bool) -> DetectionModel:
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
