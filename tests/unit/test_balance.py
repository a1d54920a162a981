"""Class-balanced sampling: factors that were computed by hand, and epochs that follow them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolov7.data.balance import balanced_order, repeat_factors
from yolov7.data.build_index import AnnotatedImage, build_index
from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import ImageIndex
from yolov7.data.loader import TrainLoader


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


def test_an_image_has_the_factor_of_its_rarest_class() -> None:
    # common in 7 of 10 images, rare in 1: sqrt(0.4 / 0.1) = 2
    index = index_of([[0], [0, 0], [0], [0], [0], [0], [0, 1, 1], [], [], []])
    np.testing.assert_allclose(repeat_factors(index, threshold=0.4), [1, 1, 1, 1, 1, 1, 2, 1, 1, 1])
    np.testing.assert_allclose(repeat_factors(index, threshold=0.0), 1)


def test_crowd_regions_do_not_count() -> None:
    index = index_of([[0], [0], [0], [1]])
    index.crowd[3] = True
    np.testing.assert_allclose(repeat_factors(index, threshold=1.0), np.array([1, 1, 1, np.sqrt(4 / 3)])[[3, 3, 3, 0]])


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_has_each_image_in_proportion_to_its_factor(seed: int) -> None:
    factors = np.array([1.0] * 90 + [4.0] * 10)
    order = balanced_order(factors, generator=np.random.default_rng(seed))
    counts = np.bincount(order, minlength=100)
    expected = factors * 100 / factors.sum()
    assert len(order) == 100
    assert (counts >= np.floor(expected)).all()
    assert (counts <= np.ceil(expected)).all()
    assert not (np.diff(order) >= 0).all()


def test_batches_of_a_balanced_epoch_are_split_among_ranks(tmp_path: Path) -> None:
    annotated = []
    for i in range(12):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
        label = np.array([int(i == 7)])
        annotated.append(AnnotatedImage(path, np.array([[1.0, 1, 6, 6]]), label, np.array([False])))
    index, _ = build_index(annotated, class_names=("common", "rare"))
    dataset = DetectionDataset(index, image_size=32)

    def epoch(**place: int) -> list[int]:
        loader = TrainLoader(dataset, batch_size=4, seed=2, balance=0.75, **place)
        return [i for batch in loader.epoch(3) for i in batch.index]

    seen = epoch()
    assert len(seen) == 12
    assert seen.count(7) in (2, 3)  # a factor of 3 among eleven of 1
    assert sorted(epoch(world_size=2) + epoch(rank=1, world_size=2)) == sorted(seen)
    assert epoch() == seen


def test_equal_factors_show_every_image_once() -> None:
    order = balanced_order(np.ones(57), generator=np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(57))


def test_over_many_epochs_the_shares_are_exact() -> None:
    factors = np.array([1.0, 1.0, 1.5, 3.0])
    generator = np.random.default_rng(0)
    counts = sum(np.bincount(balanced_order(factors, generator=generator), minlength=4) for _ in range(4000))
    np.testing.assert_allclose(counts / 4000, factors * 4 / factors.sum(), atol=0.02)
