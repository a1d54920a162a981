"""Where the nine images of a large mosaic lie."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from yolov7.data.augment import Corner, Size


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
