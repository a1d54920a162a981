"""What users hold: weights, class names and image size in; images in, detections out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yolov7.data.augment.letterbox import letterbox
from yolov7.data.images import Image, read_image
from yolov7.errors import DataError
from yolov7.inference.batch import detect_batch
from yolov7.nn.model import DetectionModel
from yolov7.nn.regroup import faster_form
from yolov7.settings import NmsSettings
from yolov7.structures import Detections
from yolov7.system.precision import autocast, resolve_device, resolve_precision
from yolov7.weights.weight_files import load_weights


@dataclass(frozen=True)
class Detector:
    """A model ready to detect; make it with `load`.

    `class_names` name the labels. `image_size`: the side in pixels of the square that images are fitted into.
    """

    model: DetectionModel
    class_names: tuple[str, ...]
    image_size: int
    dtype: torch.dtype

    @staticmethod
    def load(path: str | os.PathLike[str], *, device: str = "auto", precision: str = "auto") -> Detector:
        """The detector of a weight file, trained or deployed form; ArtifactError where it is none."""
        where = resolve_device(device)
        weights = load_weights(path, device=where)
        dtype = resolve_precision(precision, where)
        with autocast(dtype, where):
            model = faster_form(weights.model.eval(), torch.zeros(1, 3, *[weights.image_size] * 2, device=where))
        return Detector(model, weights.class_names, weights.image_size, dtype)

    def predict(
        self,
        images: Sequence[Image | str | os.PathLike[str]],
        *,
        nms: NmsSettings = NmsSettings(),  # noqa: B008  # frozen
        batch_size: int = 16,
    ) -> list[Detections]:
        """The detections of each image, in its own pixels and clipped to it, on the CPU.

        An image is an array (H, W, 3), RGB, uint8, or the path of a file. DataError for what is no image.
        """
        if isinstance(images, (str, os.PathLike, np.ndarray)):
            raise DataError("predict takes a sequence of images; for a single one, predict([image])")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        found: list[Detections] = []
        for start in range(0, len(images), batch_size):
            found += self._predict_batch(images[start : start + batch_size], nms=nms)
        return found

    def _predict_batch(self, images: Sequence[Image | str | os.PathLike[str]], *, nms: NmsSettings) -> list[Detections]:
        fitted = [letterbox(_as_image(image), size=self.image_size) for image in images]
        batch = torch.from_numpy(np.stack([pixels for pixels, _ in fitted])).permute(0, 3, 1, 2)  # B 3 S S
        return detect_batch(self.model, batch, [way for _, way in fitted], nms=nms, dtype=self.dtype)


def _as_image(image: Image | str | os.PathLike[str]) -> Image:
    """Pixels of an array or a file; DataError for another shape or type."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if not (isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8):
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"an image is a uint8 array of shape (H, W, 3), RGB, or a path; this is {what}")
    if 0 in image.shape:
        raise DataError(f"an image must have pixels; this one has the shape {image.shape}")
    return image
