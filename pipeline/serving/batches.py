"""Collect images of concurrent requests into batches, and run the batches.

Nothing waits for a batch to become full: a replica that is free takes the images that have arrived by then. A single
request is therefore answered as soon as possible, and batches grow with the load.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import torch

from yolov7.data.augment.letterbox import Letterbox
from yolov7.data.images import Image
from yolov7.inference.batch import detect_batch
from yolov7.inference.engine import Engine
from yolov7.settings import NmsSettings
from yolov7.structures import Detections

log = logging.getLogger(__name__)

_GRACE_SECONDS = 10.0  # for a batch that is running when the service is closed


@dataclass(frozen=True)
class _Job:
    """An image that waits, and where its detections go.

    Attributes:
        pixels: The letterboxed image (S, S, 3) uint8 RGB.
        geometry: How the image was letterboxed.
        nms: Thresholds and limits.
        found: Receives the detections.
    """

    pixels: Image
    geometry: Letterbox
    nms: NmsSettings
    found: Future[Detections] = field(default_factory=Future)


class BatchRunner:
    """Run one model or several copies of it, each in a thread of its own, on whatever images are waiting."""

    def __init__(self, engines: Sequence[Engine], *, max_batch: int) -> None:
        """Start the threads.

        Args:
            engines: The copies of the model.
            max_batch: Largest number of images in a batch.
        """
        self._max_batch = max_batch
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self.is_failing = False
        """Whether the last batch failed because of an error that no image can cause."""
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name=f"replica {i}", daemon=True)
            for i, engine in enumerate(engines)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, pixels: Image, geometry: Letterbox, *, nms: NmsSettings) -> Future[Detections]:
        """Add an image to the queue.

        Args:
            pixels: The letterboxed image (S, S, 3) uint8 RGB.
            geometry: How the image was letterboxed.
            nms: Thresholds and limits.

        Returns:
            Its detections, in pixels of the original image.
        """
        job = _Job(pixels, geometry, nms)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.found

    def close(self) -> None:
        """Drop the images that are waiting, and end the threads after the batches that are running."""
        with self._changed:
            self._is_closed = True
            while self._waiting:
                self._waiting.pop().found.cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_GRACE_SECONDS)

    def _work(self, engine: Engine) -> None:
        while batch := self._take():
            jobs = [job for job in batch if job.found.set_running_or_notify_cancel()]
            if not jobs:
                continue
            try:
                images = torch.from_numpy(np.stack([job.pixels for job in jobs])).permute(0, 3, 1, 2)  # B 3 S S
                results = detect_batch(engine, images, [job.geometry for job in jobs], nms=jobs[0].nms)
            except Exception as error:
                log.exception("A batch of %d images failed", len(jobs))
                self.is_failing = True
                for job in jobs:
                    job.found.set_exception(error)
            else:
                self.is_failing = False
                for job, found in zip(jobs, results, strict=True):
                    job.found.set_result(found)

    def _take(self) -> list[_Job]:
        """Wait for images with the same thresholds; return an empty list when the runner is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            first = self._waiting[0].nms if self._waiting else None
            batch = list(takewhile(lambda job: job.nms == first, list(self._waiting)[: self._max_batch]))
            for _ in batch:
                self._waiting.popleft()
            return batch
