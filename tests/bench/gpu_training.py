"""The training steps of the benchmark of a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.bench.bench_loss import random_targets
from tests.bench.comparison import Row
from tests.bench.gpu_setup import CLASSES, OBJECTS, Setup, describe_peak, forget_peak, load
from yolov7.criterion.loss import DetectionLoss
from yolov7.nn.model import DetectionModel
from yolov7.settings import LossSettings, OptimSettings
from yolov7.spec.auxiliary import with_auxiliary
from yolov7.spec.graph import ModelSpec
from yolov7.structures import Batch, HeadMaps, Targets
from yolov7.system.precision import precision_name
from yolov7.training.ema import Ema
from yolov7.training.optim import build_optimizer, build_schedule

Wrap = Callable[[nn.Module, Tensor], nn.Module]


class Way(NamedTuple):
    """How a training step is computed: the type of numbers, the memory format, and the wrapper of the model."""

    name: str
    dtype: torch.dtype
    order: torch.memory_format = torch.channels_last
    wrap: Wrap = lambda model, _: model
    tunes_convolutions: bool = False


class TrainingStep:
    """A step as the training loop takes it: forward and backward pass, loss, check of the gradient, SGD, average."""

    def __init__(self, setup: Setup, spec: ModelSpec, way: Way, *, batch: int, size: int) -> None:
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = way.tunes_convolutions
        device, self._way, self._device = setup.device, way, setup.device
        self._model = DetectionModel(spec, num_classes=CLASSES).to(device, memory_format=way.order)  # type: ignore[call-overload]
        self._images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
        self._images = self._images.contiguous(memory_format=way.order)
        self._targets = targets_of(batch).to(device)
        self._loss = DetectionLoss(
            anchors_px=self._model.anchors_px,
            strides=self._model.strides,
            num_classes=CLASSES,
            image_size=size,
            settings=LossSettings(),
        )
        settings = OptimSettings()
        schedule = build_schedule(settings, batch_size=batch, steps_per_epoch=1000, epochs=10)
        self._optimizer = build_optimizer(self._model, settings, schedule=schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = 1e-5
        self._ema = Ema(self._model, decay=settings.ema_decay, ramp=settings.ema_ramp)
        self._runner = way.wrap(self._model, self._scaled())

    def __call__(self) -> None:
        self.forward_and_backward()
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        assert torch.isfinite(nn.utils.get_total_norm(gradients))
        self._optimizer.step()
        self._ema.update(self._model)
        self._optimizer.zero_grad()

    def take(self, batch: Batch) -> None:
        """Train one step on a batch of a loader."""
        self._images = batch.images.to(self._device, non_blocking=True)
        self._targets = batch.targets.to(self._device)
        self()

    def forward_and_backward(self) -> Tensor:
        """Add the gradients of a step; return the total loss."""
        with torch.autocast(self._device.type, self._way.dtype, self._way.dtype != torch.float32, cache_enabled=False):
            maps = HeadMaps(*self._runner(self._scaled()))
        total = self._loss(maps, self._targets).total
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    def gradients(self) -> list[Tensor]:
        """Return the gradients of one step, on the CPU."""
        self._optimizer.zero_grad()
        self.forward_and_backward()
        return [p.grad.float().cpu() for p in self._model.parameters() if p.grad is not None]

    def _scaled(self) -> Tensor:
        return self._images.float().div_(255)


def targets_of(batch: int) -> Targets:
    """Return a few objects for each image."""
    return random_targets(batch=batch, objects=OBJECTS, classes=CLASSES, random=torch.Generator().manual_seed(0))


class Graphed(nn.Module):
    """A model whose forward and backward passes are CUDA graphs; loss and optimizer run outside of them."""

    def __init__(self, model: nn.Module, images: Tensor, *, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.autocast("cuda", dtype, dtype != torch.float32, cache_enabled=False):
            self._run = torch.cuda.make_graphed_callables(_FlatMaps(model), (images,))
        self._levels = len(model.strides)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> HeadMaps:
        maps = self._run(images)
        return HeadMaps(maps[: self._levels], maps[self._levels :])


class _FlatMaps(nn.Module):
    """A model that returns the maps of both heads in one tuple, as CUDA graphs need it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self._model(images)
        return (*maps.lead, *maps.auxiliary)


def small_steps(setup: Setup) -> Iterator[Row]:
    """Compare the ways to compute a training step with the small batch."""
    half = setup.dtype
    ways = [
        Way("contiguous", torch.float32, torch.contiguous_format),
        Way("contiguous", half, torch.contiguous_format),
        Way("channels_last", half),
        Way("channels_last, cudnn.benchmark", half, tunes_convolutions=True),
    ]
    different = list(dict.fromkeys(ways)) if setup.has_gpu else ways[1:3]
    yield from _steps(setup, setup.spec, different, batch=setup.batches[0], size=setup.size)


def large_steps(setup: Setup) -> Iterator[Row]:
    """Compare the ways to compute a training step with the large batch."""
    ways = [Way("contiguous", setup.dtype, torch.contiguous_format), Way("channels_last", setup.dtype)]
    yield from _steps(setup, setup.spec, ways, batch=setup.batches[1], size=setup.size)


def wide_steps(setup: Setup) -> Iterator[Row]:
    """Measure training steps of a model with an auxiliary head."""
    for batch, size in setup.wide_sizes:
        yield from _steps(setup, setup.wide, [Way("channels_last", setup.dtype)], batch=batch, size=size)


def graph_steps(setup: Setup) -> Iterator[Row]:
    """Compare a training step with one whose model is a CUDA graph."""
    if not setup.has_gpu:
        yield Row("training step with CUDA graphs", figure="needs a GPU")
        return
    graphed: Wrap = partial(Graphed, dtype=setup.dtype)
    ways = [Way("channels_last", setup.dtype), Way("channels_last, CUDA graphs", setup.dtype, wrap=graphed)]
    for batch in setup.batches:
        yield from _steps(setup, setup.spec, ways, batch=batch, size=setup.size)


def compiled_steps(setup: Setup) -> Iterator[Row]:
    """Compare a training step with a compiled one; say after how many steps compilation has paid."""
    batch, size = setup.batches[0], setup.size
    plain = TrainingStep(setup, load(setup.spec), Way("channels_last", setup.dtype), batch=batch, size=size)
    way = Way("compiled", setup.dtype, wrap=lambda model, _: torch.compile(model))  # type: ignore[return-value]
    step = TrainingStep(setup, load(setup.spec), way, batch=batch, size=size)
    began = time.perf_counter()
    step()
    step()
    start = time.perf_counter() - began
    row = setup.watch.compare(f"{_name(setup.spec, batch, size)}: channels_last, compiled", plain, step)
    assert row.plain
    assert row.ours
    gain = row.plain - row.ours
    pays = f"pays after {start / gain:.0f} steps" if gain > 0 else "never pays"
    yield replace(row, figure=f"{batch / row.ours:.0f} images/s; compilation takes {start:.0f} s and {pays}")


def one_rank(setup: Setup) -> Iterator[Row]:
    """Compare a training step with one of DistributedDataParallel in a group of one process."""
    backend = "nccl" if setup.has_gpu else "gloo"
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)

    def wrap(model: nn.Module, _: Tensor) -> nn.Module:
        return DistributedDataParallel(model, device_ids=[0] if setup.has_gpu else None)

    ways = [Way("alone", setup.dtype), Way(f"one rank of {backend}", setup.dtype, wrap=wrap)]
    yield from _steps(setup, setup.spec, ways, batch=setup.batches[0], size=setup.size)
    dist.destroy_process_group()


def _steps(setup: Setup, spec: str, ways: list[Way], *, batch: int, size: int) -> Iterator[Row]:
    """Measure each way, compared with the first one that fits into memory; say how much memory it takes."""
    plain = None
    spec_of_steps = load(spec)
    if setup.wide == spec and spec_of_steps.head.auxiliary is None:
        spec_of_steps = with_auxiliary(spec_of_steps)
    for way in ways:
        name = f"{_name(spec, batch, size)}: {way.name}, {precision_name(way.dtype)}"
        forget_peak(setup)
        try:
            seconds = setup.watch.seconds(TrainingStep(setup, spec_of_steps, way, batch=batch, size=size))
        except torch.OutOfMemoryError:
            yield Row(name, figure="out of memory")
            continue
        plain = plain or seconds
        yield Row(name, plain, seconds, f"{batch / seconds:.0f} images/s{describe_peak(setup)}")


def _name(spec: str, batch: int, size: int) -> str:
    return f"training step: {spec}, {size} px, batch {batch}"
