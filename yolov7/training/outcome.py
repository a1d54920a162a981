"""The weights that a run leaves: of its moving average, at the end or when it was best, or the mean of last epochs."""

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
class Outcome:
    """Keeps the weights of single epochs in a run's folder, and makes of them what the run leaves.

    With `patience` those are the moving average's of the epoch with the highest AP on val; with `swa_epochs` the mean
    of the weights at the end of each of the last epochs; otherwise the moving average's at the end.
    """

    def __init__(self, folder: Path, settings: TrainSettings, *, class_names: tuple[str, ...]) -> None:
        self._folder, self._settings, self._class_names = folder, settings, class_names

    def keep(
        self,
        line: Mapping[str, Any],
        *,
        earlier: Sequence[Mapping[str, Any]],
        model: DetectionModel,
        ema: DetectionModel,
    ) -> None:
        """Keeps what may be wanted of the epoch that just ended with this line, behind the `earlier` ones."""
        epoch: int = line["epoch"]
        if self._settings.patience and best_line([*earlier, line]) is line:
            self._save(_BEST.format(epoch), ema)
            for path in self._folder.glob(_BEST.replace("{:06d}", "*")):
                if path.name != _BEST.format(epoch):
                    path.unlink(missing_ok=True)
        if epoch > self._settings.epochs - self._settings.swa_epochs:
            self._save(_SNAPSHOT.format(epoch), model)

    def is_out_of_patience(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Whether so many epochs have passed since the best one that the run should end."""
        best = best_line(lines) if self._settings.patience else None
        return best is not None and lines[-1]["epoch"] - best["epoch"] >= self._settings.patience

    def best(self, lines: Sequence[Mapping[str, Any]]) -> DetectionModel | None:
        """The moving average at its best epoch; None where the last one is wanted."""
        line = best_line(lines) if self._settings.patience else None
        path = self._folder / _BEST.format(line["epoch"]) if line else None
        return load_weights(path).model if path is not None and path.is_file() else None

    def mean(self, images: Iterable[Tensor], *, device: torch.device) -> DetectionModel | None:
        """The mean of the last epochs' weights, its batch norm counted on images (B, 3, H, W) in 0..1.

        The images are on the device. None where no mean is wanted.
        """
        epochs = range(self._settings.epochs - self._settings.swa_epochs + 1, self._settings.epochs + 1)
        paths = [self._folder / _SNAPSHOT.format(epoch) for epoch in epochs]
        models = [load_weights(path, device=device).model for path in paths if path.is_file()]
        if not models:
            return None
        mean = average_models(models)
        recount_batch_norm(mean, images)
        return mean

    def _save(self, name: str, model: DetectionModel) -> None:
        size = self._settings.image_size
        save_weights(self._folder / name, model, class_names=self._class_names, image_size=size, training={})
