"""Random changes of hue, saturation and value."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolov7.data.images import Image
from yolov7.settings import AugmentSettings

Gains = NDArray[np.float32]  # (3, 3): those of hue, saturation and value on the diagonal


def draw_gains(settings: AugmentSettings, *, generator: Generator) -> Gains | None:
    """1 +- the settings of hue, saturation and value; None where all of these are zero."""
    limits = (settings.hsv_hue, settings.hsv_saturation, settings.hsv_value)
    gains = 1.0 + generator.uniform(-1.0, 1.0, size=3) * limits
    return np.diag(gains).astype(np.float32) if any(limits) else None


def recolour(image: Image, gains: Gains | None) -> Image:
    """Multiplies hue, saturation and value (8 bits each)."""
    if gains is None:
        return image
    row = np.ascontiguousarray(image).reshape(1, -1, 3)  # as the ends of rows are done pixel by pixel
    hsv = cv2.cvtColor(row, cv2.COLOR_RGB2HSV)
    varied = cv2.transform(hsv, gains)  # up to 255, and hues start over at 180
    return cv2.cvtColor(varied, cv2.COLOR_HSV2RGB, dst=hsv).reshape(image.shape)  # type: ignore[return-value]
