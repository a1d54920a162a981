"""Timing several things so that they compare: in interleaved rounds, each with the same share of every minute."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Rounds:
    """How long to measure. `seconds`: of each subject in each round; `warmup_seconds`: of each before the first."""

    count: int
    seconds: float
    warmup_seconds: float


@dataclass(frozen=True)
class Latency:
    """What many samples come to, milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    samples: int


def measure_interleaved(
    subjects: Sequence[Callable[[], Sample]],
    *,
    rounds: Rounds,
    generator: random.Random,
    on_turn: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[Sample]]:
    """The samples of every subject over all rounds; what slows the machine for a while slows them all.

    Each round takes the subjects in another order. `on_turn` hears the index of a subject before its turn. The first
    call of a turn is not counted: the caches hold what the last subject left there.
    """
    samples: list[list[Sample]] = [[] for _ in subjects]
    for index, subject in enumerate(subjects):
        on_turn(index)
        _repeat(subject, rounds.warmup_seconds, clock)
    for _ in range(rounds.count):
        for index in generator.sample(range(len(subjects)), len(subjects)):
            on_turn(index)
            subjects[index]()
            samples[index] += _repeat(subjects[index], rounds.seconds, clock)
    return samples


def summarise(seconds: Sequence[float]) -> Latency:
    """Percentiles over all samples."""
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1000
    return Latency(float(p50), float(p90), float(p99), float(np.mean(seconds) * 1000), len(seconds))


def _repeat(subject: Callable[[], Sample], seconds: float, clock: Callable[[], float]) -> list[Sample]:
    """Calls at least once, and until the time is over."""
    until = clock() + seconds
    samples = [subject()]
    while clock() < until:
        samples.append(subject())
    return samples
