"""Where the images of a sample lie in its canvas: one alone, or a mosaic of four or of nine."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from yolov7.data.augment.geometry import Corner, Size


def place_centre(image_size: Size, *, size: int) -> Corner:
    """Corner of one image in the middle of a canvas of `size`."""
    return (size - image_size[0]) // 2, (size - image_size[1]) // 2


def place_mosaic(sizes: Sequence[Size], *, size: int, generator: Generator) -> list[Corner]:
    """Corners of four images around a random centre of a canvas of twice `size`; the first lies top left."""
    x, y = (int(value) for value in generator.uniform(size / 2, 3 * size / 2, size=2))
    quarters = ((1, 1), (0, 1), (1, 0), (0, 0))  # whether left of the centre, and above it
    return [(x - left * w, y - top * h) for (w, h), (left, top) in zip(sizes, quarters, strict=True)]


def place_mosaic_nine(sizes: Sequence[Size], *, size: int, generator: Generator) -> list[Corner]:
    """Corners of nine images, of sides up to `size`, in a canvas of twice `size`.

    The first lies in the middle of three times three, the others clockwise around it from above, each touching its
    neighbours and none of them overlapping; the canvas is a random part of them.
    """
    (w0, h0), (w1, h1), (_, h2), (_, h3), _, (w5, _), (w6, _), (w7, h7), (w8, h8) = sizes
    right, bottom = size + w0, size + h0  # of the one in the middle
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
