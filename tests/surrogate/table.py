"""The models of the table, and the measured table."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pipeline.tuning.search.space import Candidate, model_key
from yolov7.nn.cost import spec_cost
from yolov7.spec.scaling import scale_spec
from yolov7.spec.spec_files import load_spec, spec_to_json

PATH = Path(__file__).with_name("table.json")
DEPTHS, WIDTHS, SIZES = (0.5, 1.0, 1.5), (0.375, 0.5, 0.75, 1.0), (64, 96, 128)
CLASSES = ("disc", "square")


@dataclass(frozen=True)
class Table:
    """AP of every model.

    Attributes:
        candidates: The models.
        AP: By key of the model, its AP with each seed.
    """

    candidates: tuple[Candidate, ...]
    AP: dict[str, tuple[float, ...]]

    @property
    def means(self) -> dict[str, float]:
        """Mean AP by key of the model."""
        return {key: fmean(values) for key, values in self.AP.items()}

    @property
    def noise(self) -> float:
        """Standard deviation of a model's mean AP, pooled over all models."""
        squares, freedom = 0.0, 0
        for values in self.AP.values():
            squares += sum((value - fmean(values)) ** 2 for value in values)
            freedom += len(values) - 1
        return math.sqrt(squares / freedom / fmean(len(values) for values in self.AP.values()))


def make_candidates() -> tuple[Candidate, ...]:
    """Scale nano to every depth, width and image size of the space, and count each model's cost."""
    nano = load_spec("nano")
    found = []
    for depth, width, size in itertools.product(DEPTHS, WIDTHS, SIZES):
        spec = scale_spec(nano, rule="both", depth=depth, width=width)
        cost = spec_cost(spec, num_classes=len(CLASSES), image_size=size)
        found.append(
            Candidate(
                key=model_key(spec, size),
                label=f"depth {depth:g}, width {width:g}, {size} pixels",
                rules=("free",),
                spec_json=spec_to_json(spec),
                image_size=size,
                auxiliary=False,
                features=(("depth", depth), ("width", math.log2(width)), ("image_size", float(size))),
                gflops=cost.gflops_with_bias,
                training_gflops=cost.gflops_built,
                parameters=cost.parameters,
                parameters_deployed=cost.parameters_deployed,
            )
        )
    return tuple(found)


def load_table() -> Table:
    """Read the measured table, whose candidates have no specs."""
    rows = json.loads(PATH.read_text(encoding="utf-8"))["models"]
    candidates = tuple(
        Candidate(
            key=row["key"],
            label=row["label"],
            rules=("free",),
            spec_json="",
            image_size=int(row["features"]["image_size"]),
            auxiliary=False,
            features=tuple(row["features"].items()),
            gflops=row["gflops"],
            training_gflops=row["gflops"],
            parameters=row["parameters"],
            parameters_deployed=row["parameters"],
        )
        for row in rows
    )
    return Table(candidates, {row["key"]: tuple(row["AP"]) for row in rows})
