"""Where models lie beside each other: the directions in which models of equal cost differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.tuning.search.space import Candidate

_LEAST = 0.02  # share of the variance that a direction must have

Array = NDArray[np.float64]


def log_cost(candidate: Candidate) -> float:
    """Doublings of GFLOPs."""
    return math.log2(candidate.gflops)


def find_places(candidates: Sequence[Candidate]) -> Array:
    """(N, D): each model along the directions in which those of equal cost differ most; total variance 1.

    Those are the principal components of the features, each scaled to its range, without their trend over log GFLOPs.
    """
    features = np.array([[value for _, value in candidate.features] for candidate in candidates])
    extent = np.ptp(features, axis=0)
    features = features[:, extent > 0] / extent[extent > 0]
    costs = np.array([log_cost(candidate) for candidate in candidates])
    known = np.stack([np.ones_like(costs), costs], axis=1)
    rest = features - known @ np.linalg.lstsq(known, features, rcond=None)[0]
    _, sizes, axes = np.linalg.svd(rest, full_matrices=False)
    places = rest @ axes[sizes**2 > _LEAST * (sizes**2).sum()].T
    return np.asarray(places / (math.sqrt(places.var(axis=0).sum()) or 1.0))
