"""One training step: forward pass, loss, backward pass and, if enough gradients are summed, a step of the optimizer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from yolov7.criterion.choice import make_loss
from yolov7.criterion.distillation import Outputs
from yolov7.criterion.loss_parts import Loss
from yolov7.structures import Batch, HeadMaps
from yolov7.system.precision import autocast
from yolov7.training.distillation import Distillation
from yolov7.training.job import TrainJob
from yolov7.training.optim import Schedule, apply_plan
from yolov7.training.start import count_frozen_rows, frozen_rows
from yolov7.training.state import TrainState
from yolov7.training.worker import Worker

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 20
_Parameters = list[nn.Parameter]
_RATE_AFTER_ROLLBACK = 0.5  # an unchanged rate would diverge at the same step again


class DivergedError(Exception):
    """Training cannot continue from the current state; the message gives the reason."""


@final
class Stepper:
    """The steps of a training run.

    A step whose loss or gradient is not finite is skipped and counted.
    """

    def __init__(
        self,
        job: TrainJob,
        worker: Worker,
        state: TrainState,
        *,
        schedule: Schedule,
        dtype: torch.dtype,
        distillation: Distillation | None = None,
    ) -> None:
        """Prepare training steps.

        Args:
            job: The run.
            worker: This process.
            state: The state, which steps change.
            schedule: The schedule of learning rates.
            dtype: The type of activations in the forward pass.
            distillation: The imitation of a teacher; None if there is none.
        """
        settings = job.settings
        self._distillation = distillation
        model: nn.Module = distillation.wrap(state.model) if distillation else state.model
        self._job, self._worker, self._state, self._schedule, self._dtype = job, worker, state, schedule, dtype
        self._distributed = _distribute(model, worker) if worker.world_size > 1 else None
        runner = self._distributed or model
        self._runner: nn.Module = torch.compile(runner) if settings.compile else runner  # type: ignore[assignment]
        self._stride = max(*state.model.strides, distillation.stride if distillation else 0)
        self._largest_norm = job.largest_norm
        self._of_epoch: _OfEpoch | None = None  # see `_epoch`
        self._pending = 0  # steps whose gradients wait for the optimizer
        self._is_summed = True  # whether the pending gradients are summed over all workers
        self._skipped_in_a_row = 0
        self._has_moved = False
        self._seconds = 0.0

    def rates(self) -> dict[str, float]:
        """Return the share of the time of all steps of this process in which the teacher computed, if there is one."""
        if not self._distillation or not self._seconds:
            return {}
        return {"teacher_share": self._distillation.seconds / self._seconds}

    @property
    def last_step_succeeded(self) -> bool:
        """Whether the last step was not skipped."""
        return self._skipped_in_a_row == 0

    @property
    def has_moved(self) -> bool:
        """Whether the optimizer took a step in the last call of `step` or `end_epoch`."""
        return self._has_moved

    def lr(self, step: int) -> float:
        """Return the learning rate of all parameters but the biases.

        Args:
            step: The number of a step, counted from 0 over the whole run.
        """
        return self._schedule.at(step).lr * self._rate_share

    def step(self, batch: Batch) -> None:
        """Take one step.

        Args:
            batch: This worker's share of the batch, which may be empty if there are several workers.

        Raises:
            DivergedError: Many steps in a row had to be skipped.
        """
        progress, begun = self._state.progress, time.perf_counter()
        self._has_moved = False
        plan = self._schedule.at(progress.step)
        num_frozen = self._epoch(progress.epoch).num_frozen
        apply_plan(self._state.optimizer, plan, share=self._rate_share, num_frozen=num_frozen)
        self._add_gradients(batch)
        is_due = self._schedule.is_optimizer_step(progress.step, pending=self._pending)
        progress.step += 1
        progress.batch += 1
        if is_due:
            self._step_optimizer()
        self.set_restore_point()
        self._seconds += time.perf_counter() - begun

    def end_epoch(self) -> None:
        """Use the pending gradients at the end of an epoch, unless the schedule carries them over.

        Raises:
            DivergedError: Many steps in a row had to be skipped.
        """
        self._has_moved = False
        if self._schedule.steps_at_epoch_end and self._pending > 0:
            self._step_optimizer()
            self.set_restore_point()

    def set_restore_point(self) -> bool:
        """Make the current state the restore point unless gradients are pending, and return whether it was made."""
        if self._pending == 0:
            self._state.set_restore_point()
        return self._pending == 0

    def reset(self) -> None:
        """Discard pending gradients and the count of skipped steps, after the state was restored from a checkpoint."""
        self._pending = self._skipped_in_a_row = 0
        self._is_summed = True

    def _add_gradients(self, batch: Batch) -> None:
        progress, worker, is_last = self._state.progress, self._worker, self._is_last_of_sum()
        with self._without_communication(not is_last):
            loss, parts = self._loss_of(batch)
            total, *losses, images = worker.sum_over_workers(
                torch.stack([loss.detach(), *parts, loss.new_tensor(len(batch.index))])
            )
            progress.images += int(images)
            if not torch.isfinite(total):  # the same on all workers
                self._skip("the loss", steps=1)
                return
            # DDP averages gradients over processes, but the schedule expects the sum over all images
            scaled: Tensor = self._state.scaler.scale(loss * worker.world_size)
            scaled.backward()  # type: ignore[no-untyped-call]
        self._pending += 1
        self._is_summed = is_last
        progress.losses = progress.losses + torch.stack(losses)  # not in place: the restore point keeps the old tensor

    def _loss_of(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of a batch, and its detached parts."""
        worker = self._worker
        sum_over_ranks = worker.sum_over_workers if worker.world_size > 1 else None
        images, maps, inputs = self._forward(batch)
        targets = batch.targets.to(worker.device)
        parts = self._epoch(self._state.progress.epoch).loss(maps, targets, sum_over_ranks=sum_over_ranks)
        own = [parts.box, parts.objectness, parts.classification]
        if self._distillation is None:
            return parts.total, own
        imitated = self._distillation(images, Outputs(maps.lead, inputs), sum_over_ranks=sum_over_ranks)
        return parts.total + imitated.total, [*own, imitated.mean]

    def _epoch(self, epoch: int) -> _OfEpoch:
        """Return what may change with the epoch only, which is computed once in each epoch."""
        if self._of_epoch is None or self._of_epoch.number != epoch:
            model, settings = self._state.model, self._job.settings
            loss = make_loss(model, settings, epoch=epoch)
            num_frozen = count_frozen_rows(model, settings, epoch=epoch)
            self._of_epoch = _OfEpoch(epoch, loss, num_frozen, *self._split_parameters(num_frozen))
        return self._of_epoch

    def _is_last_of_sum(self) -> bool:
        """Return whether the optimizer is due after this step."""
        progress, schedule = self._state.progress, self._schedule
        ends_epoch = progress.batch + 1 == schedule.steps_per_epoch
        is_due = schedule.is_optimizer_step(progress.step, pending=self._pending + 1)
        return is_due or (ends_epoch and schedule.steps_at_epoch_end)

    def _without_communication(self, condition: bool) -> AbstractContextManager[None]:
        """Let a backward pass add its gradients to the pending ones without summing them over the workers."""
        return self._distributed.no_sync() if condition and self._distributed is not None else nullcontext()

    def _forward(self, batch: Batch) -> tuple[Tensor, HeadMaps, tuple[Tensor, ...]]:
        """Return the prepared images, the maps of the model, and the maps before its head that distillation compares.

        A worker whose share is empty computes the maps of a black image, because all workers must take part in a step,
        and returns no image and maps of no image.
        """
        count = len(batch.index)
        images = self._prepare(batch.images if count else batch.images.new_zeros(1, *batch.images.shape[1:]))
        has_statistics = count > 1 or (count == 1 and images.shape[-1] > self._stride)  # one cell has no variance
        with (
            autocast(self._dtype, self._worker.device),
            nullcontext() if has_statistics else _running_statistics(self._runner),
        ):
            outputs = self._runner(images)
        if not count:
            outputs = tuple(tuple(m[:0] for m in part) for part in outputs)
        lead, auxiliary, *inputs = outputs
        return images[:count], HeadMaps(lead, auxiliary), inputs[0] if inputs else ()

    def _step_optimizer(self) -> None:
        if self._pending == 0:
            return
        state, pending, self._pending = self._state, self._pending, 0
        if not self._is_summed:  # because the last step of the sum was skipped
            self._worker.average_in_place(_gradients(state.parameters()))
            self._is_summed = True
        state.scaler.unscale_(state.optimizer)
        epoch = self._epoch(state.progress.epoch)
        moving, resting = epoch.moving, epoch.resting
        norm, norm_of_resting = (nn.utils.get_total_norm(_gradients(group)) for group in (moving, resting))
        self._has_moved = is_finite = bool(torch.isfinite(norm + norm_of_resting))  # the same on all workers
        if is_finite:
            if self._largest_norm:
                nn.utils.clip_grads_with_norm_(moving, self._largest_norm, norm)
                nn.utils.clip_grads_with_norm_(resting, self._largest_norm, norm_of_resting)  # for their momentum
            state.scaler.step(state.optimizer)
            state.ema.update(state.model)
        state.scaler.update()
        state.optimizer.zero_grad()
        if is_finite:
            self._skipped_in_a_row = 0
        else:
            self._skip("the gradient", steps=pending)

    def _split_parameters(self, num_frozen: int) -> tuple[_Parameters, _Parameters]:
        """Split the parameters into those that are updated and those of the first, frozen rows.

        Rows that will be released have gradients too, and a learning rate of 0.
        """
        model, freeze = self._state.model, self._job.settings.freeze
        frozen = {parameter for row in frozen_rows(model, last=freeze)[:num_frozen] for parameter in row.parameters()}
        groups: tuple[_Parameters, _Parameters] = ([], [])
        for parameter in self._state.parameters():
            groups[parameter in frozen].append(parameter)
        return groups

    def _skip(self, what: str, *, steps: int) -> None:
        progress = self._state.progress
        progress.skipped_steps += steps
        self._skipped_in_a_row += steps
        self._state.restore_buffers()  # the statistics of batch norm may not be finite either
        log.info("step %d skipped: %s is not finite", progress.step, what)
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DivergedError(f"{what} was not finite in {self._skipped_in_a_row} steps in a row")

    @property
    def _rate_share(self) -> float:
        return _RATE_AFTER_ROLLBACK**self._state.progress.rollbacks

    def _prepare(self, images: Tensor) -> Tensor:
        scaled = images.to(self._worker.device, non_blocking=True).float().div_(255)  # B 3 H W
        size = self._training_size(images.shape[-1])
        if size != images.shape[-1]:
            scaled = functional.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
        if self._job.settings.channels_last:
            return scaled.contiguous(memory_format=torch.channels_last)
        return scaled

    def _training_size(self, size: int) -> int:
        settings = self._job.settings
        if self._state.progress.epoch < round(settings.low_resolution_share * settings.epochs):
            size = self._whole_strides(settings.low_resolution * size)
        vary = settings.multi_scale
        if vary == 0:
            return size
        generator = np.random.default_rng((self._job.seed, self._state.progress.step))
        return self._whole_strides(generator.uniform(1 - vary, 1 + vary) * size)

    def _whole_strides(self, size: float) -> int:
        return max(self._stride, round(size / self._stride) * self._stride)


class _OfEpoch(NamedTuple):
    """What may change with the epoch only.

    Attributes:
        number: The epoch, counted from 0.
        loss: The loss of the model.
        num_frozen: The number of first rows that are frozen.
        moving: The parameters that are updated.
        resting: The parameters of the frozen rows.
    """

    number: int
    loss: Loss
    num_frozen: int
    moving: _Parameters
    resting: _Parameters


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@contextmanager
def _running_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norm use its running statistics without changing them.

    Synchronised batch norm is not affected, because it must exchange statistics with the other workers.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def _distribute(model: nn.Module, worker: Worker) -> DistributedDataParallel:
    """Wrap the model so that gradients, and statistics if wanted, are combined over all workers."""
    if worker.sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # in place
    return DistributedDataParallel(
        model,
        device_ids=[worker.device.index] if worker.device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # otherwise every gradient is copied twice in each exchange
    )
