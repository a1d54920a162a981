"""Samples with mosaic against a plain loader that draws the canvas of double size, and how long training waits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from tests.bench.bench_step import BATCH, Step
from tests.bench.comparison import Row, Stopwatch
from tests.bench.plain_mosaic import plain_sample
from yolov7.data.augment.letterbox import fitted_size
from yolov7.data.augment.tile import Tile
from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import ImageIndex
from yolov7.data.loader import TrainLoader, make_batch
from yolov7.settings import AugmentSettings
from yolov7.structures import Batch
from yolov7.system.memory import keep_memory
from yolov7.system.precision import resolve_precision

SIZE, COUNT, OBJECTS, SAMPLES = 640, 32, 8, 16
AUGMENT = AugmentSettings()


def rows(watch: Stopwatch) -> Iterator[Row]:
    """Compare both with decoded images and with files, in one process and one thread; both draw the same mosaics.

    As in the loader's processes, freed memory is kept; otherwise both would wait for the system to map pages.
    """
    keep_memory()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    with jpeg_split(width=640, height=480) as index:
        cached = DetectionDataset(index, image_size=SIZE, augment=AUGMENT, cache="memory")
        decoded = [_plain_tile(index, i) for i in range(COUNT)]
        _check_same(cached, decoded.__getitem__)
        plain, ours = partial(_plain_samples, decoded.__getitem__), partial(_samples, cached)
        name = f"batch of {SAMPLES} with mosaic, {SIZE} px"
        yield watch.compare(f"{name}, decoded images in memory", plain, ours)
    for width, height in ((640, 480), (1600, 1200)):
        with jpeg_split(width=width, height=height) as index:
            plain = partial(_plain_samples, partial(_plain_tile, index))
            ours = partial(_samples, DetectionDataset(index, image_size=SIZE, augment=AUGMENT, cache="none"))
            yield watch.at_most(3).compare(f"{name}, JPEG files of {width} x {height}", plain, ours)
    cv2.setNumThreads(threads)


def wait(_: Stopwatch) -> Iterator[Row]:
    """Measure which share of a short training is spent waiting for one worker process, with and without cache."""
    batch = BATCH // 2  # so that the epoch takes some seconds on two cores
    step = Step(dtype=resolve_precision("auto", torch.device("cpu")), channels_last=True, batch=batch, size=SIZE)
    for cache, what in (("memory", "decoded images in memory"), ("none", "JPEG files")):
        with jpeg_split(width=640, height=480, count=9 * batch) as index:
            dataset = DetectionDataset(index, image_size=SIZE, augment=AUGMENT, cache=cache)  # type: ignore[arg-type]
            loader = TrainLoader(dataset, batch_size=batch, num_workers=1)
            waited, total = seconds_of_waiting(loader, step.take)
        name = f"training step, {SIZE} px, batch {batch}, waits for its loader ({what}, 1 worker)"
        yield Row(name, figure=f"{waited / total:.1%} of {total:.1f} s, the first batch left out")


def cache(watch: Stopwatch) -> Iterator[Row]:
    """Compare one process's images per second from JPEG files with those from decoded images in memory and on disk."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    with jpeg_split(width=640, height=480) as index, tempfile.TemporaryDirectory() as folder:
        make = partial(DetectionDataset, index, image_size=SIZE, augment=AUGMENT, cache_folder=Path(folder))
        plain = partial(_samples, make(cache="none"))
        for mode in ("memory", "disk"):
            cached = partial(_samples, make(cache=mode))
            row = watch.compare(f"batch of {SAMPLES} with mosaic, {SIZE} px, cache: {mode}", plain, cached)
            rates = " -> ".join(f"{SAMPLES / seconds:.0f}" for seconds in (row.plain, row.ours) if seconds)
            yield replace(row, figure=f"{rates} images/s")
    cv2.setNumThreads(threads)


def seconds_of_waiting(
    loader: TrainLoader, take: Callable[[Batch], None], *, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Return the seconds of waiting and all seconds, over the epoch's batches after the first."""
    batches = loader.epoch(0)
    take(next(batches))
    waited, began = 0.0, clock()
    while True:
        asked = clock()
        batch = next(batches, None)
        waited += clock() - asked
        if batch is None:
            return waited, clock() - began
        take(batch)


@contextmanager
def jpeg_split(*, width: int, height: int, count: int = COUNT) -> Iterator[ImageIndex]:
    """Provide JPEG files that take about as long to decode as photographs, with random boxes."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = tuple(Path(folder) / f"{i}.jpg" for i in range(count))
        for path in paths:
            coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
            pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
            noisy = np.clip(pixels + random.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(path), noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])
        low = random.uniform(0, [width * 0.7, height * 0.7], (count * OBJECTS, 2))
        sides = random.uniform(0.05, 0.3, low.shape) * [width, height]
        yield ImageIndex(
            class_names=("a", "b"),
            paths=paths,
            widths=np.full(count, width, np.int32),
            heights=np.full(count, height, np.int32),
            hashes=("",) * count,
            box_offsets=np.arange(count + 1) * OBJECTS,
            boxes_xyxy=np.concatenate([low, low + sides], axis=1).astype(np.float32),
            labels=random.integers(0, 2, count * OBJECTS),
            crowd=np.zeros(count * OBJECTS, bool),
        )


def _plain_tile(index: ImageIndex, i: int) -> Tile:
    image = cv2.imread(str(index.paths[i]))  # BGR
    assert image is not None
    height, width = image.shape[:2]
    new_width, new_height = fitted_size(width, height, size=SIZE)
    resized = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    ratio = np.array([new_width / width, new_height / height] * 2, np.float32)
    return Tile(resized, index.boxes_of(i) * ratio, index.labels_of(i))  # type: ignore[arg-type]


def _plain_samples(tile: Callable[[int], Tile]) -> Tensor:
    make = partial(plain_sample, tile=tile, count=COUNT, size=SIZE, settings=AUGMENT, seed=0, epoch=0)
    return torch.stack([torch.from_numpy(make(i).image) for i in range(SAMPLES)])


def _samples(dataset: DetectionDataset) -> Tensor:
    return make_batch(dataset, range(SAMPLES)).images


def _check_same(dataset: DetectionDataset, tile: Callable[[int], Tile]) -> None:
    """Assert that boxes agree within two pixels, as ours places tiles on whole pixels, and images nearly agree."""
    for i in range(4):
        ours = dataset.sample(i)
        theirs = plain_sample(i, tile=tile, count=COUNT, size=SIZE, settings=AUGMENT, seed=0, epoch=0)
        np.testing.assert_allclose(ours.boxes_cxcywh, theirs.boxes_cxcywh, atol=2 / SIZE)
        assert np.abs(ours.image.astype(int) - theirs.image.transpose(1, 2, 0)).mean() < 6
