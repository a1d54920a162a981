"""Batches for training and validation, prepared ahead of their use by worker processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
from numpy.random import default_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from yolov7.data.augment.letterbox import Letterbox
from yolov7.data.augment.tile import Sample
from yolov7.data.balance import balanced_order, repeat_factors
from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import ImageIndex
from yolov7.errors import DataError, SettingError, UserError, told
from yolov7.settings import LetterboxMode
from yolov7.structures import Batch, Targets
from yolov7.system.memory import keep_memory

PREFETCH = 2  # batches that each worker process prepares ahead
_MOST_WORKERS = 8  # processes that `auto` starts at most
_SHUFFLE = 1 << 32  # separates the generator of the order from those of the samples
_PR_SET_PDEATHSIG = 1
Content = TypeVar("Content")


@dataclass(frozen=True)
class BatchKey:
    """Everything that determines a batch; nothing else is sent to a worker process.

    Attributes:
        epoch: Number of the epoch.
        mosaic: Whether mosaic, mixup and pasted objects are allowed.
        indices: Positions of the images in the index.
    """

    epoch: int
    mosaic: bool
    indices: tuple[int, ...]


@dataclass(frozen=True)
class ValBatch:
    """Letterboxed images.

    Attributes:
        images: The images (B, 3, S, S), uint8 RGB.
        index: Positions of the images in the index (B).
        geometry: How each image was letterboxed (B).
    """

    images: Tensor
    index: tuple[int, ...]
    geometry: tuple[Letterbox, ...]


def count_workers(wanted: int | Literal["auto"], *, cpus: int) -> int:
    """Return how many processes prepare batches.

    Args:
        wanted: The number, or `auto` for one process per CPU and at most eight.
        cpus: Number of CPUs of the process that uses the batches.

    Returns:
        The number of processes.
    """
    return min(cpus, _MOST_WORKERS) if wanted == "auto" else wanted


class TrainLoader:
    """The training batches of one rank.

    Rank r has every `world_size`-th image of each step. The images of a step therefore do not depend on the number of
    ranks, and an epoch can be continued with another number of them. The ranks' shares of a step differ by at most one
    image; in the last step of an epoch, which is smaller, some may be empty. Images have the memory format
    channels_last.
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
        """Prepare the loader; worker processes start with the first epoch.

        Args:
            dataset: The samples.
            batch_size: Number of images of a step, over all ranks.
            seed: Seed of the order of the images.
            balance: Threshold of `repeat_factors`; 0 for every image once per epoch.
            num_workers: Number of worker processes; 0 to prepare batches in this process.
            rank: Number of this rank.
            world_size: Number of ranks.

        Raises:
            DataError: If the split has no images.
            SettingError: If the batch size is smaller than the number of ranks.
        """
        if not len(dataset):
            raise DataError("the training split has no images; look for the reasons in the data's health report")
        if batch_size < world_size:
            raise SettingError(f"batch_size={batch_size} must be at least {world_size}, one image for each worker")
        self._num_images, self._batch_size, self._seed = len(dataset), batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._factors = repeat_factors(dataset.index, threshold=balance) if balance else None
        self._keys = _Keys()
        self._batches: DataLoader[Batch] = _make_loader(
            _TrainBatches(dataset), self._keys, num_workers, persistent=True
        )

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return -(-self._num_images // self._batch_size)

    def epoch(self, epoch: int, *, mosaic: bool = True, start: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch.

        Args:
            epoch: Number of the epoch.
            mosaic: Whether mosaic, mixup and pasted objects are allowed; False in the last epochs of a training.
            start: Number of the first step.

        Returns:
            An iterator over this rank's share of each step.
        """
        self._keys.keys = [BatchKey(epoch, mosaic, indices) for indices in self._shares(epoch)][start:]
        return _passed_on(iter(self._batches))

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
    """The letterboxed images of a split in order; may be iterated several times.

    Rank r has every `world_size`-th batch, so that the content of a batch does not depend on the number of ranks.
    """

    def __init__(
        self,
        index: ImageIndex,
        *,
        image_size: int,
        batch_size: int,
        letterbox: LetterboxMode = "centre",
        every: int = 1,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare the loader; worker processes run only during an iteration.

        Args:
            index: The images of the split.
            image_size: Side of the letterboxed images, pixels.
            batch_size: Number of images of a batch.
            letterbox: How images are brought to the square.
            every: Use only every n-th image.
            num_workers: Number of worker processes; 0 to prepare batches in this process.
            rank: Number of this rank.
            world_size: Number of ranks.
        """
        images = range(0, len(index), every)
        starts = range(rank * batch_size, len(images), world_size * batch_size)
        keys = _Keys([BatchKey(0, False, tuple(images[start : start + batch_size])) for start in starts])
        dataset = DetectionDataset(index, image_size=image_size, letterbox=letterbox, cache="none")
        self._num_batches = len(keys)
        num_workers = min(num_workers, len(keys))
        self._batches: DataLoader[ValBatch] = _make_loader(_ValBatches(dataset), keys, num_workers, persistent=False)

    def __len__(self) -> int:
        """Return the number of this rank's batches."""
        return self._num_batches

    def __iter__(self) -> Iterator[ValBatch]:
        """Iterate over this rank's batches."""
        return _passed_on(iter(self._batches))


def make_batch(dataset: DetectionDataset, indices: Sequence[int], *, epoch: int = 0, mosaic: bool = True) -> Batch:
    """Draw the samples of some images into one tensor.

    Args:
        dataset: The samples.
        indices: Positions of the images in the index; may be empty.
        epoch: Number of the epoch.
        mosaic: Whether mosaic, mixup and pasted objects are allowed.

    Returns:
        The batch.
    """
    images = _empty_images(len(indices), size=dataset.image_size)
    samples = [
        dataset.sample(i, epoch=epoch, mosaic=mosaic, out=image)
        for i, image in zip(indices, images.numpy(), strict=True)
    ]
    return collate(samples, images, indices=indices)


def collate(samples: Sequence[Sample], images: Tensor, *, indices: Sequence[int]) -> Batch:
    """Combine samples into a batch.

    Args:
        samples: The samples (B), for their objects.
        images: Their images (B, S, S, 3), uint8 RGB.
        indices: Positions of the images in the index (B).

    Returns:
        The batch, with images (B, 3, S, S) in the memory format channels_last.
    """
    counts = [len(sample.labels) for sample in samples]
    targets = Targets(
        image=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        label=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in samples)])),
        boxes_cxcywh=torch.from_numpy(
            np.concatenate([np.zeros((0, 4), np.float32), *(sample.boxes_cxcywh for sample in samples)])
        ),
    )
    return Batch(images.permute(0, 3, 1, 2), targets, tuple(indices))


def _empty_images(count: int, *, size: int) -> Tensor:
    """Return a tensor for images (B, S, S, 3), uint8, in shared memory if this is a worker process.

    A worker would otherwise copy each batch to shared memory when it is complete.
    """
    if get_worker_info() is None or not count:
        return torch.empty(count, size, size, 3, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(count * size * size * 3, device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(count, size, size, 3)


class _TrainBatches(Dataset[Batch]):
    def __init__(self, dataset: DetectionDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: BatchKey) -> Batch:
        return make_batch(self._dataset, key.indices, epoch=key.epoch, mosaic=key.mosaic)


class _ValBatches(Dataset[ValBatch]):
    def __init__(self, dataset: DetectionDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: BatchKey) -> ValBatch:
        images = _empty_images(len(key.indices), size=self._dataset.image_size)
        pairs = zip(key.indices, images.numpy(), strict=True)
        geometry = tuple(self._dataset.letterboxed(i, out=image)[1] for i, image in pairs)
        return ValBatch(images.permute(0, 3, 1, 2), key.indices, geometry)


class _Keys(Sampler[BatchKey]):
    """The keys of the next epoch; as the main process samples them, persistent workers need not know the epoch."""

    def __init__(self, keys: Sequence[BatchKey] = ()) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def _make_loader(batches: Dataset[Any], keys: _Keys, num_workers: int, *, persistent: bool) -> DataLoader[Any]:
    """Return a loader whose forked workers share the cached images with this process; without fork it has none."""
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
        persistent_workers=persistent and workers > 0,
    )


def _passed_on(batches: Iterator[Content]) -> Iterator[Content]:
    """Yield batches, and reduce the text of a user error from a worker process to the message of the error."""
    try:
        yield from batches
    except UserError as error:
        error.args = (told(error),)
        raise


def _begin_worker(_: int) -> None:
    """Use one thread, leave interrupts to the main process, and end together with it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
