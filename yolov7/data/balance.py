"""Class-balanced sampling: images with rare classes are seen more often (Gupta et al., LVIS, 2019, section 5.1)."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from yolov7.data.index import ImageIndex


def repeat_factors(index: ImageIndex, *, threshold: float) -> NDArray[np.float64]:
    """How often each image (n,) is seen beside one of common classes only, which is seen once.

    A class in a share f of the images below `threshold` asks for sqrt(threshold / f); of an image's classes the rarest
    decides.
    """
    images = np.repeat(np.arange(len(index)), np.diff(index.box_offsets))
    has = np.zeros((len(index), len(index.class_names)), np.bool_)
    has[images[~index.crowd], index.labels[~index.crowd]] = True
    share = np.maximum(has.mean(axis=0), 1e-12)  # of a class that is nowhere nothing hangs on it
    wanted = np.maximum(1.0, np.sqrt(threshold / share))
    factors: NDArray[np.float64] = np.where(has, wanted, 1.0).max(axis=1, initial=1.0)
    return factors


def balanced_order(factors: NDArray[np.float64], *, generator: Generator) -> NDArray[np.int64]:
    """As many images (n,) as there are factors, shuffled, each in proportion to its factor.

    Systematic sampling: an image comes as often as its share of the epoch says, rounded up or down at random.
    """
    count = len(factors)
    ends = np.cumsum(factors) * (count / factors.sum())
    points = np.arange(count) + generator.random()
    chosen = np.minimum(np.searchsorted(ends, points, side="right"), count - 1)
    return generator.permutation(chosen)
