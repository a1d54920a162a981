"""Assigner and loss, batched over images, against the usual loop over images."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tests.bench.comparison import Comparison, best_seconds
from tests.bench.loop_assigner import loop_ota
from yolov7.assign import Anchors, Assigner, OtaAssigner
from yolov7.loss import DetectionLoss
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


class LoopAssigner(Assigner):
    """The usual form: image by image, every object's class cost over all classes."""

    def __call__(self, maps, targets):  # type: ignore[no-untyped-def]
        return loop_ota(maps, targets, anchors_px=ANCHORS, strides=STRIDES)


def example(*, batch: int, objects: int, size: int, classes: int, seed: int = 0) -> tuple[HeadMaps, Targets]:
    """Random maps and objects of all sizes."""
    random = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, 3, size // s, size // s, 5 + classes, generator=random) - 2 for s in STRIDES]
    count = batch * objects
    image = torch.arange(batch).repeat_interleave(objects)
    centre = torch.rand(count, 2, generator=random)
    sides = torch.exp(torch.rand(count, 2, generator=random) * 3 - 4)
    labels = torch.randint(classes, (count,), generator=random)
    leaves = tuple(m.requires_grad_() for m in maps)
    return HeadMaps(leaves), Targets(image, labels, torch.cat((centre, sides), dim=1))


def rows(*, repeats: int = 5) -> list[Comparison]:
    """Image by image beside batched."""
    result = []
    for batch, objects, size, classes in ((16, 50, 640, 80), (16, 8, 320, 8), (64, 8, 320, 8)):
        maps, targets = example(batch=batch, objects=objects, size=size, classes=classes)
        name = f"batch {batch}, {objects} objects, {size} px, {classes} classes"
        detached = [m.detach() for m in maps.lead]
        batched = OtaAssigner(Anchors(ANCHORS, STRIDES), threshold=4.0, merge_duplicates=False)
        forms = {
            "assigner": (partial(LoopAssigner(), detached, targets), partial(batched, detached, targets)),
            "loss and gradient": (
                partial(_step, maps, targets, classes, LoopAssigner()),
                partial(_step, maps, targets, classes, None),
            ),
        }
        for what, (loop, ours) in forms.items():
            slow, fast = best_seconds(loop, repeats=repeats), best_seconds(ours, repeats=repeats)
            result.append(Comparison(f"{what}: {name}", slow, fast))
    return result


def _step(maps: HeadMaps, targets: Targets, classes: int, assigner: Assigner | None) -> list[Tensor]:
    loss = DetectionLoss(
        anchors_px=ANCHORS,
        strides=STRIDES,
        num_classes=classes,
        image_size=maps.lead[0].shape[2] * STRIDES[0],
        settings=LossSettings(merge_duplicate_cells=False),
        assigner=assigner,
    )
    return list(torch.autograd.grad(loss(maps, targets).total, maps.lead))
