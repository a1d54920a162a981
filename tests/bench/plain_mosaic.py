"""Training samples as they are usually made: a canvas of twice the size is drawn and warped as a whole.

Tiles are BGR, as OpenCV reads images; samples are planes of red, green and blue.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator, default_rng

from yolov7.data.augment.geometry import Boxes, Labels, random_transform, transform_boxes, worth_keeping
from yolov7.data.augment.letterbox import FILL
from yolov7.data.augment.mosaic import place_mosaic
from yolov7.data.augment.tile import Sample, Tile, blend, normalise_boxes, place_tile
from yolov7.data.images import Image
from yolov7.settings import AugmentSettings


def plain_sample(
    i: int, *, tile: Callable[[int], Tile], count: int, size: int, settings: AugmentSettings, seed: int, epoch: int
) -> Sample:
    """Return the sample that DetectionDataset makes of image i of `count` with the same random numbers.

    Every sample is a mosaic.
    """
    generator = default_rng((seed, epoch, i))
    image, boxes, labels = _mosaic(i, tile, count, size, settings, generator)
    if generator.random() < settings.mixup:
        partner = int(generator.integers(count))
        other = _mosaic(partner, tile, count, size, settings, generator)
        image = blend(image, other[0], generator=generator)
        boxes, labels = np.concatenate([boxes, other[1]]), np.concatenate([labels, other[2]])
    image = _vary_colour(image, settings, generator)
    normalised = normalise_boxes(boxes, width=size, height=size)
    horizontal, vertical = generator.random(2) < (settings.flip_horizontal, settings.flip_vertical)
    if horizontal:
        image, normalised[:, 0] = np.fliplr(image), 1 - normalised[:, 0]
    if vertical:
        image, normalised[:, 1] = np.flipud(image), 1 - normalised[:, 1]
    return Sample(
        np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)), normalised, labels
    )  # BGR H W 3 to RGB 3 H W


def _mosaic(
    i: int, tile: Callable[[int], Tile], count: int, size: int, settings: AugmentSettings, generator: Generator
) -> tuple[Image, Boxes, Labels]:
    generator.random()  # whether it is a mosaic
    partners = generator.integers(count, size=3)
    tiles = [tile(int(j)) for j in (i, *partners)]
    corners = place_mosaic([t.image.shape[1::-1] for t in tiles], size=size, generator=generator)
    placed = [place_tile(t, corner, canvas=2 * size) for t, corner in zip(tiles, corners, strict=True)]
    canvas = np.full((2 * size, 2 * size, 3), FILL, np.uint8)
    boxes, labels = [], []
    for each in placed:
        height, width = each.image.shape[:2]
        canvas[each.top : each.top + height, each.left : each.left + width] = each.image
        boxes.append(each.boxes_xyxy + np.array([each.left, each.top] * 2, np.float32))
        labels.append(each.labels)
    matrix, scale = random_transform(settings, canvas=2 * size, size=size, generator=generator)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    on_centres = np.linalg.inv(half) @ matrix @ half
    warped = cv2.warpAffine(canvas, on_centres[:2], (size, size), borderValue=(FILL, FILL, FILL))
    before = np.concatenate(boxes)
    after = np.clip(transform_boxes(before, matrix), 0, size)
    keep = worth_keeping(before * scale, after)
    return warped, after[keep], np.concatenate(labels)[keep]  # type: ignore[return-value]


def _vary_colour(image: Image, settings: AugmentSettings, generator: Generator) -> Image:
    gains = 1.0 + generator.uniform(-1.0, 1.0, size=3) * (
        settings.hsv_hue,
        settings.hsv_saturation,
        settings.hsv_value,
    )
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    x = np.arange(256)
    tables = ((x * gains[0]) % 180, np.clip(x * gains[1], 0, 255), np.clip(x * gains[2], 0, 255))
    planes = zip((hue, saturation, value), tables, strict=True)
    varied = cv2.merge([cv2.LUT(plane, table.astype(np.uint8)) for plane, table in planes])
    return cv2.cvtColor(varied, cv2.COLOR_HSV2BGR)  # type: ignore[return-value]
