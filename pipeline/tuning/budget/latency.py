"""Latency of models before any training; it depends only on their structure."""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Sequence

import torch

from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import spec_from_json
from yolov7.system.timing import Rounds, measure_interleaved, summarise

_ROUNDS = Rounds(count=5, seconds=0.1, warmup_seconds=0.1)


def measure_latency(models: Sequence[tuple[str, int]], *, num_classes: int, threads: int, cuda: bool) -> list[float]:
    """Measure the latency of deployed models with random weights at batch 1, without suppression.

    The models are measured in interleaved rounds, so that a slow moment of the machine affects all of them.

    Args:
        models: Each model's spec as JSON and its image size in pixels.
        num_classes: The number of classes that the models detect.
        threads: The number of CPU threads.
        cuda: Whether to measure on the GPU.

    Returns:
        The median milliseconds of each model.
    """
    torch.set_num_threads(threads)
    device = torch.device("cuda" if cuda else "cpu")
    subjects = [_Subject(spec_json, size, num_classes=num_classes, device=device) for spec_json, size in models]
    samples = measure_interleaved(subjects, rounds=_ROUNDS, generator=random.Random(0))
    return [summarise(row).p50_ms for row in samples]


def device_name(*, cuda: bool, threads: int) -> str:
    """Return the name of the device that a latency was measured on."""
    return torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {threads} threads"


class _Subject:
    """A model whose call processes one image and returns the seconds it took."""

    def __init__(self, spec_json: str, image_size: int, *, num_classes: int, device: torch.device) -> None:
        self._model = fuse(DetectionModel(spec_from_json(spec_json), num_classes=num_classes).eval()).to(device)
        self._image = torch.zeros(1, 3, image_size, image_size, device=device)

    @torch.inference_mode()
    def __call__(self) -> float:
        began = time.perf_counter()
        self._model(self._image)
        if self._image.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began
