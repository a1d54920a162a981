"""Positions of images in the canvas of a sample: a single image, or a mosaic of four or of nine."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from yolov7.data.augment.geometry import Corner
from yolov7.data.augment.letterbox import Size


def place_centre(image_size: Size, *, size: int) -> Corner:
    """Return the position of one image in the middle of a canvas.

    Args:
        image_size: Width and height of the image, pixels.
        size: Side of the square canvas, pixels.

    Returns:
        The image's left and top in the canvas.
    """
    return (size - image_size[0]) // 2, (size - image_size[1]) // 2


def place_mosaic(sizes: Sequence[Size], *, size: int, generator: Generator) -> list[Corner]:
    """Place four images around a random centre of a canvas of twice the sample's size.

    Args:
        sizes: Width and height of each image, pixels.
        size: Side of the square sample, pixels.
        generator: Source of randomness.

    Returns:
        Left and top of each image in the canvas: top left, top right, bottom left, bottom right of the centre.
    """
    x, y = (int(value) for value in generator.uniform(size / 2, 3 * size / 2, size=2))
    quarters = ((1, 1), (0, 1), (1, 0), (0, 0))  # whether the image is left of the centre, and above it
    return [(x - left * w, y - top * h) for (w, h), (left, top) in zip(sizes, quarters, strict=True)]


def place_mosaic_nine(sizes: Sequence[Size], *, size: int, generator: Generator) -> list[Corner]:
    """Place nine images in three rows of three, of which the canvas is a random part.

    The first image is in the middle. The others follow clockwise from the one above it; each touches its neighbours
    and none overlaps another.

    Args:
        sizes: Width and height of each image, at most `size` pixels.
        size: Side of the square sample, half of the canvas's, pixels.
        generator: Source of randomness.

    Returns:
        Left and top of each image in the canvas.
    """
    (w0, h0), (w1, h1), (_, h2), (_, h3), _, (w5, _), (w6, _), (w7, h7), (w8, h8) = sizes
    right, bottom = size + w0, size + h0  # of the image in the middle
    corners = [
        (size, size),
        (size, size - h1),  # above
        (size + w1, size - h2),  # above, right
        (right, size),  # right
        (right, size + h3),  # below, right
        (right - w5, bottom),  # below
        (right - w5 - w6, bottom),  # below, left
        (size - w7, bottom - h7),  # left
        (size - w8, bottom - h7 - h8),  # above, left
    ]
    x, y = (int(value) for value in generator.uniform(0, size, size=2))
    return [(left - x, top - y) for left, top in corners]
