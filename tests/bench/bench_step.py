"""A training step: what `precision: auto` and channels_last give over float32 contiguous, and the loss's share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from tests.bench.bench_loss import random_targets
from tests.bench.comparison import Row, Stopwatch
from yolov7.criterion.loss import DetectionLoss
from yolov7.nn.model import DetectionModel
from yolov7.settings import LossSettings
from yolov7.spec.auxiliary import with_auxiliary
from yolov7.spec.spec_files import load_spec
from yolov7.structures import HeadMaps, Targets
from yolov7.system.memory import keep_memory
from yolov7.system.precision import autocast, precision_name, resolve_precision

BATCH, SIZE, CLASSES, OBJECTS = 16, 320, 80, 8
CPU = torch.device("cpu")


class Step:
    """Model, loss and optimizer in one setting; calling it trains one step."""

    def __init__(
        self,
        *,
        dtype: torch.dtype,
        channels_last: bool,
        compiled: bool = False,
        auxiliary: bool = False,
        settings: LossSettings = LossSettings(),  # noqa: B008  # frozen
    ) -> None:
        torch.manual_seed(0)
        order = torch.channels_last if channels_last else torch.contiguous_format
        spec = load_spec("yolov7-tiny")
        model = DetectionModel(with_auxiliary(spec) if auxiliary else spec, num_classes=CLASSES)
        self.model = model.to(memory_format=order)
        self.runner: nn.Module = torch.compile(self.model) if compiled else self.model
        self.images = torch.rand(BATCH, 3, SIZE, SIZE).contiguous(memory_format=order)
        self.targets = targets_of_a_batch()
        self.dtype = dtype
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
        self.loss = DetectionLoss(
            anchors_px=self.model.anchors_px,
            strides=self.model.strides,
            num_classes=CLASSES,
            image_size=SIZE,
            settings=settings,
        )

    def __call__(self) -> None:
        with autocast(self.dtype, CPU):
            maps = HeadMaps(*self.runner(self.images))
        self.loss(maps, self.targets).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def maps(self) -> HeadMaps:
        """The head's maps as leaves."""
        with autocast(self.dtype, CPU):
            maps = self.runner(self.images)
        return HeadMaps(tuple(m.clone().requires_grad_() for m in maps.lead))


def targets_of_a_batch() -> Targets:
    """A few objects an image."""
    return random_targets(batch=BATCH, objects=OBJECTS, classes=CLASSES, random=torch.Generator().manual_seed(0))


def rows(watch: Stopwatch) -> Iterator[Row]:
    """The setting that training takes here beside the plain one; memory that is kept; the loss's part of it."""
    watch = watch.at_most(3)
    dtype = resolve_precision("auto", CPU)
    plain, ours = Step(dtype=torch.float32, channels_last=False), Step(dtype=dtype, channels_last=True)
    name = f"training step: yolov7-tiny, {SIZE} px, batch {BATCH}"
    has_amx = torch.cpu._is_amx_tile_supported()
    chosen = f"precision auto is {precision_name(dtype)} here" + ("" if has_amx else ", without AMX")
    beside = watch.compare(f"{name}, channels_last", plain, ours, figure=chosen)
    yield beside
    keep_memory()
    kept = watch.seconds(ours)
    yield Row(f"{name}, channels_last, memory kept", beside.plain, kept)
    loss = watch.seconds(partial(_loss_step, ours, ours.maps()))
    yield Row("assigner and loss with gradients, share of that step", figure=f"{loss / kept:.1%} ({loss * 1e3:.0f} ms)")


def compiled(watch: Stopwatch) -> Iterator[Row]:
    """The same step compiled; building it takes minutes."""
    dtype = resolve_precision("auto", CPU)
    plain = Step(dtype=torch.float32, channels_last=False)
    ours = Step(dtype=dtype, channels_last=True, compiled=True)
    name = f"training step: yolov7-tiny, {SIZE} px, batch {BATCH}, channels_last, compiled"
    yield watch.at_most(3).compare(name, plain, ours)


def _loss_step(step: Step, maps: HeadMaps) -> tuple[Tensor, ...]:
    return torch.autograd.grad(step.loss(maps, step.targets).total, maps.lead)
