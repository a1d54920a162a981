"""Pasted objects: where they may lie, what they look like, and that the labels say so."""

from __future__ import annotations

import numpy as np
import pytest

from yolov7.data.augment import Tile
from yolov7.data.paste import MAX_COVERED, Patch, copy_paste, cut_patches, paste_in

GREEN = Patch(np.full((40, 60, 3), (0, 200, 0), np.uint8), label=2)


def covered(box: np.ndarray, other: np.ndarray) -> float:
    """Share of `other` under `box`."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    return float(sides.clip(0).prod() / (other[2:] - other[:2]).prod())


@pytest.mark.parametrize("seed", range(20))
def test_what_is_pasted_lies_in_the_image_and_leaves_the_others_to_see(seed: int) -> None:
    image = np.zeros((320, 320, 3), np.uint8)
    boxes = np.array([[10, 10, 150, 200], [200, 50, 300, 300]], np.float32)
    pasted, after, labels = paste_in(
        image, boxes, np.array([0, 1]), patches=[GREEN], generator=np.random.default_rng(seed)
    )
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
    assert (pasted[top:bottom, left:right] == (0, 200, 0)).all()  # nothing lies on the last one


def test_without_patches_nothing_changes() -> None:
    image, boxes = np.zeros((64, 64, 3), np.uint8), np.zeros((0, 4), np.float32)
    assert paste_in(image, boxes, np.zeros(0, np.int64), patches=[], generator=np.random.default_rng(0))[0] is image


def test_it_pastes_into_an_image_without_objects() -> None:
    image, none = np.zeros((320, 320, 3), np.uint8), np.zeros((0, 4), np.float32)
    _, boxes, labels = paste_in(image, none, np.zeros(0, np.int64), patches=[GREEN], generator=np.random.default_rng(0))
    assert boxes.shape == (len(labels), 4)
    assert len(labels) > 0


def test_patches_are_the_objects_that_are_large_enough() -> None:
    image = np.arange(100 * 100 * 3, dtype=np.int64).astype(np.uint8).reshape(100, 100, 3)
    boxes = np.array([[10.4, 20, 40, 60], [0, 0, 9, 50]], np.float32)
    (patch,) = cut_patches([Tile(image, boxes, np.array([3, 1]))])
    np.testing.assert_array_equal(patch.image, image[20:60, 10:40])
    assert patch.label == 3


def test_a_copy_is_the_mirror_image_at_the_mirrored_place() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[20:60, 10:25] = (250, 0, 0)
    image[20:60, 25:40] = (0, 0, 250)
    box = np.array([[10, 20, 40, 60]], np.float32)
    pasted, boxes, labels = copy_paste(image, box, np.array([5]), probability=1.0, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(boxes, [[10, 20, 40, 60], [160, 20, 190, 60]])
    assert labels.tolist() == [5, 5]
    np.testing.assert_array_equal(pasted[20:60, 160:190], image[20:60, 10:40][:, ::-1])
    assert not image[:, 100:].any()


def test_a_copy_that_would_hide_an_object_is_not_made() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    boxes = np.array([[80, 20, 120, 60], [10, 10, 40, 40], [170, 10, 190, 30]], np.float32)
    _, after, labels = copy_paste(
        image, boxes, np.array([0, 1, 2]), probability=1.0, generator=np.random.default_rng(0)
    )
    # the first would lie on itself, the second on the third; the third's copy covers 4/9 of the second
    np.testing.assert_array_equal(after, boxes)
    assert labels.tolist() == [0, 1, 2]
