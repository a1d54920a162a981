"""The mutable state of a training run, and its conversion to and from a checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.training.checkpoint import Checkpoint
from yolov7.training.distillation import add_adapters
from yolov7.training.ema import Ema
from yolov7.training.optim import Schedule, build_optimizer


@dataclass
class Progress:
    """How far a run is, which together with the seed determines its next batches; and sums over the current epoch.

    Attributes:
        losses: Box, objectness and classification loss (3,), with a teacher also that of distillation (4,), summed over
            the steps of the current epoch.
        epoch: Completed epochs.
        batch: Completed steps of the current epoch, counted once for all workers.
        step: Completed steps since the beginning.
        images: Images of the current epoch so far.
        wait: Seconds of the current epoch in which training waited for the loader.
        epoch_seconds: Seconds of training in the current epoch.
        seconds: Seconds of training since the beginning.
        skipped_steps: Steps whose loss or gradient was not finite.
        rollbacks: How often the run returned to a checkpoint because it had diverged.
    """

    losses: Tensor
    epoch: int = 0
    batch: int = 0
    step: int = 0
    images: int = 0
    wait: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    skipped_steps: int = 0
    rollbacks: int = 0

    def add_time(self, seconds: float) -> None:
        """Add training time.

        Args:
            seconds: The time since the last call.
        """
        self.epoch_seconds += seconds
        self.seconds += seconds

    def end_epoch(self) -> None:
        """Count the current epoch as completed and reset its sums."""
        self.epoch += 1
        self.losses = torch.zeros_like(self.losses)
        self.batch, self.images, self.wait, self.epoch_seconds = 0, 0, 0.0, 0.0

    def mean_losses(self) -> dict[str, float]:
        """Return the mean of each loss over the steps of the current epoch, by name."""
        names = ("box", "objectness", "classification", "distillation")
        return dict(zip(names, (self.losses / max(self.batch, 1)).tolist(), strict=False))

    def rates(self) -> dict[str, float]:
        """Return the speed of the current epoch and the share of its time that was spent waiting for the loader."""
        seconds = max(self.epoch_seconds, 1e-9)
        return {"images_per_second": self.images / seconds, "loader_wait_share": self.wait / seconds}

    def plain(self) -> dict[str, Any]:
        """Return all fields, with the losses as a list of numbers."""
        return {**vars(self), "losses": self.losses.tolist()}


@final
class TrainState:
    """Model, moving average, optimizer, gradient scaler and progress.

    A restore point is a moment in which no accumulated gradient waits for the optimizer. Until the next restore point,
    only the model's buffers (the statistics of batch norm) and the progress change. Copies of these two are therefore
    enough to return to it. Checkpoints always hold the state at the last restore point, and a skipped step leaves no
    trace.

    Attributes:
        model: The model that is trained.
        ema: The moving average of its weights.
        optimizer: The optimizer.
        scaler: The scaler of the loss, which does nothing unless the precision is float16.
        progress: How far the run is.
        adapters: The modules that are trained with the model and are not part of the result; see `Distillation`.
    """

    def __init__(
        self,
        model: DetectionModel,
        *,
        settings: TrainSettings,
        schedule: Schedule,
        device: torch.device,
        adapters: nn.Module | None = None,
    ) -> None:
        """Create the state of a run at its beginning.

        Args:
            model: The initial model, on the device.
            settings: The settings of the run, with the name of a floating-point type as precision.
            schedule: The schedule of learning rates.
            device: The device that training runs on.
            adapters: Modules without buffers that are trained with the model, on the device; None if there are none.
        """
        self.model = model
        self.adapters = adapters or nn.ModuleList()
        optim = settings.optim
        self.ema = Ema(model, decay=optim.ema_decay, ramp=optim.ema_ramp, form=optim.ema)
        self.optimizer = build_optimizer(
            model,
            optim,
            schedule=schedule,
            by_row=settings.unfreeze_epochs > 0,
            is_bfloat16=settings.precision == "bfloat16",
        )
        add_adapters(self.optimizer, self.adapters)
        scales_loss = settings.precision == "float16" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales_loss)
        self.progress = Progress(losses=torch.zeros(4 if settings.distil.is_used else 3, device=device))
        self._precision = settings.precision
        self._buffers = dict(model.named_buffers())
        self._saved_buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        self._saved_progress = dataclasses.replace(self.progress)

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the model and of the adapters."""
        return [*self.model.parameters(), *self.adapters.parameters()]

    def set_restore_point(self) -> None:
        """Make this moment the restore point. No accumulated gradient may wait for the optimizer."""
        torch._foreach_copy_(list(self._saved_buffers.values()), list(self._buffers.values()))
        self._saved_progress = dataclasses.replace(self.progress)

    def restore_buffers(self) -> None:
        """Return the model's buffers to their values at the restore point."""
        torch._foreach_copy_(list(self._buffers.values()), list(self._saved_buffers.values()))

    def is_finite(self) -> bool:
        """Return whether all weights and all values of the optimizer are finite."""
        tensors = [parameter.detach() for parameter in self.parameters()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return bool(torch.isfinite(torch.stack(torch._foreach_norm(tensors, float("inf")))).all())

    def checkpoint(self, *, fingerprint: str) -> Checkpoint:
        """Copy the state at the restore point to the CPU.

        Args:
            fingerprint: Identifies the run.

        Returns:
            A checkpoint that shares no memory with the state.
        """
        model = self.model.state_dict()
        model.update({name: value for name, value in self._saved_buffers.items() if name in model})
        return Checkpoint(
            fingerprint=fingerprint,
            progress=self._saved_progress.plain(),
            model=_on_cpu(model),
            ema=_on_cpu(self.ema.model.state_dict()),
            ema_updates=self.ema.updates,
            optimizer=_on_cpu(self.optimizer.state_dict()),
            scaler=self.scaler.state_dict(),
            precision=self._precision,
            threads=torch.get_num_threads(),
            adapters=_on_cpu(self.adapters.state_dict()),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Change the state to that of a checkpoint.

        Args:
            checkpoint: A checkpoint of a run with the same fingerprint.
        """
        losses = torch.tensor(checkpoint.progress["losses"], device=self.progress.losses.device)
        self.progress = Progress(**{**checkpoint.progress, "losses": losses})
        self.model.load_state_dict(checkpoint.model)
        self.adapters.load_state_dict(checkpoint.adapters)
        self.ema.model.load_state_dict(checkpoint.ema)
        self.ema.updates = checkpoint.ema_updates
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.optimizer.zero_grad()
        self.scaler.load_state_dict(checkpoint.scaler)
        self.set_restore_point()


def _on_cpu(value: Any) -> Any:
    """Copy nested containers with copies of their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
