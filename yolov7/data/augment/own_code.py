"""Augmentations that the user has written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.random import Generator

from yolov7.data.augment.tile import Tile
from yolov7.system.plugins import AUGMENTATION, load_plugin, naming

_SMALLEST = 1.0  # pixels: the side of a box that is kept


@final
class OwnAugmentations:
    """The own augmentations of a training, which change a finished sample one after the other."""

    def __init__(self, names: Sequence[str], *, num_classes: int) -> None:
        """Import the augmentations.

        Args:
            names: Their dotted names.
            num_classes: The number of classes of the data, of which their labels must be.

        Raises:
            SettingError: One of them cannot be used.
        """
        self._num_classes = num_classes
        self._own = [(name, load_plugin(name, AUGMENTATION)) for name in names]

    def __call__(self, tile: Tile, *, generator: Generator) -> Tile:
        """Apply the augmentations.

        Args:
            tile: The sample.
            generator: Source of randomness, which depends on the seed, the epoch and the image only.

        Returns:
            The changed sample, without outlines; boxes are clipped to the image, and tiny ones are left out. Without
            own augmentations it is the argument itself.

        Raises:
            TrainingError: An augmentation raises an error or returns something else than it must.
        """
        for name, own in self._own:
            with naming("the augmentation", name):
                found = own(tile.image, tile.boxes_xyxy, tile.labels, generator)
                tile = _checked(tile, found, num_classes=self._num_classes)
        return tile


def _checked(before: Tile, found: Any, *, num_classes: int) -> Tile:
    """Return the sample that an augmentation returned; raise ValueError if it has the wrong form."""
    image, boxes, labels = found
    if not isinstance(image, np.ndarray) or image.shape != before.image.shape or image.dtype != np.uint8:
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the image must be an array {before.image.shape} uint8, not {got}")
    boxes_xyxy, classes = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels).reshape(-1)
    if len(boxes_xyxy) != len(classes):
        raise ValueError(f"there are {len(boxes_xyxy)} boxes and {len(classes)} labels")
    if not np.isfinite(boxes_xyxy).all():
        raise ValueError("a box has a side that is not a finite number")
    if len(classes) and classes.dtype.kind not in "iu":
        raise ValueError(f"the labels are {classes.dtype}, not integers")
    if len(classes) and not 0 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"the labels are from {classes.min()} to {classes.max()}, not within 0..{num_classes - 1}")
    height, width = image.shape[:2]
    inside = np.clip(boxes_xyxy, 0, np.array([width, height] * 2, np.float32))
    keep = (inside[:, 2:] - inside[:, :2]).min(axis=1, initial=np.inf) >= _SMALLEST
    return Tile(image, inside[keep], classes[keep].astype(np.int64))
