"""What the benchmark of a GPU measures on a machine, the specifications that it uses, and its clock and memory."""

from __future__ import annotations

import gc
import json
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tests.bench.comparison import Stopwatch
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import spec_from_json

SPECS = Path(__file__).with_name("specs.json")  # the packaged specifications as JSON, because yaml may be missing
CLASSES, OBJECTS = 80, 8


@dataclass(frozen=True)
class Setup:
    """What is measured on a machine.

    Attributes:
        device: Where the models run.
        spec: The name of the model whose training is measured.
        larger: The name of the model whose inference is compared with it.
        wide: The name of the model that is trained with an auxiliary head.
        size: Side of the images, pixels.
        wide_sizes: Batch and side of the images of `wide`.
        batches: Images of a training step.
        repeats: How often a step is measured; inference ten times as often.
        dtype: The floating-point type of training.
    """

    device: torch.device
    spec: str
    larger: str
    wide: str
    size: int
    wide_sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, int]
    repeats: int
    dtype: torch.dtype

    @property
    def watch(self) -> Stopwatch:
        """A stopwatch that waits for the device."""
        return Stopwatch(self.repeats, partial(now, self.device))

    @property
    def has_gpu(self) -> bool:
        """Whether this is the setup of a GPU."""
        return self.device.type == "cuda"


def find_setup() -> Setup:
    """Return the setup of the GPU of this machine, or tiny sizes for the CPU."""
    if not torch.cuda.is_available():
        cpu, sizes = torch.device("cpu"), ((2, 64),)
        return Setup(cpu, "nano", "nano", "nano", 64, sizes, (2, 4), 1, torch.float32)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    sizes = ((16, 1280), (64, 640))
    return Setup(torch.device("cuda"), "yolov7", "yolov7x", "yolov7-w6", 640, sizes, (16, 64), 10, dtype)


def describe(setup: Setup) -> dict[str, object]:
    """Return the facts about the device that a table needs."""
    facts: dict[str, object] = {"torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
    if not setup.has_gpu:
        return {"device": "CPU at tiny sizes: these figures say nothing about a GPU", **facts}
    properties = torch.cuda.get_device_properties(setup.device)
    return {
        "device": properties.name,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **facts,
    }


def load(name: str) -> ModelSpec:
    """Return a packaged specification."""
    return spec_from_json(json.dumps(json.loads(SPECS.read_text(encoding="utf-8"))[name]))


def now(device: torch.device) -> float:
    """Return the time in seconds when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forget_peak(setup: Setup) -> None:
    """Free unused memory, and measure the peak from now on."""
    if setup.has_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)


def describe_peak(setup: Setup) -> str:
    """Return the peak of the memory as the end of a sentence; an empty text on the CPU."""
    if not setup.has_gpu:
        return ""
    return f", peak memory {torch.cuda.max_memory_allocated(setup.device) / 2**30:.1f} GiB"
