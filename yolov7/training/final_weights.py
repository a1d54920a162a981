"""The weights that a run produces: the moving average at its end or at its best epochs, or a mean over the last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from yolov7.nn.model import DetectionModel
from yolov7.settings import TrainSettings
from yolov7.training.averaging import average_models, recount_batch_norm
from yolov7.training.record import best_line, best_lines, last_measured_line
from yolov7.training.start import count_frozen_rows, frozen_rows
from yolov7.weights.weight_files import load_weights, save_weights

_STORED = "epoch-{:06d}.safetensors"


class FinalModel(NamedTuple):
    """The final weights of a run.

    Attributes:
        model: The model.
        description: What its weights are; empty if they are those of an epoch, whose AP is in the record.
    """

    model: DetectionModel
    description: str


@final
class FinalWeights:
    """The weights of single epochs in a run's folder, from which the run's final weights are computed.

    One rule covers all settings: some epochs are chosen by the record, and the final weights are the mean of what is
    stored of them. With `swa_epochs`, these are the weights of the last epochs. With `average_best` or `patience`, they
    are the moving averages of the epochs with the highest AP on the validation split, with `patience` alone of one.
    Otherwise no epoch is chosen, and the final weights are the moving average at the end.
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
        chosen = self._choose([*earlier, line])
        if line["epoch"] in chosen:
            size = self._settings.image_size
            stored = model if self._settings.swa_epochs else ema
            save_weights(self._path(line["epoch"]), stored, class_names=self._class_names, image_size=size, training={})
        needed = {self._path(epoch) for epoch in chosen}
        for path in self._folder.glob(_STORED.replace("{:06d}", "*")):
            if path not in needed:
                path.unlink(missing_ok=True)

    def is_out_of_patience(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether AP was measured at least `patience` epochs after the best epoch, without being better.

        Epochs without a measurement, as with `validate_every`, do not end a run.

        Args:
            lines: The records of all epochs so far.
        """
        best = best_line(lines) if self._settings.patience else None
        last = last_measured_line(lines)
        return best is not None and last is not None and last["epoch"] - best["epoch"] >= self._settings.patience

    def make(
        self,
        lines: Sequence[Mapping[str, Any]],
        *,
        ema: DetectionModel,
        images: Iterable[Tensor],
        device: torch.device,
    ) -> FinalModel:
        """Compute the final weights. A mean gets new statistics of batch norm, because those of epochs have no mean.

        Args:
            lines: The records of all epochs.
            ema: The moving average at the end, which stays unchanged.
            images: Batches (B, 3, H, W) in 0..1 on the device, from which statistics of batch norm are computed.
            device: The device that computes.

        Returns:
            The model on the device.

        Raises:
            ArtifactError: A stored file is damaged.
        """
        settings = self._settings
        stored = [epoch for epoch in self._choose(lines) if self._path(epoch).is_file()]
        models = [load_weights(self._path(epoch), device=device).model for epoch in stored]
        if not models:
            return FinalModel(ema, "")
        if len(models) == 1 and not settings.swa_epochs:
            return FinalModel(models[0], "")
        model = average_models(models)
        if not settings.freeze_batch_norm:
            num_kept = count_frozen_rows(model, settings, epoch=stored[-1] - 1)  # rows that were frozen in all epochs
            recount_batch_norm(model, images, kept=frozen_rows(model, last=settings.freeze)[:num_kept])
        return FinalModel(model, self._describe_mean(stored))

    def _choose(self, lines: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the epochs, in ascending order, of which the final weights would be made if the run ended now."""
        settings = self._settings
        if settings.swa_epochs:
            return [line["epoch"] for line in lines if line["epoch"] > settings.epochs - settings.swa_epochs]
        return sorted(line["epoch"] for line in best_lines(lines, settings.best_epochs))

    def _describe_mean(self, epochs: Sequence[int]) -> str:
        if self._settings.swa_epochs:
            return f"the mean of the weights of {len(epochs)} epochs"
        return f"the mean of the moving averages of the epochs {', '.join(map(str, epochs))}"

    def _path(self, epoch: int) -> Path:
        return self._folder / _STORED.format(epoch)
