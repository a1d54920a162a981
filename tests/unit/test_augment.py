"""Augmentation in cases that can be verified by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from yolov7.data.augment.compose import compose
from yolov7.data.augment.geometry import find_visible, random_transform, transform_boxes, worth_keeping
from yolov7.data.augment.letterbox import FILL, resize
from yolov7.data.augment.mosaic import place_mosaic
from yolov7.data.augment.tile import Tile, blend, place_tile
from yolov7.settings import AugmentSettings

COLOURS = ((200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 200, 10))


def _plain_tile(label: int, *, size: int = 64) -> Tile:
    image = np.full((size, size, 3), COLOURS[label], np.uint8)
    return Tile(image, np.array([[8, 8, 40, 40]], np.float32), np.array([label]))


def _mosaic(tiles: list[Tile], *, size: int, generator: np.random.Generator) -> list[Tile]:
    sizes = [(tile.image.shape[1], tile.image.shape[0]) for tile in tiles]
    corners = place_mosaic(sizes, size=size, generator=generator)
    return [place_tile(tile, corner, canvas=2 * size) for tile, corner in zip(tiles, corners, strict=True)]


def test_a_mosaic_places_four_images_around_a_centre() -> None:
    size, generator = 64, np.random.default_rng(3)
    placed = _mosaic([_plain_tile(label) for label in range(4)], size=size, generator=generator)
    centre = (placed[3].left, placed[3].top)
    assert 32 <= min(centre) <= max(centre) <= 96
    assert (placed[0].left + placed[0].image.shape[1], placed[0].top + placed[0].image.shape[0]) == centre
    assert all(tile.left >= 0 and tile.top >= 0 for tile in placed)
    assert all(tile.left + tile.image.shape[1] <= 128 and tile.top + tile.image.shape[0] <= 128 for tile in placed)


@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_tiles_warped_one_by_one_equal_the_warped_canvas(degrees: float) -> None:
    """The oracle draws the canvas of double size and warps it as a whole; both agree except at the seams."""
    size, generator = 96, np.random.default_rng(5)
    images = [cv2.GaussianBlur(generator.integers(0, 256, (96, 80, 3), dtype=np.uint8), (0, 0), 3) for _ in range(4)]
    tiles = [Tile(np.asarray(image, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)) for image in images]
    placed = _mosaic(tiles, size=size, generator=generator)
    chosen = AugmentSettings(degrees=degrees, scale=0.3, shear=degrees / 5, perspective=0.0)
    matrix, scale = random_transform(chosen, canvas=2 * size, size=size, generator=generator)
    out = compose(placed, matrix, scale=scale, size=size).image
    canvas = np.full((2 * size, 2 * size, 3), FILL, np.uint8)
    for tile in placed:
        height, width = tile.image.shape[:2]
        canvas[tile.top : tile.top + height, tile.left : tile.left + width] = tile.image
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    whole = cv2.warpAffine(
        canvas, (np.linalg.inv(half) @ matrix @ half)[:2], (size, size), borderValue=(FILL, FILL, FILL)
    )
    differs = np.abs(out.astype(int) - whole).max(axis=2) > 6
    assert differs.mean() < 0.08  # the seams


def test_there_is_no_grey_line_between_tiles() -> None:
    size, generator = 64, np.random.default_rng(7)
    placed = _mosaic([_plain_tile(label) for label in range(4)], size=size, generator=generator)
    for degrees in (0.0, 20.0):
        chosen = AugmentSettings(degrees=degrees, scale=0.0, translate=0.0)
        matrix, scale = random_transform(chosen, canvas=2 * size, size=size, generator=generator)
        out = compose(placed, matrix, scale=scale, size=size).image
        inner = out[24:40, 24:40].reshape(-1, 3)
        assert (inner == FILL).all(axis=1).sum() == 0


def test_boxes_worth_keeping() -> None:
    before = np.array([[0, 0, 100, 100]] * 5, np.float32)
    after = np.array(
        [[0, 0, 40, 40], [0, 0, 2, 60], [0, 0, 30, 30], [0, 0, 100, 4.9], [0, 0, 100, 11]], np.float32
    )  # sound, 2 px wide, 9 % of the area, too long, sound
    assert worth_keeping(before, after).tolist() == [True, False, False, False, True]


def test_boxes_of_a_quarter_turn() -> None:
    quarter = np.array([[0.0, -1.0, 10.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(transform_boxes(np.array([[1, 2, 4, 8]], np.float32), quarter), [[2, 1, 8, 4]])


def test_scale_is_drawn_from_the_reference_range() -> None:
    generator = np.random.default_rng(0)
    chosen = AugmentSettings(scale=0.5)
    scales = [random_transform(chosen, canvas=64, size=64, generator=generator)[1] for _ in range(500)]
    assert 0.5 <= min(scales) < 0.55
    assert 1.55 < max(scales) <= 1.6


@pytest.mark.parametrize("seed", range(30))
def test_without_rotation_tiles_and_boxes_are_placed_on_whole_pixels(seed: int) -> None:
    """The box of a bright rectangle is where it is drawn, for every scale, shift and cut of the tile."""
    size, generator = 64, np.random.default_rng(seed)
    image = np.full((50, 64, 3), 40, np.uint8)
    image[20:40, 16:48] = 240
    tile = Tile(image, np.array([[16, 20, 48, 40]], np.float32), np.array([1]), left=30, top=20)
    chosen = AugmentSettings(scale=0.5, translate=0.2)
    matrix, scale = random_transform(chosen, canvas=2 * size, size=size, generator=generator)
    made = compose([tile], matrix, scale=scale, size=size)
    out, boxes = made.image, made.boxes_xyxy
    assert find_visible([(64, 50)], [(30, 20)], matrix, size=size)[0] or (out == FILL).all()
    rows, columns = np.nonzero(out[..., 0] > 140)
    for box in boxes:
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, drawn, atol=1)


def test_an_image_that_is_not_visible_is_not_drawn() -> None:
    size, generator = 64, np.random.default_rng(0)
    counts = {True: 0, False: 0}
    for _ in range(300):
        chosen = AugmentSettings(scale=0.9, translate=0.2, degrees=float(generator.choice([0, 40])))
        corner = place_mosaic([(64, 40)] * 4, size=size, generator=generator)[int(generator.integers(4))]
        matrix, scale = random_transform(chosen, canvas=2 * size, size=size, generator=generator)
        tile = place_tile(
            Tile(np.zeros((40, 64, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0)), corner, canvas=128
        )
        out = compose([tile], matrix, scale=scale, size=size).image
        (seen,) = find_visible([(64, 40)], [corner], matrix, size=size)
        counts[seen] += 1
        assert seen or (out == FILL).all()
    assert min(counts.values()) > 20


def test_a_blend_is_between_both_images() -> None:
    dark, bright = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 200, np.uint8)
    mixed = blend(dark, bright, generator=np.random.default_rng(0))
    assert len(np.unique(mixed)) == 1
    assert 20 < int(mixed[0, 0, 0]) < 180


def test_resize_averages_when_much_smaller() -> None:
    checker = (np.indices((80, 80)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = resize(np.stack([checker] * 3, axis=2), width=10, height=10)
    assert np.abs(small.astype(int) - 128).max() <= 1
