"""Class-balanced sampling: images with rare classes are seen more often (Gupta et al., LVIS, 2019, section 5.1)."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolov7.data.index import ImageIndex


def repeat_factors(index: ImageIndex, *, threshold: float) -> NDArray[np.float64]:
    """Compute how often each image is seen relative to an image with common classes only.

    A class that occurs in a share f < `threshold` of the images has the factor sqrt(threshold / f), any other class the
    factor 1. An image has the largest factor of its classes.

    Args:
        index: The images and objects.
        threshold: Share of the images below which a class counts as rare.

    Returns:
        Factors (n,), at least 1.
    """
    images = np.repeat(np.arange(len(index)), np.diff(index.box_offsets))
    has = np.zeros((len(index), len(index.class_names)), np.bool_)
    has[images[~index.crowd], index.labels[~index.crowd]] = True
    share = np.maximum(has.mean(axis=0), 1e-12)  # a class without objects is in no image, so its factor is not used
    wanted = np.maximum(1.0, np.sqrt(threshold / share))
    factors: NDArray[np.float64] = np.where(has, wanted, 1.0).max(axis=1, initial=1.0)
    return factors


def balanced_order(factors: NDArray[np.float64], *, generator: Generator) -> NDArray[np.int64]:
    """Draw the images of an epoch by systematic sampling, in random order.

    Args:
        factors: How often each image is seen relative to the others (n,).
        generator: Source of randomness.

    Returns:
        Numbers of n images. Each image occurs as often as its share of the epoch says, randomly rounded up or down.
    """
    count = len(factors)
    ends = np.cumsum(factors) * (count / factors.sum())
    points = np.arange(count) + generator.random()
    chosen = np.minimum(np.searchsorted(ends, points, side="right"), count - 1)
    return generator.permutation(chosen)
