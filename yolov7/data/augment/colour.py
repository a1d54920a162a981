"""Random changes of hue, saturation and value."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from yolov7.data.images import Image
from yolov7.settings import AugmentSettings

try:
    from yolov7.data.augment import _colour
except ImportError:  # this was installed where there was no compiler
    _colour = None  # type: ignore[assignment]


class Gains(NamedTuple):
    """Factors."""

    hue: float
    saturation: float
    value: float


def draw_gains(settings: AugmentSettings, *, generator: Generator) -> Gains | None:
    """1 +- the settings of hue, saturation and value; None where all of these are zero."""
    limits = (settings.hsv_hue, settings.hsv_saturation, settings.hsv_value)
    gains = 1.0 + generator.uniform(-1.0, 1.0, size=3) * limits
    return Gains(*gains.tolist()) if any(limits) else None


def recolour(image: Image, gains: Gains | None, *, out: Image | None = None) -> Image:
    """Multiplies hue, saturation and value of an image (H, W, 3).

    Saturation and value end at their largest; hues start over. `out`: where to put it, perhaps the image itself.
    """
    if gains is None:
        if out is None:
            return image
        out[:] = image
        return out
    out = np.empty(image.shape, np.uint8) if out is None else out
    change = recolour_in_steps if _colour is None else _colour.recolour
    change(image, out, *gains)
    return out


def recolour_in_steps(source: Image, target: Image, hue: float, saturation: float, value: float) -> None:
    """The same with OpenCV, which takes longer and rounds to 8 bits, a hue to two degrees, between its steps."""
    row = np.ascontiguousarray(source).reshape(1, -1, 3)  # as the ends of rows are done pixel by pixel
    hsv = cv2.cvtColor(row, cv2.COLOR_RGB2HSV)
    varied = cv2.transform(hsv, np.diag([hue, saturation, value]).astype(np.float32))  # hues of 180 start over
    target[:] = cv2.cvtColor(varied, cv2.COLOR_HSV2RGB, dst=hsv).reshape(source.shape)
