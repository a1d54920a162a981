"""The training loop: one process of a run; several of them form a run over many devices.

Mutable state lives here, in `Ema` and in checkpoints, and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from yolov7.data.dataset import DetectionDataset
from yolov7.data.labels import ImageIndex, load_index
from yolov7.data.loader import TrainLoader
from yolov7.evaluation import evaluate_split
from yolov7.loss import DetectionLoss
from yolov7.model import DetectionModel
from yolov7.precision import autocast, precision_name, resolve_precision
from yolov7.settings import COCO_NMS
from yolov7.structures import Batch, HeadMaps
from yolov7.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolov7.train.ema import Ema
from yolov7.train.job import TrainJob
from yolov7.train.optim import Schedule, apply_plan, build_optimizer
from yolov7.train.record import Record
from yolov7.weights import save_weights

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.safetensors"
_MAX_SKIPPED_IN_A_ROW = 20


@dataclass(frozen=True)
class Worker:
    """The place of this process in the run; with more than one, the process group is set up already."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    loader_workers: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0


@dataclass
class _Meter:
    """Sums over the steps of an epoch."""

    losses: Tensor  # box, objectness, classification
    steps: int = 0
    images: int = 0
    wait: float = 0.0  # seconds that steps waited for the loader
    started: float = 0.0

    def rates(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return {"images_per_second": self.images / seconds, "loader_wait_share": self.wait / seconds}


def fit(job: TrainJob, worker: Worker) -> None:
    """Trains until the job's last epoch, from its checkpoint where there is one, and leaves the EMA's weights.

    The run folder then holds `weights.safetensors`, `epochs.jsonl` and the last checkpoint.
    """
    trainer = Trainer(job, worker)
    trainer.resume()
    while trainer.epoch < job.settings.epochs:
        trainer.run_epoch()
    trainer.finish()


@final
class Trainer:
    """The state of a run in one process."""

    def __init__(self, job: TrainJob, worker: Worker) -> None:
        torch.manual_seed(job.seed)
        settings = job.settings
        self._job, self._worker = job, worker
        self._train_index = load_index(job.data_folder / "train.npz")
        self._val_index = _optional_index(job.data_folder / "val.npz")
        self._loader = _build_loader(job, worker, self._train_index)
        self._schedule = Schedule(
            settings=settings.optim,
            batch_size=settings.batch_size,
            steps_per_epoch=len(self._loader),
            epochs=settings.epochs,
        )
        model = DetectionModel(job.spec, num_classes=len(self._train_index.class_names)).to(worker.device)
        self._model = _in_memory_format(model, channels_last=settings.channels_last)
        self._runner = _wrap(self._model, worker, compiled=settings.compile)
        self._ema = Ema(self._model, decay=settings.optim.ema_decay, ramp=settings.optim.ema_ramp)
        self._optimizer = build_optimizer(self._model, settings.optim, schedule=self._schedule)
        self._loss = DetectionLoss(
            anchors_px=model.anchors_px,
            strides=model.strides,
            num_classes=model.num_classes,
            image_size=settings.image_size,
            settings=settings.loss,
        )
        self._dtype = resolve_precision(settings.precision, worker.device)
        scales = self._dtype == torch.float16 and worker.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(worker.device.type, enabled=scales)
        self._record = Record(job.run_folder) if worker.leads else None
        self._since_update = 0  # steps whose gradients wait for the optimizer
        self._skipped_in_a_row = 0
        self.skipped_steps = 0
        self.epoch = 0
        self.step = 0
        self.seconds = 0.0

    def resume(self) -> None:
        """Takes up the run's checkpoint; one of other data or settings is left alone and training starts anew."""
        path = self._job.run_folder / CHECKPOINT
        checkpoint = load_checkpoint(path) if path.is_file() else None
        if checkpoint is not None and checkpoint.fingerprint == self._job.fingerprint:
            self._restore(checkpoint)
        if self._record:
            self._record.start_after(self.epoch)

    def run_epoch(self) -> None:
        """Trains one epoch, validates and saves where that is due, and records what was measured."""
        meter = _Meter(losses=torch.zeros(3, device=self._worker.device), started=time.perf_counter())
        self._model.train()
        for batch in self._timed_batches(meter):
            self._train_step(batch, meter)
        self._update_weights()
        rates = meter.rates()
        self.epoch += 1
        figures: dict[str, float | None] = {**rates, **(self._validate() if self._validation_is_due() else {})}
        self.seconds += time.perf_counter() - meter.started
        self._record_epoch(meter, figures)
        if self.epoch % self._job.settings.checkpoint_every == 0 or self.epoch == self._job.settings.epochs:
            self._save()

    def finish(self) -> None:
        """Writes the EMA's weights, which are the result of the run."""
        if self._record:
            save_weights(
                self._job.run_folder / WEIGHTS,
                self._ema.model,
                class_names=self._train_index.class_names,
                image_size=self._job.settings.image_size,
                training={"fingerprint": self._job.fingerprint, "epochs": self.epoch, "seed": self._job.seed},
            )

    def _timed_batches(self, meter: _Meter) -> Iterator[Batch]:
        batches = self._loader.epoch(self.epoch, mosaic=self.epoch < self._first_plain_epoch)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            meter.wait += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def _train_step(self, batch: Batch, meter: _Meter) -> None:
        plan = self._schedule.at(self.step)
        apply_plan(self._optimizer, plan)
        images = self._prepare(batch.images)
        with autocast(self._dtype, self._worker.device):
            maps = HeadMaps(*self._runner(images))
        parts = self._loss(maps, batch.targets.to(self._worker.device))
        if self._is_finite(parts.total):
            # DDP averages gradients over processes; the sum over all images is what the schedule is made for
            scaled: Tensor = self._scaler.scale(parts.total * self._worker.world_size)
            scaled.backward()  # type: ignore[no-untyped-call]
            self._since_update += 1
            meter.losses += torch.stack([parts.box, parts.objectness, parts.classification]).detach()
        if self._since_update >= plan.accumulate:
            self._update_weights()
        self.step += 1
        meter.steps += 1
        meter.images += len(batch.index) * self._worker.world_size
        if self._record:
            self._record.show(self._progress(meter))

    def _prepare(self, images: Tensor) -> Tensor:
        scaled = images.to(self._worker.device, non_blocking=True).float() / 255  # B 3 H W
        size = self._training_size(images.shape[-1])
        if size != images.shape[-1]:
            scaled = functional.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
        if self._job.settings.channels_last:
            return scaled.contiguous(memory_format=torch.channels_last)
        return scaled

    def _training_size(self, size: int) -> int:
        vary = self._job.settings.multi_scale
        if vary == 0:
            return size
        stride = max(self._model.strides)
        generator = np.random.default_rng((self._job.seed, self.step))
        drawn = generator.uniform(1 - vary, 1 + vary) * size
        return max(stride, round(drawn / stride) * stride)

    def _is_finite(self, total: Tensor) -> bool:
        finite = torch.isfinite(total.detach()).float()
        if self._worker.world_size > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if bool(finite):
            self._skipped_in_a_row = 0
            return True
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        log.warning("step %d skipped: its loss is not finite", self.step)
        if self._skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            raise ValueError(
                f"the loss was not finite in {_MAX_SKIPPED_IN_A_ROW} steps in a row; "
                f"lower train.optim.lr0={self._job.settings.optim.lr0} or use train.precision: float32"
            )
        return False

    def _update_weights(self) -> None:
        if self._since_update == 0:
            return
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        self._ema.update(self._model)
        self._since_update = 0

    def _validation_is_due(self) -> bool:
        every, last = self._job.settings.validate_every, self._job.settings.epochs
        return self._val_index is not None and (self.epoch % every == 0 or self.epoch == last)

    def _validate(self) -> dict[str, float | None]:
        figures: dict[str, float | None] = {}
        if self._worker.leads and self._val_index is not None:
            metrics = evaluate_split(
                self._ema.model,
                self._val_index,
                image_size=self._job.settings.image_size,
                batch_size=self._job.settings.batch_size,
                nms=COCO_NMS,
                precision=self._job.settings.precision,
            ).figures
            figures = {"AP": metrics.AP, "AP50": metrics.AP50}
        if self._worker.world_size > 1:
            dist.barrier()
        return figures

    def _record_epoch(self, meter: _Meter, figures: dict[str, float | None]) -> None:
        if not self._record:
            return
        box, objectness, classification = (meter.losses / max(meter.steps, 1)).tolist()
        line = {
            "epoch": self.epoch,
            "epochs": self._job.settings.epochs,
            "box": box,
            "objectness": objectness,
            "classification": classification,
            "lr": self._schedule.at(self.step - 1).lr,
            "skipped_steps": self.skipped_steps,
            "seconds": self.seconds,
            "precision": precision_name(self._dtype),
            "device": self._worker.device.type,
        }
        self._record.add_epoch({**line, **figures})
        self._record.show(self._progress(meter), now=True)

    def _progress(self, meter: _Meter) -> dict[str, float]:
        box, objectness, classification = (meter.losses / max(meter.steps, 1)).tolist()
        return {
            "epochs_done": self.epoch,
            "step": self.step,
            "total_steps": self._schedule.total_steps,
            "box": box,
            "objectness": objectness,
            "classification": classification,
            **meter.rates(),
        }

    def _save(self) -> None:
        if not self._worker.leads:
            return
        checkpoint = Checkpoint(
            fingerprint=self._job.fingerprint,
            epoch=self.epoch,
            step=self.step,
            skipped_steps=self.skipped_steps,
            seconds=self.seconds,
            model=self._model.state_dict(),
            ema=self._ema.model.state_dict(),
            ema_updates=self._ema.updates,
            optimizer=self._optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
        )
        save_checkpoint(self._job.run_folder / CHECKPOINT, checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.skipped_steps, self.seconds = checkpoint.skipped_steps, checkpoint.seconds
        self._model.load_state_dict(checkpoint.model)
        self._ema.model.load_state_dict(checkpoint.ema)
        self._ema.updates = checkpoint.ema_updates
        self._optimizer.load_state_dict(checkpoint.optimizer)
        self._scaler.load_state_dict(checkpoint.scaler)

    @property
    def _first_plain_epoch(self) -> int:
        """The first epoch without mosaic and mixup: the last `close_mosaic`, at most a fifth of the run."""
        epochs = self._job.settings.epochs
        return epochs - min(self._job.settings.close_mosaic, epochs // 5)


def _optional_index(path: Path) -> ImageIndex | None:
    return load_index(path) if path.is_file() else None


def _build_loader(job: TrainJob, worker: Worker, index: ImageIndex) -> TrainLoader:
    settings = job.settings
    dataset = DetectionDataset(
        index, image_size=settings.image_size, augment=settings.augment, seed=job.seed, cache=settings.cache_images
    )
    return TrainLoader(
        dataset,
        batch_size=settings.batch_size,
        seed=job.seed,
        num_workers=worker.loader_workers,
        rank=worker.rank,
        world_size=worker.world_size,
    )


def _in_memory_format(model: DetectionModel, *, channels_last: bool) -> DetectionModel:
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _wrap(model: DetectionModel, worker: Worker, *, compiled: bool) -> nn.Module:
    module: nn.Module = model
    if worker.world_size > 1:
        ids = [worker.device.index] if worker.device.type == "cuda" else None
        module = DistributedDataParallel(model, device_ids=ids)
    return torch.compile(module) if compiled else module  # type: ignore[return-value]
