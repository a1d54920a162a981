"""Outlines through random transforms: their boxes are those of the pixels that would be drawn."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import cv2
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from yolov7.data.augment.geometry import random_transform, transform_boxes
from yolov7.data.outlines import bounds, clip_polygon, frame_planes, see
from yolov7.settings import AugmentSettings

SEEDS = st.integers(0, 2**32 - 1)
FINE = 8  # pixels of the oracle's masks a pixel
thinner = partial(cv2.erode, kernel=np.ones((9, 9), np.uint8))  # by half a pixel: slivers of that are not seen
thicker = partial(cv2.dilate, kernel=np.ones((5, 5), np.uint8))


def star(generator: np.random.Generator, *, width: int, height: int) -> np.ndarray:
    """A polygon around a point, of random radii, so that most are concave."""
    count = int(generator.integers(3, 14))
    angles = np.sort(generator.uniform(0, 2 * math.pi, count))
    radii = generator.uniform(0.05, 0.6, (count, 1)) * min(width, height)
    centre = generator.uniform(0, [width, height])
    points = centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.clip(points, 0, [width, height]).astype(np.float32)


def drawn(
    parts: list[np.ndarray], matrix: np.ndarray, *, width: int, height: int, size: int, change: Any
) -> np.ndarray | None:
    """The oracle: bounds of the outline's pixels that lie in the image's, both filled, and made thinner or thicker.

    Between the two lies what a line, a tip or a seam thinner than a fine pixel may be.
    """

    def filled(polygon: np.ndarray) -> np.ndarray:
        moved = cv2.perspectiveTransform(np.float64([polygon]), np.diag([FINE, FINE, 1.0]) @ matrix)[0] + FINE
        mask = np.zeros(((size + 2) * FINE,) * 2, np.uint8)
        cv2.fillPoly(mask, [np.round((moved - 0.5) * 256).astype(np.int32)], 1, shift=8)
        return change(mask)[FINE:-FINE, FINE:-FINE]

    image = filled(np.array([[0, 0], [width, 0], [width, height], [0, height]]))
    seen = np.maximum.reduce([filled(part) for part in parts]) & image
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / FINE


@settings(max_examples=80, deadline=None)
@given(
    seed=SEEDS,
    degrees=st.sampled_from([0.0, 0.0, 40.0, 180.0]),
    shear=st.sampled_from([0.0, 20.0]),
    perspective=st.sampled_from([0.0, 0.001]),
)
def test_boxes_are_those_of_what_is_drawn(seed: int, degrees: float, shear: float, perspective: float) -> None:
    generator, size = np.random.default_rng(seed), 64
    width, height = (int(side) for side in generator.integers(20, 64, 2))
    parts = [star(generator, width=width, height=height) for _ in range(int(generator.integers(1, 3)))]
    chosen = AugmentSettings(degrees=degrees, shear=shear, perspective=perspective, translate=0.6, scale=0.5)
    matrix, _ = random_transform(chosen, canvas=64, size=size, generator=generator)
    around = transform_boxes(bounds(tuple(parts))[None], matrix)
    (visible,), boxes = see([tuple(parts)], np.clip(around, 0, size), matrix, image_size=(width, height), size=size)
    assert boxes.dtype == np.float32
    assert (boxes >= -0.02).all()
    assert (boxes <= size + 0.02).all()
    if boxes.any():
        assert (boxes[:, :2] >= around[:, :2] - 0.02).all()
        assert (boxes[:, 2:] <= around[:, 2:] + 0.02).all()
        for part in visible:
            assert (part >= -0.02).all()
            assert (part <= size + 0.02).all()
    draw = partial(drawn, parts, matrix, width=width, height=height, size=size)
    inner, outer = draw(change=thinner), draw(change=thicker)
    if inner is not None:
        assert (boxes[0, :2] <= inner[:2] + 0.02).all()
        assert (boxes[0, 2:] >= inner[2:] - 0.02).all()
    if outer is None:
        assert not boxes.any()
    elif boxes.any():
        assert (boxes[0, :2] >= outer[:2] - 0.02).all()
        assert (boxes[0, 2:] <= outer[2:] + 0.02).all()


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_the_identity_changes_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    parts = tuple(star(generator, width=50, height=40) for _ in range(2))
    box = bounds(parts)[None]
    (visible,), boxes = see([parts], box, np.eye(3), image_size=(50, 40), size=64)
    np.testing.assert_allclose(boxes, box, atol=1e-5)
    for ours, given_part in zip(visible, parts, strict=True):
        np.testing.assert_allclose(ours, given_part, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_a_clipped_convex_polygon_is_the_common_part(seed: int) -> None:
    generator = np.random.default_rng(seed)
    hull = cv2.convexHull(generator.uniform(-20, 60, (8, 2)).astype(np.float32))[:, 0]
    frame = np.array([[0, 0], [40, 0], [40, 30], [0, 30]], np.float32)
    common, _ = cv2.intersectConvexConvex(hull, frame)
    assume(common > 1)
    clipped = clip_polygon(hull, frame_planes(40, 30)).astype(np.float32)
    assert abs(cv2.contourArea(clipped) - common) < 0.1
