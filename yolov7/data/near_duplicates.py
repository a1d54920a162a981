"""Near-duplicates: images that look alike, found by a perceptual hash of 64 bits."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_DISTANCE = 6  # bits in which the hashes of near-duplicates may differ
_SIDE, _KEPT = 32, 8  # pixels of the small grey image, and coefficients on each axis
_FLAT = 2.0  # standard deviation of grey values below which the bits of an image are noise
_BLOCK = 1 << 20  # pairs that are compared at once


def perceptual_hash(image: NDArray[np.uint8]) -> int:
    """Return a hash of 64 bits that changes little if an image is scaled, compressed or made slightly brighter.

    The image is reduced to 32 x 32 grey values. A bit states whether one of the 8 x 8 lowest coefficients of its
    discrete cosine transform is above their median. The constant coefficient does not count.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 grey.

    Returns:
        The hash; 0 for an image of nearly one colour, which has no structure to compare.
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    if cv2.meanStdDev(small)[1].item() < _FLAT:
        return 0
    coefficients = cv2.dct(small.astype(np.float32))[:_KEPT, :_KEPT].ravel()
    coefficients[0] = 0.0
    half = len(coefficients) // 2
    middle = np.partition(coefficients, (half - 1, half))[half - 1 : half + 1]
    return int.from_bytes(np.packbits(coefficients > middle.mean()).tobytes(), "big")


def near_pairs(
    hashes: NDArray[np.uint64], others: NDArray[np.uint64] | None = None, *, max_distance: int = MAX_DISTANCE
) -> NDArray[np.int64]:
    """Return the pairs of images whose hashes differ in few bits.

    If d bits differ at most, then at least one of d + 1 parts of the hashes is equal. Only such pairs are compared.

    Args:
        hashes: (n,) hashes from `perceptual_hash`. Images with the hash 0 belong to no pair.
        others: (k,) hashes of another split, each of which is compared with each of `hashes`. If they are left out,
            the images of `hashes` are compared with each other.
        max_distance: The largest number of bits in which a pair may differ, below 64.

    Returns:
        (p, 2) places in `hashes` and in `others`, or two different places in `hashes`, the lower one first; sorted.
    """
    right = hashes if others is None else others
    edges = np.linspace(0, 64, max_distance + 2).astype(int).tolist()
    found = [np.zeros((0, 2), np.int64)]
    for low, high in pairwise(edges):
        mask = np.uint64((1 << high) - (1 << low))
        left_by_part, right_by_part = _by_value(hashes, mask), _by_value(right, mask)
        for value, rows in left_by_part.items():
            if value in right_by_part:
                found.append(_near(hashes, rows, right, right_by_part[value], max_distance))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[pairs[:, 0] < pairs[:, 1]] if others is None else pairs


def _by_value(hashes: NDArray[np.uint64], mask: np.uint64) -> dict[int, NDArray[np.int64]]:
    """Return the places of the hashes with each value of the masked bits; a hash of 0 has no place."""
    places = np.flatnonzero(hashes)
    parts = hashes[places] & mask
    order = np.argsort(parts, kind="stable")
    values, starts = np.unique(parts[order], return_index=True)
    return dict(zip(values.tolist(), np.split(places[order], starts[1:]), strict=False))


def _near(
    left: NDArray[np.uint64], rows: NDArray[np.int64], right: NDArray[np.uint64], columns: NDArray[np.int64], limit: int
) -> NDArray[np.int64]:
    """Return the pairs of some places whose hashes differ in at most `limit` bits."""
    found, step = [], max(1, _BLOCK // len(columns))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        places = np.nonzero(np.bitwise_count(left[block, None] ^ right[columns]) <= limit)
        found.append(np.stack([block[places[0]], columns[places[1]]], axis=1))
    return np.concatenate(found)


def join_pairs(pairs: Iterable[tuple[int, int]] | NDArray[np.int64], *, count: int) -> NDArray[np.int64]:
    """Return the clusters that pairs form: images that a chain of pairs connects are in one cluster.

    Args:
        pairs: (p, 2) places.
        count: The number of images.

    Returns:
        (count,) the first member of the cluster of each image, which is the image itself if no pair has it.
    """
    parents = list(range(count))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    for one, other in np.asarray(pairs, np.int64).reshape(-1, 2).tolist():
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return np.array([root(place) for place in range(count)], np.int64)


def cluster_near_duplicates(hashes: NDArray[np.uint64], *, max_distance: int = MAX_DISTANCE) -> NDArray[np.int64]:
    """Return the cluster of each image; near-duplicates are in one cluster.

    Args:
        hashes: (n,) hashes from `perceptual_hash`.
        max_distance: As in `near_pairs`.

    Returns:
        (n,) the first member of the cluster of each image.
    """
    return join_pairs(near_pairs(hashes, max_distance=max_distance), count=len(hashes))
