"""Random changes of hue, saturation and value.

`_colour.c` does the work in one pass over the pixels. Where the package was installed without a C compiler, NumPy does
the same float32 operations in the same order. Each of these operations is correctly rounded (IEEE 754) and none is
contracted or reordered, so that both give the same bytes, on every processor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolov7.data.images import Image
from yolov7.settings import AugmentSettings

try:
    from yolov7.data.augment import _colour
except ImportError:  # the package was installed without a C compiler
    _colour = None  # type: ignore[assignment]

_BLOCK = 1 << 15  # pixels that NumPy works on at a time, so that all intermediate values stay in the processor's cache

_Plane = NDArray[np.float32]


class Gains(NamedTuple):
    """Factors by which the colours of an image are multiplied.

    Attributes:
        hue: Factor of the hue, which is an angle from red.
        saturation: Factor of the saturation.
        value: Factor of the value, the largest of red, green and blue.
    """

    hue: float
    saturation: float
    value: float


def draw_gains(settings: AugmentSettings, *, generator: Generator) -> Gains | None:
    """Draw gains uniformly from 1 - limit to 1 + limit.

    Args:
        settings: Settings with the limits `hsv_hue`, `hsv_saturation` and `hsv_value`.
        generator: Source of randomness; three numbers are drawn in any case.

    Returns:
        The gains; None if all limits are zero.
    """
    limits = (settings.hsv_hue, settings.hsv_saturation, settings.hsv_value)
    gains = 1.0 + generator.uniform(-1.0, 1.0, size=3) * limits
    return Gains(*gains.tolist()) if any(limits) else None


def recolour(image: Image, gains: Gains | None, *, out: Image | None = None) -> Image:
    """Multiply hue, saturation and value of an image.

    Saturation and value are limited to their maximum; hues beyond the full circle continue at red.

    Args:
        image: The image (H, W, 3), uint8 RGB.
        gains: The factors; None leaves the colours as they are.
        out: The array (H, W, 3), uint8, to write the result to; may be `image` itself. By default a new array.

    Returns:
        `out`, or a new image; without both `gains` and `out` the argument itself.
    """
    if gains is None:
        if out is None:
            return image
        out[:] = image
        return out
    out = np.empty(image.shape, np.uint8) if out is None else out
    change = recolour_with_numpy if _colour is None else _colour.recolour
    change(image, out, *gains)
    return out


def recolour_with_numpy(source: Image, target: Image, hue: float, saturation: float, value: float) -> None:
    """Recolour an image as `_colour.recolour` does, with the same result.

    Args:
        source: The image (H, W, 3), uint8 RGB.
        target: The array (H, W, 3), uint8, to write to; may be `source` itself.
        hue: Factor of the hue.
        saturation: Factor of the saturation.
        value: Factor of the value.
    """
    gains = np.array([hue, saturation, value], np.float32)
    rows = max(_BLOCK // max(source.shape[1], 1), 1)
    for start in range(0, source.shape[0] if source.size else 0, rows):
        part = slice(start, start + rows)
        target[part] = _recolour_block(source[part], gains)


def _recolour_block(block: Image, gains: NDArray[np.float32]) -> Image:
    """Recolour some rows, in the narrowest types that are exact. Hues are in sixths of the circle: red 0, green 2."""
    red8, green8, blue8 = (np.asarray(plane, np.uint8) for plane in cv2.split(block))
    value8 = np.maximum(red8, np.maximum(green8, blue8))
    chroma8 = value8 - np.minimum(red8, np.minimum(green8, blue8))
    red, green, blue, chroma = (plane.astype(np.int16) for plane in (red8, green8, blue8, chroma8))
    numerator = red - green + 4 * chroma  # of the hue
    _overwrite(numerator, blue - red + 2 * chroma, where=value8 == green8)
    _overwrite(numerator, green - blue, where=value8 == red8)
    hue = gains[0] * numerator.astype(np.float32) / np.maximum(chroma8, 1).astype(np.float32)
    _overwrite(hue, hue + np.float32(6) * gains[0], where=numerator < 0)
    _overwrite(hue, hue - np.float32(6), where=hue >= np.float32(6))

    value = value8.astype(np.float32)
    high = np.minimum(gains[2] * value, np.float32(255))
    span = gains[1] * chroma8.astype(np.float32) / np.maximum(value, np.float32(1))
    span = high * np.minimum(span, np.float32(1), out=span)  # between the largest and the smallest channel
    distances = 2 - _distance(hue, 3), _distance(hue, 2) - 1, _distance(hue, 4) - 1
    return cv2.merge([_level(high, span, distance) for distance in distances])  # type: ignore[return-value]


def _overwrite(target: NDArray[Any], values: NDArray[Any], *, where: NDArray[np.bool_]) -> None:
    """Write some of the values; OpenCV does this several times as fast as NumPy."""
    cv2.copyTo(values, where.view(np.uint8), target)


def _distance(hue: _Plane, centre: int) -> _Plane:
    distance: _Plane = np.abs(hue - np.float32(centre))
    return distance


def _level(high: _Plane, span: _Plane, distance: _Plane) -> NDArray[np.uint8]:
    """Return a channel: `distance`, limited to 0..1, tells where it lies from the highest level to `span` below it."""
    np.minimum(np.maximum(distance, np.float32(0), out=distance), np.float32(1), out=distance)
    distance *= span
    np.subtract(high, distance, out=distance)
    distance += np.float32(0.5)
    return distance.astype(np.uint8)
