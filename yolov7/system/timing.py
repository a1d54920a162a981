"""Comparable timing of several functions: they take turns, so that disturbances affect all of them alike."""

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
    """How long to measure.

    Attributes:
        count: Number of rounds.
        seconds: Duration of the turn of each subject in each round.
        warmup_seconds: Duration for which each subject runs before the first round.
    """

    count: int
    seconds: float
    warmup_seconds: float


@dataclass(frozen=True)
class Latency:
    """Statistics of samples, in milliseconds.

    Attributes:
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        samples: Number of samples.
    """

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
    """Run all subjects in interleaved rounds, so that a temporary slowdown of the machine affects all of them.

    Each round runs the subjects in another order. The first call of a turn is not recorded, because the caches still
    contain the data of the previous subject.

    Args:
        subjects: Functions that return one sample per call.
        rounds: How long to measure.
        generator: Source of the random order.
        on_turn: Called with the index of a subject before its turn.
        clock: Current time in seconds.

    Returns:
        The samples of each subject.
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
    """Return statistics of samples.

    Args:
        seconds: Durations in seconds, at least one.

    Returns:
        The statistics in milliseconds.
    """
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1000
    return Latency(float(p50), float(p90), float(p99), float(np.mean(seconds) * 1000), len(seconds))


def _repeat(subject: Callable[[], Sample], seconds: float, clock: Callable[[], float]) -> list[Sample]:
    """Call the subject until the time is over, but at least once."""
    until = clock() + seconds
    samples = [subject()]
    while clock() < until:
        samples.append(subject())
    return samples
