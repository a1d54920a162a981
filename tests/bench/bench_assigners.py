"""Compare SimOTA and task-aligned assignment with the common loop over images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tests.bench.bench_loss import STRIDES, random_targets
from tests.bench.comparison import Row, Stopwatch
from tests.bench.plain_assigners import Positive, loop_simota, loop_tal
from yolov7.criterion.aligned import TaskAlignedAssigner
from yolov7.criterion.candidates import Assignment
from yolov7.criterion.simota import SimOtaAssigner
from yolov7.structures import Targets

BATCH, OBJECTS, SIZE, CLASSES = 16, 50, 640, 80


def rows(watch: Stopwatch) -> Iterator[Row]:
    """Compare both assigners with their loops; the positives must be equal."""
    name = f"batch {BATCH}, {OBJECTS} objects, {SIZE} px, {CLASSES} classes"
    maps, targets = example(outputs=5)
    simota = partial(SimOtaAssigner(STRIDES), maps, targets)
    loop = partial(loop_simota, maps, targets, STRIDES, rule="r25")
    same = sorted(_triples(simota())) == loop()
    yield watch.compare(f"SimOTA: {name}", loop, simota, figure=_verdict(same))
    for family, bins, top, alpha, ciou in (("PP-YOLOE", 17, 13, 1.0, False), ("u6", 16, 10, 0.5, True)):
        maps, targets = example(outputs=4 * bins)
        assigner = TaskAlignedAssigner(STRIDES, bins, top=top, alpha=alpha, beta=6.0, overlap="ciou" if ciou else "iou")
        aligned = partial(assigner, maps, targets)
        tal = partial(loop_tal, maps, targets, STRIDES, bins=bins, top=top, alpha=alpha, beta=6.0, ciou=ciou)
        found = aligned()
        scores = dict(zip(_triples(found.cells), found.score.tolist(), strict=True))
        expected = tal()
        same = scores.keys() == expected.keys() and all(abs(scores[key] - expected[key]) < 1e-5 for key in expected)
        yield watch.compare(f"TAL of {family}: {name}", tal, aligned, figure=_verdict(same))


def example(*, outputs: int) -> tuple[list[Tensor], Targets]:
    """Return random maps with one prediction per cell, and objects of all sizes."""
    random = torch.Generator().manual_seed(0)
    shapes = [(BATCH, 1, SIZE // s, SIZE // s, outputs + CLASSES) for s in STRIDES]
    maps = [torch.randn(shape, generator=random) - 2 * (outputs == 5) for shape in shapes]
    return maps, random_targets(batch=BATCH, objects=OBJECTS, classes=CLASSES, random=random)


def _triples(cells: Assignment) -> list[Positive]:
    sides = [SIZE // stride for stride in STRIDES]
    starts = [sum(side**2 for side in sides[:level]) for level in range(len(sides))]
    table = torch.stack((cells.level, cells.image, cells.row, cells.column, cells.target), dim=1).tolist()
    return [(i, starts[k] + y * sides[k] + x, t) for k, i, y, x, t in table]


def _verdict(same: bool) -> str:
    return "equal positives" if same else "the positives differ"
