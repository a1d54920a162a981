"""Validation during training: AP on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import final

from yolov7.data.index import ImageIndex, load_index
from yolov7.errors import SettingError
from yolov7.evaluation.split import evaluate_split
from yolov7.inference.engine import ModelEngine
from yolov7.nn.model import DetectionModel
from yolov7.settings import COCO_NMS, TrainSettings
from yolov7.system.precision import resolve_precision
from yolov7.training.worker import Worker

_MAX_BATCH = 16  # images: small enough that many workers have batches to share


@final
class Validator:
    """The measurement of models on the validation split, if there is one."""

    def __init__(self, data_folder: Path, settings: TrainSettings) -> None:
        """Load the index of the split.

        Args:
            data_folder: The folder of the prepared data; `val.npz` is the index of the validation split.
            settings: The settings of the run.

        Raises:
            SettingError: The settings need a validation split, and there is none.
            ArtifactError: The index is damaged.
        """
        path = data_folder / "val.npz"
        self._settings = settings
        self._index: ImageIndex | None = load_index(path) if path.is_file() else None
        for name in ("patience", "average_best"):
            if (value := getattr(settings, name)) and self._index is None:
                raise SettingError(f"{name}={value} needs a validation split; name one, or set {name}=0")

    def measure_average(self, average: DetectionModel, worker: Worker) -> dict[str, float | None]:
        """Measure the moving average with the batch norm statistics of the leading worker, as in a checkpoint.

        Args:
            average: The moving average; its statistics may differ between workers, and are replaced.
            worker: This process.

        Returns:
            As `measure`.
        """
        worker.broadcast_from_lead(average.state_dict().values())
        return self.measure(average, worker)

    def measure(self, model: DetectionModel, worker: Worker) -> dict[str, float | None]:
        """Measure a model; all workers of the run share the images.

        Args:
            model: The model, equal on all workers.
            worker: This process.

        Returns:
            `AP` and `AP50`; nothing if there is no validation split.
        """
        if self._index is None:
            return {}
        was_training = model.training
        dtype = resolve_precision(self._settings.precision, next(model.parameters()).device)
        figures = evaluate_split(
            ModelEngine(model.eval(), dtype),
            self._index,
            image_size=self._settings.image_size,
            batch_size=min(self._settings.batch_size, _MAX_BATCH),
            nms=COCO_NMS,
            rank=worker.rank,
            world_size=worker.world_size,
            loader_workers=worker.loader_workers,
            gather=worker.gather,
        ).figures
        model.train(was_training)
        return {"AP": figures.AP, "AP50": figures.AP50}
