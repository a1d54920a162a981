"""The detector: a weight file with class names and image size in memory, images in, detections out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yolov7.data.augment.letterbox import letterbox
from yolov7.data.images import Image, read_image
from yolov7.errors import DataError, SettingError
from yolov7.inference.batch import detect_batch
from yolov7.inference.engine import ModelEngine
from yolov7.nn.model import DetectionModel
from yolov7.nn.regroup import faster_form
from yolov7.settings import NmsSettings
from yolov7.structures import Detections
from yolov7.system.precision import autocast, resolve_device, resolve_precision
from yolov7.weights.weight_files import load_weights


@dataclass(frozen=True)
class Detector:
    """A model that is ready to detect objects. `Detector.load` makes it from a weight file.

    Attributes:
        model: The model in evaluation mode.
        class_names: Names by label.
        image_size: Side in pixels of the square that images are fitted into.
        dtype: Floating-point type of the computation.
    """

    model: DetectionModel
    class_names: tuple[str, ...]
    image_size: int
    dtype: torch.dtype

    @staticmethod
    def load(path: str | os.PathLike[str], *, device: str = "auto", precision: str = "auto") -> Detector:
        """Load a detector.

        Args:
            path: A weight file, before or after re-parameterisation.
            device: `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU if there is one, else the CPU.
            precision: `auto`, `float32`, `bfloat16` or `float16`; `auto` is the fastest of these on the device.

        Returns:
            The detector.

        Raises:
            ArtifactError: If the file is not a weight file.
            SettingError: If the device or the precision is unknown or not available.
        """
        where = resolve_device(device)
        dtype = resolve_precision(precision, where)
        weights = load_weights(path, device=where)
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
        """Detect objects in images.

        Args:
            images: Arrays (H, W, 3) uint8 RGB, or paths of image files.
            nms: Thresholds and limits.
            batch_size: Number of images that the model processes at once.

        Returns:
            The detections of each image, in its own pixels and clipped to it, on the CPU.

        Raises:
            DataError: If an image is of another kind, or if its file cannot be read.
            SettingError: If the batch size is not positive.
        """
        if isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, Sequence):
            raise DataError(
                f"predict takes a list of images, not {_describe(images)}; "
                "use predict([image]) for one image and predict(list(images)) for a batch"
            )
        if batch_size < 1:
            raise SettingError(f"batch_size={batch_size} must be at least 1")
        found: list[Detections] = []
        for start in range(0, len(images), batch_size):
            batch = [_as_image(images[i], number=i) for i in range(start, min(start + batch_size, len(images)))]
            found += self._predict_batch(batch, nms=nms)
        return found

    def _predict_batch(self, images: Sequence[Image], *, nms: NmsSettings) -> list[Detections]:
        fitted = [letterbox(image, size=self.image_size) for image in images]
        batch = torch.from_numpy(np.stack([pixels for pixels, _ in fitted])).permute(0, 3, 1, 2)  # B 3 S S
        return detect_batch(ModelEngine(self.model, self.dtype), batch, [way for _, way in fitted], nms=nms)


def _as_image(image: Image | str | os.PathLike[str], *, number: int) -> Image:
    """Return the pixels of an array or of a file; raise DataError for everything else, with the conversion to use."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
        if 0 in image.shape:
            raise DataError(f"image {number} has the shape {image.shape}; an image must have pixels")
        return image
    raise DataError(
        f"image {number} is {_describe(image)}; an image is a uint8 array of shape (H, W, 3), RGB, or the path of a "
        f"file{_conversion(image)}"
    )


def _describe(value: object) -> str:
    return f"a {value.dtype} array of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _conversion(image: object) -> str:
    """Describe how to convert an array of another kind to an image."""
    if not isinstance(image, np.ndarray):
        return "; convert it with np.asarray(image)" if hasattr(image, "__array__") else ""
    if np.issubdtype(image.dtype, np.floating):
        return "; for values of 0..1, use (image * 255).round().astype(np.uint8)"
    if image.dtype == np.uint16:
        return "; for values of 0..65535, use (image / 257).round().astype(np.uint8)"
    if image.dtype != np.uint8:
        return "; for values of 0..255, use image.astype(np.uint8)"
    if image.ndim == 2:
        return "; for a grey image, use np.stack([image] * 3, axis=-1)"
    if image.ndim == 3 and image.shape[2] == 1:
        return "; for a grey image, use np.repeat(image, 3, axis=-1)"
    if image.ndim == 3 and image.shape[2] == 4:
        return "; for an image with an alpha channel, use image[..., :3]"
    if image.ndim == 3 and image.shape[0] == 3:
        return "; for channels first, use image.transpose(1, 2, 0)"
    return ""
