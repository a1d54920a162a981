"""Compare suppression with the common loop, class by class and box by box."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tests.bench.comparison import Row, Stopwatch
from yolov7.boxes import pairwise_iou
from yolov7.inference.nms import _round_as_reference, suppress

CASES = (  # candidates, classes, objects, limit; the first has confidence 0.001 and several labels per box
    (30_000, 80, 40, 300),
    (30_000, 80, 40, 30_000),
    (30_000, 1, 3, 300),
    (3_000, 20, 30, 300),
    (300, 8, 20, 300),
)


def example(count: int, *, classes: int, clusters: int, size: float = 640.0) -> tuple[Tensor, Tensor]:
    """Return boxes around some objects by descending score, as a detector with a low confidence finds them."""
    random = torch.Generator().manual_seed(0)
    centres = torch.rand(clusters, 2, generator=random) * size
    sides = 20 + 150 * torch.rand(clusters, 2, generator=random)
    which = torch.randint(clusters, (count,), generator=random)
    centre = centres[which] + 15 * torch.randn(count, 2, generator=random)
    side = sides[which] * torch.exp(0.3 * torch.randn(count, 2, generator=random))
    return torch.cat((centre - side / 2, centre + side / 2), dim=1), torch.randint(classes, (count,), generator=random)


def class_by_class(boxes: Tensor, groups: Tensor, *, threshold: float, limit: int) -> Tensor:
    """Suppress with the common loop: keep the best box of a class, remove what it overlaps, and repeat."""
    kept = []
    for group in groups.unique():
        rest = (groups == group).nonzero()[:, 0]
        while len(rest):
            kept.append(rest[:1])
            iou = pairwise_iou(boxes[rest[:1]], boxes[rest[1:]])[0]
            rest = rest[1:][iou <= threshold]
    return torch.cat(kept).sort().values[:limit]


def rows(watch: Stopwatch) -> Iterator[Row]:
    """Compare suppression class by class with suppression in blocks; results must be equal."""
    for count, classes, clusters, limit in CASES:
        boxes, groups = example(count, classes=classes, clusters=clusters)
        loop = partial(class_by_class, _round_as_reference(boxes, groups), groups, threshold=0.65, limit=limit)
        ours = partial(suppress, boxes, groups=groups, threshold=0.65, limit=limit)
        assert torch.equal(loop(), ours())
        name = f"suppression: {count} candidates, {classes} classes, {clusters} objects, limit {limit}"
        yield watch.at_most(3).compare(name, loop, ours)
