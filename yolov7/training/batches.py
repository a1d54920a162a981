"""The batches of a training run."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import ImageIndex
from yolov7.data.loader import TrainLoader, ValLoader
from yolov7.structures import Batch
from yolov7.training.job import TrainJob
from yolov7.training.state import Progress
from yolov7.training.worker import Worker

_IMAGES_FOR_STATISTICS = 1024
_BATCH_FOR_STATISTICS = 16


def build_loader(job: TrainJob, worker: Worker, index: ImageIndex) -> TrainLoader:
    """Build the loader of this worker's share of every batch.

    Args:
        job: The run.
        worker: This process.
        index: The training split.

    Returns:
        The loader.
    """
    settings = job.settings
    dataset = DetectionDataset(
        index,
        image_size=settings.image_size,
        augment=settings.augment,
        seed=job.seed,
        cache=settings.cache_images,
        cache_folder=job.run_folder.parents[1] / ".cache",  # shared by all runs of all variants
        processes=worker.processes_on_machine,
        gather=worker.gather,
    )
    return TrainLoader(
        dataset,
        batch_size=settings.batch_size,
        seed=job.seed,
        balance=settings.class_balance,
        num_workers=worker.loader_workers,
        rank=worker.rank,
        world_size=worker.world_size,
    )


def timed_batches(loader: TrainLoader, progress: Progress, *, mosaic: bool) -> Iterator[Batch]:
    """Yield the rest of the current epoch's batches, and count the time that training waits for them.

    Args:
        loader: The loader of the run.
        progress: How far the run is.
        mosaic: Whether mosaic, mixup and pasted objects are allowed.

    Yields:
        This worker's share of each step.
    """
    batches = loader.epoch(progress.epoch, mosaic=mosaic, start=progress.batch)
    while True:
        asked = time.monotonic()
        batch = next(batches, None)
        progress.wait += time.monotonic() - asked
        if batch is None:
            return
        yield batch


def statistics_batches(index: ImageIndex, *, image_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield training images without augmentation, from which statistics of batch norm are computed.

    Args:
        index: The training split.
        image_size: The side of the square images, in pixels.
        device: The device of the images.

    Yields:
        Batches (B, 3, S, S) in 0..1, spread over the split and all of the same size.
    """
    step = max(1, len(index) // _IMAGES_FOR_STATISTICS)
    batch_size = min(_BATCH_FOR_STATISTICS, len(index))
    for batch in ValLoader(index, image_size=image_size, batch_size=batch_size, every=step):
        if len(batch.images) == batch_size:
            yield batch.images.to(device).float() / 255
