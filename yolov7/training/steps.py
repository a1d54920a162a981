"""One training step: forward, loss, backward and, when the batch is together, the optimizer. And what is skipped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from yolov7.criterion.loss import DetectionLoss
from yolov7.nn.model import DetectionModel
from yolov7.structures import Batch, HeadMaps
from yolov7.system.precision import autocast
from yolov7.training.job import TrainJob
from yolov7.training.optim import Schedule, apply_plan
from yolov7.training.state import TrainState
from yolov7.training.worker import Worker

log = logging.getLogger(__name__)

MOST_SKIPPED_IN_A_ROW = 20
_RATE_AFTER_ROLLBACK = 0.5  # going on as before would lead to the same place


class DivergedError(Exception):
    """Training cannot go on from where it is; the message says why."""


@final
class Stepper:
    """Moves a state step by step.

    A step whose loss or gradients are not finite is skipped and counted; DivergedError after many in a row.
    """

    def __init__(
        self, job: TrainJob, worker: Worker, state: TrainState, *, schedule: Schedule, dtype: torch.dtype
    ) -> None:
        model, settings = state.model, job.settings
        self._job, self._worker, self._state, self._schedule, self._dtype = job, worker, state, schedule, dtype
        self._shared = _share(model, worker) if worker.world_size > 1 else None
        runner = self._shared or model
        self._runner: nn.Module = torch.compile(runner) if settings.compile else runner  # type: ignore[assignment]
        self._stride = max(model.strides)
        self._loss = DetectionLoss(
            anchors_px=model.anchors_px,
            strides=model.strides,
            num_classes=model.num_classes,
            image_size=settings.image_size,
            settings=settings.loss,
        )
        self._waiting = 0  # steps whose gradients wait for the optimizer
        self._is_summed = True  # the gradients that wait, over all workers
        self._skipped_in_a_row = 0

    @property
    def is_steady(self) -> bool:
        """Whether the last step was a good one."""
        return self._skipped_in_a_row == 0

    def lr(self, step: int) -> float:
        """The learning rate of most parameters at a step."""
        return self._schedule.at(step).lr * self._rate_share

    def step(self, batch: Batch) -> None:
        """One step on a batch of this worker's."""
        progress = self._state.progress
        plan = self._schedule.at(progress.step)
        apply_plan(self._state.optimizer, plan, share=self._rate_share)
        self._add_gradients(batch)
        due = self._schedule.moves(progress.step, waiting=self._waiting)
        progress.step += 1
        progress.batch += 1
        if due:
            self._move()
        self.settle()

    def end_epoch(self) -> None:
        """Uses up the gradients that wait, where the schedule wants none carried over."""
        if self._schedule.moves_at_epoch_end:
            self._move()
            self.settle()

    def settle(self) -> None:
        """Marks the state as one to go back to, if it is."""
        if self._waiting == 0:
            self._state.mark()

    def reset(self) -> None:
        """Forgets what led to where the state no longer is."""
        self._waiting = self._skipped_in_a_row = 0
        self._is_summed = True

    def _add_gradients(self, batch: Batch) -> None:
        progress, worker, comes_last = self._state.progress, self._worker, self._comes_last()
        with self._gradients_kept_back(not comes_last):
            parts = self._loss(
                self._maps(batch),
                batch.targets.to(worker.device),
                sum_over_ranks=worker.sum_of if worker.world_size > 1 else None,
            )
            mine = [parts.total.detach(), parts.box, parts.objectness, parts.classification]
            total, *losses, images = worker.sum_of(torch.stack([*mine, parts.total.new_tensor(len(batch.index))]))
            progress.images += int(images)
            if not torch.isfinite(total):  # on no worker then
                self._skip("the loss", steps=1)
                return
            # DDP averages gradients over processes; the sum over all images is what the schedule is made for
            scaled: Tensor = self._state.scaler.scale(parts.total * worker.world_size)
            scaled.backward()  # type: ignore[no-untyped-call]
        self._waiting += 1
        self._is_summed = comes_last
        progress.losses = progress.losses + torch.stack(losses)  # the mark keeps the old one

    def _comes_last(self) -> bool:
        """Whether the optimizer is to move after this step."""
        progress, schedule = self._state.progress, self._schedule
        ends_epoch = progress.batch + 1 == schedule.steps_per_epoch
        return schedule.moves(progress.step, waiting=self._waiting + 1) or (ends_epoch and schedule.moves_at_epoch_end)

    def _gradients_kept_back(self, keep: bool) -> AbstractContextManager[None]:
        """A backward pass whose gradients are added to those that wait, without a word to the other workers."""
        return self._shared.no_sync() if keep and self._shared is not None else nullcontext()

    def _maps(self, batch: Batch) -> HeadMaps:
        """Of the batch's images; none where this worker has no share of a step, which it takes with the others."""
        count = len(batch.index)
        images = self._prepare(batch.images if count else batch.images.new_zeros(1, *batch.images.shape[1:]))
        has_statistics = count > 1 or (count == 1 and images.shape[-1] > self._stride)  # one cell has no variance
        with (
            autocast(self._dtype, self._worker.device),
            nullcontext() if has_statistics else _fixed_statistics(self._runner),
        ):
            maps = HeadMaps(*self._runner(images))
        return maps if count else HeadMaps(*(tuple(m[:0] for m in head) for head in maps))

    def _move(self) -> None:
        if self._waiting == 0:
            return
        state, waiting, self._waiting = self._state, self._waiting, 0
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        if not self._is_summed:  # the step that was to come last was skipped
            self._worker.average(gradients)
            self._is_summed = True
        state.scaler.unscale_(state.optimizer)
        finite = bool(torch.isfinite(nn.utils.get_total_norm(gradients)))  # the same on all workers
        if finite:
            state.scaler.step(state.optimizer)
            state.ema.update(state.model)
        state.scaler.update()
        state.optimizer.zero_grad()
        if finite:
            self._skipped_in_a_row = 0
        else:
            self._skip("the gradient", steps=waiting)

    def _skip(self, what: str, *, steps: int) -> None:
        progress = self._state.progress
        progress.skipped_steps += steps
        self._skipped_in_a_row += steps
        self._state.put_buffers_back()  # not finite either
        log.info("step %d skipped: %s is not finite", progress.step, what)
        if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise DivergedError(f"{what} was not finite in {self._skipped_in_a_row} steps in a row")

    @property
    def _rate_share(self) -> float:
        return _RATE_AFTER_ROLLBACK**self._state.progress.rollbacks

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
        generator = np.random.default_rng((self._job.seed, self._state.progress.step))
        drawn = generator.uniform(1 - vary, 1 + vary) * size
        return max(self._stride, round(drawn / self._stride) * self._stride)


@contextmanager
def _fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm with its running statistics, left as they are; not where it waits for what other workers have."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def _share(model: DetectionModel, worker: Worker) -> DistributedDataParallel:
    """The model with gradients, and statistics if wanted, over all workers; its tensors stay the model's own."""
    if worker.sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # in place
    return DistributedDataParallel(model, device_ids=[worker.device.index] if worker.device.type == "cuda" else None)
