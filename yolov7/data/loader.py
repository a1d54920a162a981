"""Batches for training and validation, made by worker processes ahead of their use."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import default_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from yolov7.data.augment.geometry import Letterbox, Sample
from yolov7.data.balance import balanced_order, repeat_factors
from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import ImageIndex
from yolov7.structures import Batch, Targets
from yolov7.system.memory import keep_memory

PREFETCH = 2  # batches that a worker makes ahead
_SHUFFLE = 1 << 32  # keeps the shuffling generator apart from those of the samples
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class BatchKey:
    """All that a batch depends on; the only thing sent to a worker."""

    epoch: int
    mosaic: bool
    indices: tuple[int, ...]


@dataclass(frozen=True)
class ValBatch:
    """Letterboxed images (B, 3, S, S) uint8 RGB, their positions in the index, and the way back to their pixels."""

    images: Tensor
    index: tuple[int, ...]
    geometry: tuple[Letterbox, ...]


class TrainLoader:
    """The training batches of one rank.

    `batch_size` counts the images of a step over all ranks: rank r has every `world_size`-th of them, so that the
    images of a step do not depend on how many workers share it, and an epoch goes on where it was left with any number
    of them. Shares of a step differ by an image at most; in an epoch's last step, which is smaller, some may be empty.
    With `balance`, images of classes that are in a smaller share of them come more often than others. Images come in
    the memory format channels_last.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        *,
        batch_size: int,
        seed: int = 0,
        balance: float = 0.0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not len(dataset):
            raise ValueError("the training split has no images; run `yolov7 prepare` and read its health report")
        if batch_size < world_size:
            raise ValueError(f"batch_size={batch_size} must be at least an image for each of {world_size} workers")
        self._num_images, self._batch_size, self._seed = len(dataset), batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._factors = repeat_factors(dataset.index, threshold=balance) if balance else None
        self._keys = _Keys()
        self._batches: DataLoader[Batch] = _make_loader(_TrainBatches(dataset), self._keys, num_workers)

    def __len__(self) -> int:
        return -(-self._num_images // self._batch_size)

    def epoch(self, epoch: int, *, mosaic: bool = True, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; `mosaic=False` as in the last epochs."""
        self._keys.keys = [BatchKey(epoch, mosaic, indices) for indices in self._shares(epoch)][start:]
        return iter(self._batches)

    def _shares(self, epoch: int) -> Iterator[tuple[int, ...]]:
        generator = default_rng((self._seed, epoch, _SHUFFLE))
        if self._factors is None:
            order = generator.permutation(self._num_images)
        else:
            order = balanced_order(self._factors, generator=generator)
        for start in range(0, self._num_images, self._batch_size):
            step = order[start : start + self._batch_size]
            yield tuple(int(i) for i in step[self._rank :: self._world_size])


class ValLoader:
    """The letterboxed images of a split, or of every n-th of them, in order; may be iterated again and again.

    Ranks have whole batches, rank r every `world_size`-th: what a batch is does not depend on how many share them.
    """

    def __init__(
        self,
        index: ImageIndex,
        *,
        image_size: int,
        batch_size: int,
        every: int = 1,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        images = range(0, len(index), every)
        starts = range(rank * batch_size, len(images), world_size * batch_size)
        keys = _Keys([BatchKey(0, False, tuple(images[start : start + batch_size])) for start in starts])
        dataset = DetectionDataset(index, image_size=image_size, cache="none")
        self._num_batches = len(keys)
        self._batches: DataLoader[ValBatch] = _make_loader(_ValBatches(dataset), keys, num_workers)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[ValBatch]:
        return iter(self._batches)


def make_batch(dataset: DetectionDataset, indices: Sequence[int], *, epoch: int = 0, mosaic: bool = True) -> Batch:
    """The samples of some images, drawn into one tensor; there may be none."""
    images = np.empty((len(indices), dataset.image_size, dataset.image_size, 3), np.uint8)
    samples = [
        dataset.sample(i, epoch=epoch, mosaic=mosaic, out=image) for i, image in zip(indices, images, strict=True)
    ]
    return collate(samples, images, indices=indices)


def collate(samples: Sequence[Sample], images: NDArray[np.uint8], *, indices: Sequence[int]) -> Batch:
    """Samples as a batch; `images` (B, S, S, 3) are theirs."""
    counts = [len(sample.labels) for sample in samples]
    targets = Targets(
        image=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        label=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in samples)])),
        boxes_cxcywh=torch.from_numpy(
            np.concatenate([np.zeros((0, 4), np.float32), *(sample.boxes_cxcywh for sample in samples)])
        ),
    )
    return Batch(_as_tensor(images), targets, tuple(indices))


def _as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """(B, 3, H, W) in the memory format channels_last: the pixels stay as they were drawn."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


class _TrainBatches(Dataset[Batch]):
    def __init__(self, dataset: DetectionDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: BatchKey) -> Batch:
        return make_batch(self._dataset, key.indices, epoch=key.epoch, mosaic=key.mosaic)


class _ValBatches(Dataset[ValBatch]):
    def __init__(self, dataset: DetectionDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: BatchKey) -> ValBatch:
        images, geometry = zip(*(self._dataset.letterboxed(i) for i in key.indices), strict=True)
        return ValBatch(_as_tensor(np.stack(images)), key.indices, geometry)


class _Keys(Sampler[BatchKey]):
    """The keys of the epoch to come; sampled in the parent, so that lasting workers need no word of the epoch."""

    def __init__(self, keys: Sequence[BatchKey] = ()) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def _make_loader(batches: Dataset[Any], keys: _Keys, num_workers: int) -> DataLoader[Any]:
    """Forked workers share the decoded images with this process; where there is no fork, this process does the work."""
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    workers = num_workers if can_fork else 0
    return DataLoader(
        batches,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        worker_init_fn=_begin_worker if workers else None,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=PREFETCH if workers else None,
        persistent_workers=workers > 0,
    )


def _begin_worker(_: int) -> None:
    """One thread a worker, no interrupts of its own, and an end with the parent's."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
