"""Pasted objects: their positions, their pixels and their labels."""

from __future__ import annotations

import numpy as np
import pytest

from yolov7.data.augment.paste import MAX_COVERED, Patch, copy_paste, cut_patches, paste_in
from yolov7.data.augment.tile import Tile
from yolov7.data.outlines import Outline, bounds, fill

GREEN = Patch(np.full((40, 60, 3), (0, 200, 0), np.uint8), label=2)
NO_BOXES, NO_LABELS = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def polygon(*points: tuple[float, float]) -> Outline:
    return (np.array(points, np.float32),)


def covered(box: np.ndarray, other: np.ndarray) -> float:
    """Return the share of `other` that `box` covers."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    return float(sides.clip(0).prod() / (other[2:] - other[:2]).prod())


@pytest.mark.parametrize("seed", range(20))
def test_pasted_objects_are_within_the_image_and_cover_little_of_the_others(seed: int) -> None:
    image = np.zeros((320, 320, 3), np.uint8)
    boxes = np.array([[10, 10, 150, 200], [200, 50, 300, 300]], np.float32)
    pasted = paste_in(Tile(image, boxes, np.array([0, 1])), patches=[GREEN], generator=generator(seed))
    after, labels = pasted.boxes_xyxy, pasted.labels
    assert not image.any()
    assert len(after) == len(labels) > 2
    np.testing.assert_array_equal(after[:2], boxes)
    assert labels[:2].tolist() == [0, 1]
    assert set(labels[2:]) == {2}
    assert after.min() >= 0
    assert after.max() <= 320
    for i in range(2, len(after)):
        assert all(covered(after[i], after[j]) < MAX_COVERED for j in range(i))
        left, top, right, bottom = after[i].astype(int)
        assert abs((right - left) / (bottom - top) - 1.5) < 0.15  # its aspect is kept
    left, top, right, bottom = after[-1].astype(int)
    assert (pasted.image[top:bottom, left:right] == (0, 200, 0)).all()  # no object covers the last one


def test_without_patches_nothing_changes() -> None:
    tile = Tile(np.zeros((64, 64, 3), np.uint8), NO_BOXES, NO_LABELS)
    assert paste_in(tile, patches=[], generator=generator()) is tile


def test_objects_are_pasted_into_an_image_without_objects() -> None:
    pasted = paste_in(
        Tile(np.zeros((320, 320, 3), np.uint8), NO_BOXES, NO_LABELS), patches=[GREEN], generator=generator()
    )
    assert pasted.boxes_xyxy.shape == (len(pasted.labels), 4)
    assert len(pasted.labels) > 0


@pytest.mark.parametrize("seed", range(5))
def test_only_the_pixels_within_an_outline_are_pasted(seed: int) -> None:
    """Of a green triangle on red nothing red is pasted, and the boxes are those of the triangles."""
    triangle = polygon((5, 0), (60, 38), (2, 40))
    patch = Patch(np.full((40, 60, 3), (200, 0, 0), np.uint8), label=1, outline=triangle)
    patch.image[fill(triangle, width=60, height=40)] = (0, 200, 0)
    pasted = paste_in(
        Tile(np.full((320, 320, 3), 7, np.uint8), NO_BOXES, NO_LABELS), patches=[patch], generator=generator(seed)
    )
    inside = np.zeros((320, 320), np.bool_)
    for box, outline in zip(pasted.boxes_xyxy, pasted.outlines, strict=True):
        inside |= fill(outline, width=320, height=320)
        np.testing.assert_allclose(bounds(outline), box, atol=1e-3)
    assert (pasted.image[~inside] == 7).all()
    assert (pasted.image[inside, 1] > pasted.image[inside, 0]).mean() > 0.9  # apart from the blurred edge
    rows, columns = np.nonzero(inside)
    assert abs(columns.min() - pasted.boxes_xyxy[:, 0].min()) <= 1
    assert abs(rows.max() + 1 - pasted.boxes_xyxy[:, 3].max()) <= 1


def test_small_objects_are_not_cut_out() -> None:
    image = np.arange(100 * 100 * 3, dtype=np.int64).astype(np.uint8).reshape(100, 100, 3)
    boxes = np.array([[10.4, 20, 40, 60], [0, 0, 9, 50]], np.float32)
    (patch,) = cut_patches([Tile(image, boxes, np.array([3, 1]))])
    np.testing.assert_array_equal(patch.image, image[20:60, 10:40])
    assert (patch.label, patch.outline) == (3, ())
    outlines = (polygon((10.4, 20), (40, 20), (40, 60)), ())
    (patch,) = cut_patches([Tile(image, boxes, np.array([3, 1]), outlines=outlines)])
    np.testing.assert_allclose(patch.outline[0], [[0.4, 0], [30, 0], [30, 40]], atol=1e-5)


def test_a_copy_is_the_mirror_image_at_the_mirrored_place() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[20:60, 10:25] = (250, 0, 0)
    image[20:60, 25:40] = (0, 0, 250)
    tile = Tile(image, np.array([[10, 20, 40, 60]], np.float32), np.array([5]))
    pasted = copy_paste(tile, probability=1.0, generator=generator())
    np.testing.assert_array_equal(pasted.boxes_xyxy, [[10, 20, 40, 60], [160, 20, 190, 60]])
    assert pasted.labels.tolist() == [5, 5]
    np.testing.assert_array_equal(pasted.image[20:60, 160:190], image[20:60, 10:40][:, ::-1])
    assert not image[:, 100:].any()


def test_only_the_pixels_within_an_outline_are_copied() -> None:
    """An outline of two parts, one of them concave: outside of its mirror image the image does not change."""
    image = generator(1).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    hook = (
        *polygon((10, 20), (40, 20), (40, 30), (20, 30), (20, 60), (10, 60)),
        *polygon((30, 45), (40, 45), (35.3, 60)),
    )
    tile = Tile(image, np.array([[10, 20, 40, 60]], np.float32), np.array([5]), outlines=(hook,))
    pasted = copy_paste(tile, probability=1.0, generator=generator())
    within = fill(hook, width=200, height=100)[:, ::-1]
    assert 500 < within.sum() < 700
    np.testing.assert_array_equal(pasted.image[within], image[:, ::-1][within])
    np.testing.assert_array_equal(pasted.image[~within], image[~within])
    np.testing.assert_array_equal(bounds(pasted.outlines[1]), pasted.boxes_xyxy[1])


def test_an_outline_with_little_area_is_not_pasted() -> None:
    tile = Tile(
        np.zeros((100, 200, 3), np.uint8),
        np.array([[10, 20, 40, 60]], np.float32),
        np.array([5]),
        outlines=(polygon((10, 20), (40, 60), (39, 60)),),
    )
    assert len(copy_paste(tile, probability=1.0, generator=generator()).labels) == 1


def test_a_copy_that_would_cover_an_object_is_left_out() -> None:
    boxes = np.array([[80, 20, 120, 60], [10, 10, 40, 40], [170, 10, 190, 30]], np.float32)
    tile = Tile(np.zeros((100, 200, 3), np.uint8), boxes, np.array([0, 1, 2]))
    pasted = copy_paste(tile, probability=1.0, generator=generator())
    # the first copy would cover its original, the second the third object; the third covers 4/9 of the second
    np.testing.assert_array_equal(pasted.boxes_xyxy, boxes)
    assert pasted.labels.tolist() == [0, 1, 2]
