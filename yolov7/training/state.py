"""All that a training run changes as it goes, and the way from there to a checkpoint and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.training.checkpoint import Checkpoint
from yolov7.training.ema import Ema
from yolov7.training.optim import Schedule, build_optimizer


@dataclass
class Progress:
    """How far a run is: with the seed it says which batches are still to come. And the sums of the epoch under way."""

    losses: Tensor  # box, objectness, classification, summed over the epoch's steps
    epoch: int = 0  # epochs that are done
    batch: int = 0  # steps of the epoch under way that are done, whatever the number of workers
    step: int = 0  # steps since the beginning
    images: int = 0  # of the epoch under way
    wait: float = 0.0  # seconds of it that steps waited for the loader
    epoch_seconds: float = 0.0
    seconds: float = 0.0  # of training since the beginning
    skipped_steps: int = 0
    rollbacks: int = 0

    def add_time(self, seconds: float) -> None:
        self.epoch_seconds += seconds
        self.seconds += seconds

    def end_epoch(self) -> None:
        self.epoch += 1
        self.losses = torch.zeros_like(self.losses)
        self.batch, self.images, self.wait, self.epoch_seconds = 0, 0, 0.0, 0.0

    def mean_losses(self) -> dict[str, float]:
        """Over the epoch's steps."""
        names = ("box", "objectness", "classification")
        return dict(zip(names, (self.losses / max(self.batch, 1)).tolist(), strict=True))

    def rates(self) -> dict[str, float]:
        seconds = max(self.epoch_seconds, 1e-9)
        return {"images_per_second": self.images / seconds, "loader_wait_share": self.wait / seconds}

    def plain(self) -> dict[str, Any]:
        """Numbers and a list."""
        return {**vars(self), "losses": self.losses.tolist()}


@final
class TrainState:
    """Model, average, optimizer and progress.

    `mark` remembers a moment in which no gradient waits for the optimizer. Until the next one only the model's buffers
    (the statistics of batch norm) and the progress move, so that keeping these two is enough to go back to it: a
    checkpoint is always of the last mark, and a skipped step leaves no trace.
    """

    def __init__(
        self,
        model: DetectionModel,
        *,
        settings: TrainSettings,
        schedule: Schedule,
        scales_loss: bool,
        device: torch.device,
    ) -> None:
        self.model = model
        self.ema = Ema(model, decay=settings.optim.ema_decay, ramp=settings.optim.ema_ramp)
        self.optimizer = build_optimizer(model, settings.optim, schedule=schedule)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales_loss)
        self.progress = Progress(losses=torch.zeros(3, device=device))
        self._buffers = dict(model.named_buffers())
        self._marked_buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        self._marked_progress = dataclasses.replace(self.progress)

    def mark(self) -> None:
        """No gradient waits now."""
        torch._foreach_copy_(list(self._marked_buffers.values()), list(self._buffers.values()))
        self._marked_progress = dataclasses.replace(self.progress)

    def put_buffers_back(self) -> None:
        """Undoes what the model's passes since the last mark did to its buffers."""
        torch._foreach_copy_(list(self._buffers.values()), list(self._marked_buffers.values()))

    def is_finite(self) -> bool:
        """Whether training can go on from these weights."""
        tensors = [parameter.detach() for parameter in self.model.parameters()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return bool(torch.isfinite(torch.stack(torch._foreach_norm(tensors, float("inf")))).all())

    def checkpoint(self, *, fingerprint: str) -> Checkpoint:
        """A copy of the state at the last mark, on the CPU."""
        model = self.model.state_dict()
        model.update({name: value for name, value in self._marked_buffers.items() if name in model})
        return Checkpoint(
            fingerprint=fingerprint,
            progress=self._marked_progress.plain(),
            model=_on_cpu(model),
            ema=_on_cpu(self.ema.model.state_dict()),
            ema_updates=self.ema.updates,
            optimizer=_on_cpu(self.optimizer.state_dict()),
            scaler=self.scaler.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes to the state of a checkpoint."""
        losses = torch.tensor(checkpoint.progress["losses"], device=self.progress.losses.device)
        self.progress = Progress(**{**checkpoint.progress, "losses": losses})
        self.model.load_state_dict(checkpoint.model)
        self.ema.model.load_state_dict(checkpoint.ema)
        self.ema.updates = checkpoint.ema_updates
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.optimizer.zero_grad()
        self.scaler.load_state_dict(checkpoint.scaler)
        self.mark()


def _on_cpu(value: Any) -> Any:
    """A copy of nested containers whose tensors are copies too."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
