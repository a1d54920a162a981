"""The weights that a run produces: the moving average at its end or at its best epoch, or a mean over epochs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.training.averaging import average_models, recount_batch_norm
from yolov7.training.record import best_line
from yolov7.weights.weight_files import load_weights, save_weights

_BEST, _SNAPSHOT = "best-{:06d}.safetensors", "snapshot-{:06d}.safetensors"


@final
class FinalWeights:
    """The weights of single epochs in a run's folder, from which the run's final weights are computed.

    With `patience`, the final weights are the moving average of the epoch with the highest AP on the validation split.
    With `swa_epochs`, they are the mean of the weights at the ends of the last epochs. Otherwise they are the moving
    average at the end, of which nothing needs to be stored.
    """

    def __init__(self, folder: Path, settings: TrainSettings, *, class_names: tuple[str, ...]) -> None:
        """Prepare the storage.

        Args:
            folder: The folder of the run.
            settings: The settings of the run.
            class_names: The names of the classes.
        """
        self._folder, self._settings, self._class_names = folder, settings, class_names

    def store_epoch(
        self,
        line: Mapping[str, Any],
        *,
        earlier: Sequence[Mapping[str, Any]],
        model: DetectionModel,
        ema: DetectionModel,
    ) -> None:
        """Store the weights of the epoch that has just ended, if the final weights may need them.

        Args:
            line: The record of the epoch.
            earlier: The records of the epochs before.
            model: The trained model.
            ema: Its moving average.
        """
        epoch: int = line["epoch"]
        if self._settings.patience and best_line([*earlier, line]) is line:
            self._save(_BEST.format(epoch), ema)
            for path in self._folder.glob(_BEST.replace("{:06d}", "*")):
                if path.name != _BEST.format(epoch):
                    path.unlink(missing_ok=True)
        if epoch > self._settings.epochs - self._settings.swa_epochs:
            self._save(_SNAPSHOT.format(epoch), model)

    def is_out_of_patience(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether `patience` epochs have passed since the best one.

        Args:
            lines: The records of all epochs so far.
        """
        best = best_line(lines) if self._settings.patience else None
        return best is not None and lines[-1]["epoch"] - best["epoch"] >= self._settings.patience

    def load_best(self, lines: Sequence[Mapping[str, Any]]) -> DetectionModel | None:
        """Load the moving average of the best epoch.

        Args:
            lines: The records of all epochs.

        Returns:
            The model; None if the settings do not ask for the best epoch, or AP was never measured.

        Raises:
            ArtifactError: The stored file is damaged.
        """
        line = best_line(lines) if self._settings.patience else None
        path = self._folder / _BEST.format(line["epoch"]) if line else None
        return load_weights(path).model if path is not None and path.is_file() else None

    def average_last_epochs(self, images: Iterable[Tensor], *, device: torch.device) -> DetectionModel | None:
        """Compute the mean of the weights at the ends of the last epochs.

        Args:
            images: Batches (B, 3, H, W) in 0..1 on the device, from which the statistics of batch norm are computed.
            device: The device that computes.

        Returns:
            The model on the device; None if the settings do not ask for a mean.

        Raises:
            ArtifactError: A stored file is damaged.
        """
        epochs = range(self._settings.epochs - self._settings.swa_epochs + 1, self._settings.epochs + 1)
        paths = [self._folder / _SNAPSHOT.format(epoch) for epoch in epochs]
        models = [load_weights(path, device=device).model for path in paths if path.is_file()]
        if not models:
            return None
        mean = average_models(models)
        if not self._settings.freeze_batch_norm:
            recount_batch_norm(mean, images)
        return mean

    def _save(self, name: str, model: DetectionModel) -> None:
        size = self._settings.image_size
        save_weights(self._folder / name, model, class_names=self._class_names, image_size=size, training={})
