"""Near-duplicates are found by a hash that small changes of an image do not change much."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.data.near_duplicates import MAX_DISTANCE, cluster_near_duplicates, near_pairs, perceptual_hash


def draw(seed: int, *, width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    """Blurred noise, which has structure at all scales."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def test_changes_that_keep_what_an_image_shows_keep_it_near() -> None:
    image = draw(0)
    content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    changed = [
        cv2.imdecode(content, cv2.IMREAD_COLOR),
        cv2.resize(image, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
        (image * 0.8 + 20).astype(np.uint8),
    ]
    for other in changed:
        assert (perceptual_hash(other) ^ perceptual_hash(image)).bit_count() <= MAX_DISTANCE
    hashes = np.array([perceptual_hash(draw(seed)) for seed in range(40)], np.uint64)
    assert len(near_pairs(hashes)) == 0


def test_an_image_of_one_colour_is_near_to_none() -> None:
    plain = np.full((50, 50, 3), 90, np.uint8)
    assert perceptual_hash(plain) == 0
    assert len(near_pairs(np.zeros(3, np.uint64))) == 0


def test_pairs_are_those_of_a_comparison_of_all() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 200, np.uint64)
    others = hashes.copy()
    for place in range(len(others)):
        for bit in random.integers(0, 64, random.integers(0, 12)):
            others[place] ^= np.uint64(1) << np.uint64(bit)
    hashes[:2] = 0
    is_near = (np.bitwise_count(hashes[:, None] ^ others) <= MAX_DISTANCE) & (hashes[:, None] != 0) & (others != 0)
    expected = np.argwhere(is_near)
    assert 50 < len(expected) < 150
    assert np.array_equal(near_pairs(hashes, others), expected)
    both = np.concatenate([hashes, others])
    assert np.array_equal(near_pairs(both), expected + np.array([0, 200]))


def test_a_chain_of_pairs_is_one_cluster() -> None:
    chain = np.array([0b1, 0b111111_1 << 8, 0b1111_1, 0b1_1111_1111], np.uint64)  # the first and the last differ in 8
    assert cluster_near_duplicates(chain, max_distance=4).tolist() == [0, 1, 0, 0]
