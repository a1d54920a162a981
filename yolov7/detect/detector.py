"""The detector: a model with class names and image size in memory, images in, detections out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast, overload

import numpy as np
import torch

from yolov7 import structures
from yolov7.data.augment.letterbox import Letterbox, letterbox
from yolov7.data.images import Image
from yolov7.detect.augmented import AugmentedEngine
from yolov7.detect.detections import Detections, class_labels
from yolov7.detect.inputs import ImageInput, as_image, describe
from yolov7.detect.tiles import Tiling, join_views
from yolov7.engines.opened_model import OpenedModel, open_model
from yolov7.errors import DataError, SettingError
from yolov7.inference.batch import to_original
from yolov7.inference.engine import Engine
from yolov7.inference.nms import non_max_suppression
from yolov7.settings import NmsSettings
from yolov7.system.plugins import allow_plugins

_BATCH = 16  # images that the model processes at once
_MODEL_NAMES = "yolov7.models"  # the entry points that know models by name


@dataclass(frozen=True)
class FittedImage:
    """An image in the size that the model needs.

    Attributes:
        pixels: The letterboxed image (S, S, 3) uint8 RGB.
        geometry: How it was letterboxed.
        source: What the image was made from, such as its path.
    """

    pixels: Image
    geometry: Letterbox
    source: ImageInput | None = None


@dataclass(frozen=True)
class Detector:
    """A model that is ready to detect objects. `Detector.load` makes it from a file or a name.

    Attributes:
        model: The opened model: its engine, precision, class names, image size and file.
    """

    model: OpenedModel

    @staticmethod
    def load(
        path: str | os.PathLike[str],
        *,
        engine: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        plugins: Sequence[str] = (),
    ) -> Detector:
        """Load a detector.

        Args:
            path: A weight file, before or after re-parameterisation; an exported file or folder; or a name that an
                installed package knows (the entry points `yolov7.models`). A file takes precedence over a name.
            engine: Name of the engine; `auto` is the fastest one that is installed and in which the file was verified.
            device: `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU if there is one, else the CPU.
            precision: `auto`, `float32`, `bfloat16` or `float16`; `auto` is the fastest of these on the device.
            plugins: Packages whose blocks may be imported, in this process from now on, if the model has some; see
                `allow_plugins`.

        Returns:
            The detector.

        Raises:
            ArtifactError: If the file is not a model.
            SettingError: If the engine, the device or the precision is unknown or not available.
        """
        allow_plugins(plugins)
        if isinstance(path, str) and not Path(path).exists():
            for entry in entry_points(group=_MODEL_NAMES):
                found: Path | None = entry.load()(path)
                if found is not None:
                    path = found
                    break
        return Detector(open_model(path, engine=engine, device=device, precision=precision))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        return self.model.class_names

    @property
    def image_size(self) -> int:
        """Side in pixels of the square that images are fitted into."""
        return self.model.image_size

    @property
    def engine(self) -> Engine:
        """What runs the model."""
        return self.model.engine

    def augmented(self) -> Detector:
        """Return a detector with test-time augmentation: three views of each image, one of them mirrored."""
        return Detector(replace(self.model, engine=AugmentedEngine(self.engine)))

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a text is a sequence of texts
        self,
        images: ImageInput,
        *,
        confidence: float | None = None,
        iou: float | None = None,
        classes: Sequence[str | int] | None = None,
        max_detections: int | None = None,
        tiling: Tiling | None = None,
        batch_size: int = _BATCH,
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        images: Sequence[ImageInput],
        *,
        confidence: float | None = None,
        iou: float | None = None,
        classes: Sequence[str | int] | None = None,
        max_detections: int | None = None,
        tiling: Tiling | None = None,
        batch_size: int = _BATCH,
    ) -> list[Detections]: ...

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        confidence: float | None = None,
        iou: float | None = None,
        classes: Sequence[str | int] | None = None,
        max_detections: int | None = None,
        tiling: Tiling | None = None,
        batch_size: int = _BATCH,
    ) -> Detections | list[Detections]:
        """Detect objects in one image or in a list of images.

        Args:
            images: An image, or a list or tuple of images: paths, web addresses, arrays (H, W, 3) uint8 RGB, tensors
                (3, H, W) of uint8 or of floating-point values from 0 to 1, or Pillow images.
            confidence: Lowest score of a detection; None is the default of `NmsSettings`.
            iou: Largest IoU of two detections of the same class; None is the default of `NmsSettings`.
            classes: Names or numbers of the classes to detect; None detects every class.
            max_detections: Largest number of detections per image; None is the default of `NmsSettings`.
            tiling: How large images are divided into tiles; None looks at the whole image only.
            batch_size: Number of images, or of tiles, that the model processes at once.

        Returns:
            The detections of the image, or a list with those of each image, in its pixels and clipped to it.

        Raises:
            DataError: If an image is of another kind, or if its file cannot be read.
            SettingError: If a class is unknown or a number is out of range.
        """
        nms = nms_settings(confidence=confidence, iou=iou, max_detections=max_detections)
        self.model.check_confidence(nms)
        several = cast(list[ImageInput], list(images) if isinstance(images, (list, tuple)) else [images])
        labels = None if classes is None else class_labels(classes, self.class_names)
        found = self._run(several, nms=nms, labels=labels, tiling=tiling, batch_size=batch_size)
        return found if isinstance(images, (list, tuple)) else found[0]

    def predict(
        self,
        images: Sequence[ImageInput],
        *,
        nms: NmsSettings = NmsSettings(),  # noqa: B008  # frozen
        batch_size: int = _BATCH,
    ) -> list[Detections]:
        """Detect objects in a list of images with all settings of non-maximum suppression.

        Args:
            images: The images, as for calling the detector.
            nms: Thresholds and limits.
            batch_size: Number of images that the model processes at once.

        Returns:
            The detections of each image, in its own pixels and clipped to it, on the CPU.

        Raises:
            DataError: If an image is of another kind, or if its file cannot be read.
            SettingError: If the batch size is not positive, or if the file leaves out detections of this confidence.
        """
        if isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, Sequence):
            raise DataError(
                f"predict takes a list of images, not {describe(images)}; "
                "use predict([image]) for one image and predict(list(images)) for a batch"
            )
        self.model.check_confidence(nms)
        return self._run(images, nms=nms, labels=None, tiling=None, batch_size=batch_size)

    def fit(self, image: Image, *, source: ImageInput | None = None) -> FittedImage:
        """Bring an image to the size of the model. Threads may do this while the model runs.

        Args:
            image: Image (H, W, 3) uint8 RGB.
            source: What `Detections.source` becomes.

        Returns:
            The image for `detect`.
        """
        pixels, geometry = letterbox(image, size=self.image_size, mode=self.model.letterbox)
        return FittedImage(pixels, geometry, source)

    @torch.inference_mode()
    def detect(
        self, images: Sequence[FittedImage], *, nms: NmsSettings, labels: Sequence[int] | None = None
    ) -> list[Detections]:
        """Detect objects in one batch of fitted images.

        Args:
            images: Images from `fit`, at least one.
            nms: Thresholds and limits.
            labels: Labels to detect; None detects every class.

        Returns:
            The detections of each image, in pixels of the image before `fit` and clipped to it, on the CPU.
        """
        batch = torch.from_numpy(np.stack([one.pixels for one in images])).permute(0, 3, 1, 2)  # B 3 S S
        suppressed = non_max_suppression(
            self.engine.decode(batch), settings=nms, classes=labels, suppresses=self.engine.needs_suppression
        )
        mapped = [to_original(found, one.geometry) for found, one in zip(suppressed, images, strict=True)]
        return [self._named(found, one) for found, one in zip(mapped, images, strict=True)]

    def detect_tiled(
        self,
        image: Image,
        *,
        tiling: Tiling,
        nms: NmsSettings,
        labels: Sequence[int] | None = None,
        batch_size: int = _BATCH,
        source: ImageInput | None = None,
    ) -> Detections:
        """Detect objects in a large image by overlapping tiles.

        Args:
            image: Image (H, W, 3) uint8 RGB.
            tiling: How the image is divided.
            nms: Thresholds and limits.
            labels: Labels to detect; None detects every class.
            batch_size: Number of tiles that the model processes at once.
            source: What `Detections.source` becomes.

        Returns:
            The joined detections, in pixels of the image, on the CPU. `yolov7.detect.tiles` states the rule.
        """
        height, width = image.shape[:2]
        views = tiling.views(width, height)
        found: list[structures.Detections] = []
        for start in range(0, len(views), batch_size):
            parts = [image[top:bottom, left:right] for left, top, right, bottom in views[start : start + batch_size]]
            found += self.detect([self.fit(part) for part in parts], nms=nms, labels=labels)
        joined = found[0] if len(views) == 1 else join_views(views, found, image_size=self.image_size, nms=nms)
        return Detections(
            joined.boxes_xyxy, joined.scores, joined.labels, self.class_names, image_size=(width, height), source=source
        )

    def _run(
        self,
        images: Sequence[ImageInput],
        *,
        nms: NmsSettings,
        labels: Sequence[int] | None,
        tiling: Tiling | None,
        batch_size: int,
    ) -> list[Detections]:
        if batch_size < 1:
            raise SettingError(f"batch_size={batch_size} must be at least 1")
        if tiling is not None:
            return [
                self.detect_tiled(
                    as_image(one, number=i), tiling=tiling, nms=nms, labels=labels, batch_size=batch_size, source=one
                )
                for i, one in enumerate(images)
            ]
        found: list[Detections] = []
        for start in range(0, len(images), batch_size):
            numbers = range(start, min(start + batch_size, len(images)))
            fitted = [self.fit(as_image(images[i], number=i), source=images[i]) for i in numbers]
            found += self.detect(fitted, nms=nms, labels=labels)
        return found

    def _named(self, found: structures.Detections, image: FittedImage) -> Detections:
        size = (image.geometry.width, image.geometry.height)
        return Detections(found.boxes_xyxy, found.scores, found.labels, self.class_names, size, image.source)


def nms_settings(
    *, confidence: float | None = None, iou: float | None = None, max_detections: int | None = None
) -> NmsSettings:
    """Return settings of non-maximum suppression in which some values are chosen and the others are the defaults.

    Args:
        confidence: Lowest score of a detection.
        iou: Largest IoU of two detections of the same class.
        max_detections: Largest number of detections per image.

    Returns:
        The settings.

    Raises:
        SettingError: If a value is out of range.
    """
    for name, share in (("confidence", confidence), ("iou", iou)):
        if share is not None and not 0 <= share <= 1:
            raise SettingError(f"{name}={share} must be from 0 to 1")
    if max_detections is not None and max_detections < 1:
        raise SettingError(f"max_detections={max_detections} must be at least 1")
    chosen = {"confidence": confidence, "iou": iou, "max_detections": max_detections}
    return NmsSettings.model_validate({name: value for name, value in chosen.items() if value is not None})
