"""Class-balanced sampling: factors by hand, and epochs that keep to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from yolov7.data.balance import balanced_order, repeat_factors
from yolov7.data.labels import ImageIndex


def index_of(labels: list[list[int]]) -> ImageIndex:
    count = sum(len(image) for image in labels)
    return ImageIndex(
        class_names=("common", "rare", "absent"),
        paths=tuple(Path(f"/{i}.jpg") for i in range(len(labels))),
        widths=np.full(len(labels), 10, np.int32),
        heights=np.full(len(labels), 10, np.int32),
        hashes=("",) * len(labels),
        box_offsets=np.cumsum([0, *map(len, labels)]),
        boxes_xyxy=np.zeros((count, 4), np.float32),
        labels=np.array([label for image in labels for label in image], np.int64),
        crowd=np.zeros(count, bool),
    )


def test_the_rarest_class_of_an_image_decides() -> None:
    # common in 7 of 10 images, rare in 1: sqrt(0.4 / 0.1) = 2
    index = index_of([[0], [0, 0], [0], [0], [0], [0], [0, 1, 1], [], [], []])
    np.testing.assert_allclose(repeat_factors(index, threshold=0.4), [1, 1, 1, 1, 1, 1, 2, 1, 1, 1])
    np.testing.assert_allclose(repeat_factors(index, threshold=0.0), 1)


def test_crowd_regions_make_no_image_rare() -> None:
    index = index_of([[0], [0], [0], [1]])
    index.crowd[3] = True
    np.testing.assert_allclose(repeat_factors(index, threshold=1.0), np.array([1, 1, 1, np.sqrt(4 / 3)])[[3, 3, 3, 0]])


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_holds_each_image_in_proportion(seed: int) -> None:
    factors = np.array([1.0] * 90 + [4.0] * 10)
    order = balanced_order(factors, generator=np.random.default_rng(seed))
    counts = np.bincount(order, minlength=100)
    expected = factors * 100 / factors.sum()
    assert len(order) == 100
    assert (counts >= np.floor(expected)).all()
    assert (counts <= np.ceil(expected)).all()
    assert not (np.diff(order) >= 0).all()


def test_equal_factors_show_every_image_once() -> None:
    order = balanced_order(np.ones(57), generator=np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(57))


def test_over_many_epochs_the_shares_are_exact() -> None:
    factors = np.array([1.0, 1.0, 1.5, 3.0])
    generator = np.random.default_rng(0)
    counts = sum(np.bincount(balanced_order(factors, generator=generator), minlength=4) for _ in range(4000))
    np.testing.assert_allclose(counts / 4000, factors * 4 / factors.sum(), atol=0.02)
