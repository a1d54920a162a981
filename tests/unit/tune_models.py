"""Invented models for the tests of the search: a small space of depth, width and image size."""

from __future__ import annotations

import itertools
import math

from pipeline.tune_settings import TuneRule
from pipeline.tuning.search.space import Candidate


def make_candidate(
    number: int, *, gflops: float, rules: tuple[TuneRule, ...] = ("free",), **features: float
) -> Candidate:
    """Make a model of which only cost and features matter."""
    return Candidate(
        key=f"{number:08x}",
        label=f"model {number}",
        rules=rules,
        spec_json="",
        image_size=int(features.get("image_size", 64)),
        auxiliary=False,
        features=tuple(features.items()),
        gflops=gflops,
        training_gflops=gflops,
        parameters=number + 1,
        parameters_deployed=number + 1,
    )


def make_space() -> tuple[Candidate, ...]:
    """Make 54 models whose cost follows from depth, width and image size."""
    choices = itertools.product((1, 2, 3), (0.5, 0.65, 0.8, 1, 1.25, 1.6), (64, 96, 128))
    return tuple(
        make_candidate(
            number,
            gflops=0.02 * (0.4 + 0.3 * depth) * width**2 * (size / 64) ** 2,
            depth=float(depth),
            width=math.log2(width),
            image_size=float(size),
        )
        for number, (depth, width, size) in enumerate(choices)
    )
