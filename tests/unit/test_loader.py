"""Samples depend only on (seed, epoch, image); batches do not depend on worker processes or the number of ranks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partialmethod
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.data_files import make_index
from yolov7.data import loader as module
from yolov7.data.dataset import DetectionDataset
from yolov7.data.loader import BatchKey, TrainLoader, ValBatch, ValLoader, count_workers
from yolov7.errors import DataError, SettingError
from yolov7.inference.batch import to_original
from yolov7.settings import AugmentSettings
from yolov7.structures import Batch, Detections


def _dataset(folder: Path, *, count: int = 7) -> DetectionDataset:
    return DetectionDataset(
        make_index(folder, count=count), image_size=64, augment=AugmentSettings(mixup=0.5, degrees=10), seed=3
    )


def _same(first: Batch, second: Batch) -> bool:
    return (
        first.index == second.index
        and torch.equal(first.images, second.images)
        and torch.equal(first.targets.image, second.targets.image)
        and torch.equal(first.targets.label, second.targets.label)
        and torch.equal(first.targets.boxes_cxcywh, second.targets.boxes_cxcywh)
    )


def test_batches_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    alone, helped = (TrainLoader(dataset, batch_size=3, seed=1, num_workers=workers) for workers in (0, 2))
    for epoch in (4, 5):
        expected = list(alone.epoch(epoch, mosaic=epoch == 4))
        found = list(helped.epoch(epoch, mosaic=epoch == 4))
        assert len(expected) == len(found) == len(alone) == 3
        assert all(_same(a, b) for a, b in zip(expected, found, strict=True))


def test_workers_draw_batches_into_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The assertion runs in the worker, before the batch is sent."""
    for kind in (module._TrainBatches, module._ValBatches):
        monkeypatch.setattr(kind, "__getitem__", partialmethod(_make_shared, kind.__getitem__))
    dataset = _dataset(tmp_path)
    train = TrainLoader(dataset, batch_size=3, num_workers=1)
    val = ValLoader(dataset.index, image_size=64, batch_size=3, num_workers=1)
    assert len(list(train.epoch(0))) == len(list(val)) == 3


def _make_shared(batches: object, make: Callable[[object, BatchKey], Batch | ValBatch], key: BatchKey) -> object:
    batch = make(batches, key)
    assert batch.images.is_shared()
    return batch


def test_the_number_of_workers_is_chosen_by_the_cpus() -> None:
    assert [count_workers("auto", cpus=cpus) for cpus in (1, 4, 64)] == [1, 4, 8]
    assert [count_workers(wanted, cpus=4) for wanted in (0, 3, 12)] == [0, 3, 12]


def test_every_epoch_has_every_image_once_in_another_order(tmp_path: Path) -> None:
    loader = TrainLoader(_dataset(tmp_path), batch_size=3, seed=1)
    orders = [[i for batch in loader.epoch(epoch) for i in batch.index] for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == list(range(7))
    assert orders[0] == orders[2] != orders[1]
    assert [len(batch.index) for batch in loader.epoch(0)] == [3, 3, 1]


def _steps(dataset: DetectionDataset, *, ranks: int, start: int = 0) -> list[list[int]]:
    """Return the images of each step of an epoch from `start` on, combined from the ranks' shares."""
    shares = [
        [
            batch.index
            for batch in TrainLoader(dataset, batch_size=5, seed=1, rank=r, world_size=ranks).epoch(2, start=start)
        ]
        for r in range(ranks)
    ]
    steps = [list(zip_longest(*parts)) for parts in zip(*shares, strict=True)]  # rows of one image for each rank
    return [[image for row in rows for image in row if image is not None] for rows in steps]


def test_the_steps_of_an_epoch_are_the_same_for_any_number_of_ranks(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    whole = _steps(dataset, ranks=1)
    assert [len(step) for step in whole] == [5, 2]
    for ranks in (2, 3, 5):  # the last step leaves a rank, or three, without an image
        assert _steps(dataset, ranks=ranks) == whole
        assert _steps(dataset, ranks=ranks, start=1) == whole[1:]
    with pytest.raises(SettingError, match="batch_size=3 must be at least 4, one image for each worker"):
        TrainLoader(dataset, batch_size=3, rank=0, world_size=4)


def test_a_share_without_images_is_an_empty_batch(tmp_path: Path) -> None:
    *_, last = TrainLoader(_dataset(tmp_path), batch_size=5, rank=2, world_size=3).epoch(0)
    assert (last.images.shape, len(last.targets), last.index) == ((0, 3, 64, 64), 0, ())


def test_ranks_validate_whole_batches(tmp_path: Path) -> None:
    index = make_index(tmp_path, count=7)
    shares = [[b.index for b in ValLoader(index, image_size=64, batch_size=2, rank=r, world_size=2)] for r in (0, 1)]
    assert shares == [[(0, 1), (4, 5)], [(2, 3), (6,)]]
    assert [b.index for b in ValLoader(index, image_size=64, batch_size=2, every=3)] == [(0, 3), (6,)]


def test_a_batch_has_the_form_that_training_expects(tmp_path: Path) -> None:
    batch = next(iter(TrainLoader(_dataset(tmp_path), batch_size=7).epoch(0)))
    assert (batch.images.shape, batch.images.dtype) == ((7, 3, 64, 64), torch.uint8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    targets = batch.targets
    assert (targets.image.dtype, targets.label.dtype, targets.boxes_cxcywh.dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
    )
    assert len(targets) == len(targets.label) == len(targets.boxes_cxcywh) > 0
    assert targets.image.tolist() == sorted(targets.image.tolist())
    assert bool((targets.boxes_cxcywh >= 0).all())
    assert bool((targets.boxes_cxcywh <= 1).all())


def test_stopping_in_the_middle_leaves_the_next_epoch_whole(tmp_path: Path) -> None:
    loader = TrainLoader(_dataset(tmp_path), batch_size=2, num_workers=1)
    next(iter(loader.epoch(0)))
    assert sorted(i for batch in loader.epoch(1) for i in batch.index) == list(range(7))


def test_samples_change_with_epoch_and_seed_only(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    uncached = DetectionDataset(dataset.index, image_size=64, augment=dataset.augment, seed=3, cache="none")
    other = DetectionDataset(dataset.index, image_size=64, augment=dataset.augment, seed=4)
    assert dataset.is_cached
    assert not uncached.is_cached
    first = dataset.sample(2, epoch=1)
    for same in (dataset.sample(2, epoch=1), uncached.sample(2, epoch=1)):
        np.testing.assert_array_equal(first.image, same.image)
        np.testing.assert_array_equal(first.boxes_cxcywh, same.boxes_cxcywh)
    for changed in (dataset.sample(2, epoch=2), other.sample(2, epoch=1), dataset.sample(2, epoch=1, mosaic=False)):
        assert (changed.image != first.image).any()


def test_without_augmentation_a_sample_is_letterboxed(tmp_path: Path) -> None:
    dataset = DetectionDataset(make_index(tmp_path, width=120, height=60), image_size=64)
    sample = dataset.sample(1)
    assert sample.image.shape == (64, 64, 3)
    assert (sample.image[:16] == 114).all()
    np.testing.assert_allclose(
        sample.boxes_cxcywh, [[25 / 120, (20 * 32 / 60 + 16) / 64, 40 / 120, 16 / 64]], rtol=1e-5
    )


def test_validation_batches_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    index = make_index(tmp_path, count=7)
    loaders = [ValLoader(index, image_size=64, batch_size=2, num_workers=workers) for workers in (0, 1, 2)]
    processes = set(multiprocessing.active_children())
    for _ in range(2):  # a loader may be iterated several times
        alone, *others = [list(loader) for loader in loaders]
        for batches in others:
            assert [batch.index for batch in batches] == [batch.index for batch in alone]
            assert [batch.geometry for batch in batches] == [batch.geometry for batch in alone]
            assert all(torch.equal(a.images, b.images) for a, b in zip(alone, batches, strict=True))
    assert set(multiprocessing.active_children()) <= processes  # workers run only during an iteration


def test_validation_boxes_return_to_the_pixels_of_the_image(tmp_path: Path) -> None:
    index = make_index(tmp_path, count=5)
    batches = list(ValLoader(index, image_size=96, batch_size=2, num_workers=1))
    assert [batch.index for batch in batches] == [(0, 1), (2, 3), (4,)]
    assert batches[0].images.shape == (2, 3, 96, 96)
    geometry = batches[1].geometry[0]
    boxes = torch.from_numpy(geometry.to_letterbox(index.boxes_of(2)))
    found = to_original(Detections(boxes, torch.ones(2), torch.zeros(2, dtype=torch.int64)), geometry)
    np.testing.assert_allclose(found.boxes_xyxy, index.boxes_of(2), atol=1e-3)
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert to_original(empty, geometry).boxes_xyxy.shape == (0, 4)


def test_an_image_that_changed_since_it_was_indexed_is_reported(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    make_index(tmp_path, width=50, height=50)
    with pytest.raises(DataError, match="is 50x50 pixels but was 60x40 when the data were prepared; restore"):
        dataset.sample(0)
