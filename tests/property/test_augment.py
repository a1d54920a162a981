"""For all random numbers, boxes stay in the frame and around their objects, and the letterbox can be reversed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.data.augment.compose import compose
from yolov7.data.augment.geometry import random_transform
from yolov7.data.augment.letterbox import FILL, letterbox_geometry
from yolov7.data.augment.mosaic import place_centre, place_mosaic
from yolov7.data.augment.tile import Tile, flip, normalise_boxes, place_tile
from yolov7.settings import AugmentSettings, LetterboxMode

SIDES = st.integers(16, 96)
SEEDS = st.integers(0, 2**32 - 1)


def _tile(generator: np.random.Generator, *, width: int, height: int, count: int) -> Tile:
    points = generator.uniform(0, [width, height], (2, count, 2))
    boxes = np.concatenate([points.min(axis=0), points.max(axis=0)], axis=1).astype(np.float32)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Tile(image, boxes, generator.integers(0, 5, count))


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    size=SIDES,
    degrees=st.floats(0, 180),
    shear=st.floats(0, 30),
    scale=st.floats(0, 0.9),
    perspective=st.floats(0, 0.001),
    mosaic=st.booleans(),
)
def test_boxes_stay_in_frame(
    seed: int, size: int, degrees: float, shear: float, scale: float, perspective: float, mosaic: bool
) -> None:
    generator = np.random.default_rng(seed)
    chosen = AugmentSettings(degrees=degrees, shear=shear, scale=scale, perspective=perspective, translate=0.3)
    sides = [(size, int(generator.integers(1, size + 1))) for _ in range(4)]
    tiles = [_tile(generator, width=w, height=h, count=int(generator.integers(0, 6))) for w, h in sides]
    canvas = 2 * size if mosaic else size
    corners = place_mosaic(sides, size=size, generator=generator) if mosaic else [place_centre(sides[0], size=size)]
    placed = [place_tile(tile, corner, canvas=canvas) for tile, corner in zip(tiles, corners, strict=False)]
    matrix, drawn = random_transform(chosen, canvas=canvas, size=size, generator=generator)
    made = compose(placed, matrix, scale=drawn, size=size)
    image, boxes, labels = made.image, made.boxes_xyxy, made.labels
    assert image.shape == (size, size, 3)
    assert len(boxes) == len(labels)
    assert boxes.dtype == np.float32
    assert (boxes >= 0).all()
    assert (boxes <= size).all()
    assert (boxes[:, 2:] - boxes[:, :2] > 2).all()
    normalised = normalise_boxes(boxes, width=size, height=size)
    assert (normalised[:, :2] - normalised[:, 2:] / 2 >= -1e-6).all()
    assert (normalised[:, :2] + normalised[:, 2:] / 2 <= 1 + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, degrees=st.sampled_from([0.0, 30.0]), scale=st.floats(0, 0.5))
def test_box_follows_its_object(seed: int, degrees: float, scale: float) -> None:
    """The box of a bright square on black encloses its pixels, and little more if there is no rotation."""
    size, generator = 128, np.random.default_rng(seed)
    image = np.zeros((size, size, 3), np.uint8)
    x, y = (int(value) for value in generator.integers(30, 70, 2))
    image[y : y + 30, x : x + 24] = 255
    tile = Tile(image, np.array([[x, y, x + 24, y + 30]], np.float32), np.array([3]))
    chosen = AugmentSettings(degrees=degrees, scale=scale, translate=0.0)
    matrix, drawn = random_transform(chosen, canvas=size, size=size, generator=generator)
    made = compose([tile], matrix, scale=drawn, size=size)
    out, boxes, labels = made.image, made.boxes_xyxy, made.labels
    rows, columns = np.nonzero(out[..., 0] > FILL + 14)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert labels.tolist() == [3]
    assert (found[:2] >= boxes[0, :2] - 1.01).all()
    assert (found[2:] <= boxes[0, 2:] + 1.01).all()
    if not degrees:
        np.testing.assert_allclose(found, boxes[0], atol=1.01)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, left=st.booleans(), top=st.booleans())
def test_box_follows_its_object_beyond_the_horizon(seed: int, left: bool, top: bool) -> None:
    """With the largest perspective at 1280 pixels the horizon crosses the canvas; boxes are around what is drawn."""
    size, generator = 1280, np.random.default_rng(seed)
    image = np.zeros((size, size, 3), np.uint8)
    x1, y1 = (int(value) for value in generator.integers(0, size - 100, 2))
    x2, y2 = (int(value) for value in generator.integers([x1 + 20, y1 + 20], size + 1))
    image[y1:y2, x1:x2] = (255, 0, 0)
    box = np.array([[x1, y1, x2, y2]], np.float32)
    tile = Tile(image, box, np.array([0]), left=size * left, top=size * top)
    chosen = AugmentSettings(perspective=0.001, degrees=30.0, translate=0.2)
    matrix, scale = random_transform(chosen, canvas=2 * size, size=size, generator=generator)
    made = compose([tile], matrix, scale=scale, size=size)
    assert np.isfinite(made.boxes_xyxy).all()
    for low, high in made.boxes_xyxy.reshape(-1, 2, 2):
        red = made.image[..., 0] > made.image[..., 1].astype(int) + 60
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        found = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]])
        assert (found[0] > low - 8).all()
        assert (found[1] < high + 8).all()
        assert (found[1] - found[0]).prod() > 0.7 * (high - low - 4).clip(0).prod()


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    size=st.integers(32, 1280),
    mode=st.sampled_from(["centre", "top_left", "stretch"]),
    seed=SEEDS,
)
def test_letterbox_round_trip(width: int, height: int, size: int, mode: LetterboxMode, seed: int) -> None:
    geometry = letterbox_geometry(width, height, size=size, mode=mode)
    assert (geometry.out_w, geometry.out_h) == (size, size)
    assert mode == "centre" or (geometry.left, geometry.top) == (0, 0)
    points = np.random.default_rng(seed).uniform(0, [width, height], (2, 8, 2))
    boxes = np.concatenate([points.min(axis=0), points.max(axis=0)], axis=1).astype(np.float32)
    there = geometry.to_letterbox(boxes)
    assert (there >= -1e-3).all()
    assert (there <= size + 1e-3).all()
    np.testing.assert_allclose(geometry.to_original(there), boxes, rtol=1e-4, atol=max(width, height) * 1e-5)


@given(seed=SEEDS, horizontal=st.booleans(), vertical=st.booleans())
def test_flipping_twice_restores_the_tile(seed: int, horizontal: bool, vertical: bool) -> None:
    tile = _tile(np.random.default_rng(seed), width=20, height=14, count=3)
    twice = flip(flip(tile, horizontal=horizontal, vertical=vertical), horizontal=horizontal, vertical=vertical)
    np.testing.assert_array_equal(twice.image, tile.image)
    np.testing.assert_allclose(twice.boxes_xyxy, tile.boxes_xyxy, atol=1e-5)
