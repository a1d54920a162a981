"""A training step: what `precision: auto` and channels_last give over float32 contiguous, and the loss's share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
from yolov7.structures import Batch, HeadMaps, Targets
from yolov7.system.memory import keep_memory
from yolov7.system.precision import autocast, precision_name, resolve_precision
from yolov7.training.ema import Ema

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
        batch: int = BATCH,
        size: int = SIZE,
        auxiliary: bool = False,
        settings: LossSettings = LossSettings(),  # noqa: B008  # frozen
    ) -> None:
        torch.manual_seed(0)
        order = torch.channels_last if channels_last else torch.contiguous_format
        spec = load_spec("yolov7-tiny")
        model = DetectionModel(with_auxiliary(spec) if auxiliary else spec, num_classes=CLASSES)
        self.model = model.to(memory_format=order)
        self.runner: nn.Module = torch.compile(self.model) if compiled else self.model
        self.images = torch.rand(batch, 3, size, size).contiguous(memory_format=order)
        self.targets = targets_of_a_batch(batch)
        self.dtype = dtype
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)
        self.loss = DetectionLoss(
            anchors_px=self.model.anchors_px,
            strides=self.model.strides,
            num_classes=CLASSES,
            image_size=size,
            settings=settings,
        )

    def __call__(self) -> None:
        with autocast(self.dtype, CPU):
            maps = HeadMaps(*self.runner(self.images))
        self.loss(maps, self.targets).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def take(self, batch: Batch) -> None:
        """Train one step on a batch of a loader."""
        self.images, self.targets = batch.images.float().div_(255), batch.targets
        self()

    @torch.no_grad()
    def maps(self) -> HeadMaps:
        """The head's maps as leaves."""
        with autocast(self.dtype, CPU):
            maps = self.runner(self.images)
        return HeadMaps(tuple(m.clone().requires_grad_() for m in maps.lead))


def targets_of_a_batch(batch: int = BATCH) -> Targets:
    """A few objects an image."""
    return random_targets(batch=batch, objects=OBJECTS, classes=CLASSES, random=torch.Generator().manual_seed(0))


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


def parts(watch: Stopwatch) -> Iterator[Row]:
    """Compare the parts of a step that touch every weight with loops over the tensors, for the weights of YOLOv7."""
    model = DetectionModel(load_spec("yolov7"), num_classes=CLASSES)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    arguments = {"lr": 1e-6, "momentum": 0.9, "nesterov": True}
    loop, fused = (
        torch.optim.SGD(model.parameters(), **arguments, **kind) for kind in ({"foreach": False}, {"fused": True})
    )
    yield watch.compare("SGD of yolov7: a loop over its tensors, fused", loop.step, fused.step)
    ema = Ema(model, decay=0.9999, ramp=2000)
    average = [*ema.model.state_dict().values()]
    plain = partial(_average_by_tensor, average, [*model.state_dict().values()])
    yield watch.compare("moving average of yolov7: a loop over its tensors, foreach", plain, partial(ema.update, model))


@torch.no_grad()
def _average_by_tensor(average: list[Tensor], values: list[Tensor]) -> None:
    for mean, value in zip(average, values, strict=True):
        if mean.is_floating_point():
            mean.mul_(0.999).add_(0.001 * value)


def compiled(watch: Stopwatch) -> Iterator[Row]:
    """Compare a compiled step with the plain one and the uncompiled one; say after how many steps compilation pays."""
    dtype = resolve_precision("auto", CPU)
    plain, ours = Step(dtype=torch.float32, channels_last=False), Step(dtype=dtype, channels_last=True)
    compiled_step = Step(dtype=dtype, channels_last=True, compiled=True)
    name = f"training step: yolov7-tiny, {SIZE} px, batch {BATCH}, channels_last"
    start = watch.once(compiled_step) + watch.once(compiled_step)
    watch = watch.at_most(3)
    yield watch.compare(f"{name}, compiled", plain, compiled_step)
    row = watch.compare(f"{name}, not compiled, compiled", ours, compiled_step)
    assert row.plain
    assert row.ours
    gain = row.plain - row.ours
    pays = f"pays after {start / gain:.0f} steps" if gain > 0 else "never pays"
    yield replace(row, figure=f"compilation takes {start:.0f} s and {pays}")


def _loss_step(step: Step, maps: HeadMaps) -> tuple[Tensor, ...]:
    return torch.autograd.grad(step.loss(maps, step.targets).total, maps.lead)
