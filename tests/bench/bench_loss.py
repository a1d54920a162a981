"""Compare the batched assigner and loss with the common loop over images, and measure their memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.comparison import Row, Stopwatch
from tests.bench.plain_loss import loop_ota, plain_loss
from yolov7.criterion.assigners import OtaAssigner
from yolov7.criterion.candidates import Anchors
from yolov7.criterion.loss import DetectionLoss
from yolov7.settings import LossSettings
from yolov7.structures import HeadMaps, Targets

STRIDES = (8, 16, 32)
ANCHORS = torch.tensor(
    [
        [[12, 16], [19, 36], [40, 28]],
        [[36, 75], [76, 55], [72, 146]],
        [[142, 110], [192, 243], [459, 401]],
    ],
    dtype=torch.float32,
)
MIB = 1 << 20


def example(*, batch: int, objects: int, size: int, classes: int, seed: int = 0) -> tuple[HeadMaps, Targets]:
    """Return random maps, and objects of all sizes."""
    random = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, 3, size // s, size // s, 5 + classes, generator=random) - 2 for s in STRIDES]
    leaves = tuple(m.requires_grad_() for m in maps)
    return HeadMaps(leaves), random_targets(batch=batch, objects=objects, classes=classes, random=random)


def random_targets(*, batch: int, objects: int, classes: int, random: torch.Generator) -> Targets:
    """Return the same number of objects of all sizes for every image."""
    count = batch * objects
    image = torch.arange(batch).repeat_interleave(objects)
    centre = torch.rand(count, 2, generator=random)
    sides = torch.exp(torch.rand(count, 2, generator=random) * 3 - 4)
    labels = torch.randint(classes, (count,), generator=random)
    return Targets(image, labels, torch.cat((centre, sides), dim=1))


def rows(watch: Stopwatch) -> Iterator[Row]:
    """Compare the loop over images with the batched form; both must agree."""
    for batch, objects, size, classes in ((16, 50, 640, 80), (16, 8, 320, 8)):
        maps, targets = example(batch=batch, objects=objects, size=size, classes=classes)
        name = f"batch {batch}, {objects} objects, {size} px, {classes} classes"
        detached = [m.detach() for m in maps.lead]
        batched = OtaAssigner(Anchors(ANCHORS, STRIDES), threshold=4.0, merge_duplicates=False)
        loop = partial(loop_ota, detached, targets, anchors_px=ANCHORS, strides=STRIDES)
        yield watch.compare(f"assigner: {name}", loop, partial(batched, detached, targets))
        plain, ours = partial(_plain_step, maps, targets), partial(_step, maps, targets, classes)
        for one, other in zip(plain(), ours(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        yield watch.compare(f"assigner, loss and gradient: {name}", plain, ours)


def memory(_: Stopwatch) -> Iterator[Row]:
    """Measure the peak memory above that of the maps, with the gradient, in a separate process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_report_memory, args=(there,))
    process.start()
    extra, maps = here.recv()
    process.join()
    figure = f"{extra / MIB:.0f} MiB above the maps' {maps / MIB:.0f}"
    yield Row("loss and gradient, peak memory: batch 16, 500 objects, 640 px, 80 classes", figure=figure)


def _report_memory(connection: Connection) -> None:
    torch.set_num_threads(1)
    small, few = example(batch=1, objects=2, size=64, classes=80)
    _step(small, few, 80)  # the first call loads libraries
    maps, targets = example(batch=16, objects=500, size=640, classes=80)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    _step(maps, targets, 80)
    connection.send((_resident("VmHWM") - before, sum(m.nbytes for m in maps.lead)))


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _plain_step(maps: HeadMaps, targets: Targets) -> list[Tensor]:
    total = plain_loss(maps.lead, targets, anchors_px=ANCHORS, strides=STRIDES)
    return list(torch.autograd.grad(total, maps.lead))


def _step(maps: HeadMaps, targets: Targets, classes: int) -> list[Tensor]:
    loss = DetectionLoss(
        anchors_px=ANCHORS,
        strides=STRIDES,
        num_classes=classes,
        image_size=maps.lead[0].shape[2] * STRIDES[0],
        settings=LossSettings(merge_duplicate_cells=False),
    )
    return list(torch.autograd.grad(loss(maps, targets).total, maps.lead))
