"""A Gaussian process over a finite set of models: what AP each of the untried ones may reach."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LENGTHS = (0.5, 1.0, 2.0, 4.0)  # over which AP changes, in standard deviations of the models
_NOISES = (0.05, 0.2, 0.5)  # share of the variance around the trend that no length explains
_CAUTION = 0.5  # standard deviations that are added to the mean


def upper_bounds(places: Array, costs: Array, APs: Array, *, pending: Array, at: Array, costs_at: Array) -> Array:
    """For each model at the places `at`, the mean of its AP plus a share of its standard deviation.

    The mean is a straight line over `costs` and a Gaussian process over places (N, D) around it, whose length and noise
    are those of the largest likelihood. `pending`: places that are being measured, which are uncertain no more
    (Desautels et al., 2014).
    """
    known, trend_at = _with_one(costs), _with_one(costs_at)
    line = np.linalg.lstsq(known, APs, rcond=None)[0]
    rest = APs - known @ line
    scale = max(float(rest.std()), 1e-6)
    length, noise = max(product(_LENGTHS, _NOISES), key=lambda pair: _likelihood(places, rest / scale, *pair))
    weights = np.linalg.solve(_kernel(places, places, length) + noise * np.eye(len(places)), rest)
    mean = trend_at @ line + _kernel(at, places, length) @ weights
    seen = np.concatenate([places, pending])
    to_seen = _kernel(at, seen, length)
    explained = np.linalg.solve(_kernel(seen, seen, length) + noise * np.eye(len(seen)), to_seen.T)
    variance = np.maximum(1 - np.einsum("ij,ji->i", to_seen, explained), 0)
    return np.asarray(mean + _CAUTION * scale * np.sqrt(variance))


def _with_one(costs: Array) -> Array:
    return np.stack([np.ones_like(costs), costs], axis=1)


def _kernel(left: Array, right: Array, length: float) -> Array:
    squares = ((left[:, None] - right[None]) ** 2).sum(axis=-1)
    return np.asarray(np.exp(-0.5 * squares / length**2))


def _likelihood(places: Array, values: Array, length: float, noise: float) -> float:
    """The logarithm of it, up to a constant."""
    matrix = (_kernel(places, places, length) + noise * np.eye(len(places))) / (1 + noise)
    return float(-values @ np.linalg.solve(matrix, values) - np.linalg.slogdet(matrix)[1])
