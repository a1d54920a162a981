"""Choose the next model with a Gaussian process over the models that may be trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from pipeline.tuning.search.space import Candidate

FEWEST_RESULTS = 4  # a Gaussian process learns nothing useful from fewer results
_SMALLEST_SHARE = 0.02  # a direction with a smaller share of the variance is left out
_LENGTHS = (0.5, 4.0)  # bounds of the kernel's length scale, in standard deviations of the coordinates
_NOISES = (0.05, 0.5)  # bounds of the noise, as a share of the variance around the trend
_EXPLORATION = 0.5  # standard deviations that are added to the mean

Array = NDArray[np.float64]


@final
class Kriging:
    """Predict the AP of untrained models from the AP of trained ones, and choose the most promising model."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        """Compute the coordinates of the models.

        Args:
            candidates: All models that the search may train.
        """
        rows = find_coordinates(candidates)
        self._coordinates = {candidate.key: row for candidate, row in zip(candidates, rows, strict=True)}
        self._num_directions = rows.shape[1]

    def choose(
        self,
        untried: Sequence[Candidate],
        *,
        results: Sequence[tuple[Candidate, float]],
        pending: Sequence[Candidate],
    ) -> Candidate:
        """Return the untried model with the highest upper confidence bound of AP.

        Args:
            untried: The models to choose from, at least one.
            results: Trained models with their AP, at least `FEWEST_RESULTS`.
            pending: Models that are being trained.
        """
        tried = [candidate for candidate, _ in results]
        bounds = upper_bounds(
            self._rows(tried),
            _log_costs(tried),
            np.array([AP for _, AP in results]),
            pending=self._rows(pending),
            at=self._rows(untried),
            costs_at=_log_costs(untried),
        )
        return untried[int(bounds.argmax())]

    def _rows(self, candidates: Sequence[Candidate]) -> Array:
        rows = [self._coordinates[candidate.key] for candidate in candidates]
        return np.array(rows).reshape(len(candidates), self._num_directions)


def find_coordinates(candidates: Sequence[Candidate]) -> Array:
    """Return coordinates of models along the directions in which models of equal cost differ most.

    The directions are the principal components of the features after each feature was scaled to its range and its
    linear trend over the logarithm of GFLOPs was removed.

    Args:
        candidates: N models.

    Returns:
        Coordinates (N, D), float64, with a total variance of 1.
    """
    features = np.array([[value for _, value in candidate.features] for candidate in candidates])
    extent = np.ptp(features, axis=0)
    features = features[:, extent > 0] / extent[extent > 0]
    residual = features - _linear_trend(_log_costs(candidates), features, at=_log_costs(candidates))
    _, sizes, axes = np.linalg.svd(residual, full_matrices=False)
    coordinates = residual @ axes[sizes**2 > _SMALLEST_SHARE * (sizes**2).sum()].T
    return np.asarray(coordinates / (math.sqrt(coordinates.var(axis=0).sum()) or 1.0))


def upper_bounds(coordinates: Array, costs: Array, APs: Array, *, pending: Array, at: Array, costs_at: Array) -> Array:
    """Return the upper confidence bound of AP: the mean plus half a standard deviation.

    The mean is a straight line over the cost plus a Gaussian process over the coordinates. Models that are being
    trained reduce the standard deviation in their neighbourhood without changing the mean (Desautels et al., 2014,
    "Parallelizing Exploration-Exploitation Tradeoffs in Gaussian Process Bandit Optimization").

    Args:
        coordinates: Coordinates (N, D) of the trained models.
        costs: Logarithms (N,) of their cost.
        APs: Their AP (N,).
        pending: Coordinates (P, D) of the models that are being trained.
        at: Coordinates (M, D) of the models to judge.
        costs_at: Logarithms (M,) of their cost.

    Returns:
        Upper bounds (M,), float64.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    residual = APs - _linear_trend(costs, APs, at=costs)
    scale = max(float(residual.std()), 1e-6)
    trend_at = _linear_trend(costs, APs, at=costs_at)
    if not coordinates.shape[1]:  # models of equal cost do not differ, so only the cost can matter
        return np.asarray(trend_at)
    kernel = RBF(1.0, _LENGTHS) + WhiteKernel(0.2, _NOISES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns when the best value lies on a bound
        process = GaussianProcessRegressor(kernel).fit(coordinates, residual / scale)
    known = np.concatenate([coordinates, pending])
    frozen = GaussianProcessRegressor(process.kernel_, optimizer=None).fit(known, np.zeros(len(known)))
    _, deviation = frozen.predict(at, return_std=True)
    return np.asarray(trend_at + scale * (process.predict(at) + _EXPLORATION * deviation))


def _log_costs(candidates: Sequence[Candidate]) -> Array:
    return np.log2([candidate.gflops for candidate in candidates])


def _linear_trend(x: Array, y: Array, *, at: Array) -> Array:
    """Return the values at `at` of the straight line fitted to `y` over `x`."""
    known, wanted = (np.stack([np.ones_like(values), values], axis=1) for values in (x, at))
    return np.asarray(wanted @ np.linalg.lstsq(known, y, rcond=None)[0])
