"""Checks of the images of splits: copies and leaks, exact and near, and unusual shapes, channels and depths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np

from yolov7.data.health.checks import Finding
from yolov7.data.image_headers import Header, read_header
from yolov7.data.index import ImageIndex
from yolov7.data.near_duplicates import near_pairs
from yolov7.system.files import open_regular

MAX_ASPECT = 4.0
_HEADER_BYTES = 1 << 17  # enough for a JPEG file with a preview before its frame header
_CHANNELS = {1: "grey", 2: "grey with alpha", 3: "RGB", 4: "alpha or CMYK"}


def have_same_images(one: ImageIndex, other: ImageIndex) -> bool:
    """Return whether two splits consist of the same images, as given weights are often evaluated.

    Args:
        one: A split.
        other: Another split.
    """
    return set(one.hashes) == set(other.hashes)


def find_same_splits(splits: Mapping[str, ImageIndex]) -> Iterator[Finding]:
    """Find splits that consist of the same images as another split.

    Args:
        splits: The splits in their order. A finding belongs to the later one of two splits.

    Yields:
        A finding for each pair of splits.
    """
    for (first, one), (second, other) in combinations(splits.items(), 2):
        if have_same_images(one, other):
            yield Finding(second, str(other.paths[0].parent), f"the {len(other):,} images of {first}")


def find_leaks(splits: Mapping[str, ImageIndex]) -> Iterator[Finding]:
    """Find images of which another split has a copy with the same bytes, if the splits are not the same as a whole.

    Args:
        splits: The splits in their order. A finding belongs to the later one of two splits.

    Yields:
        A finding for each image.
    """
    for (first, one), (second, other) in combinations(splits.items(), 2):
        if have_same_images(one, other):
            continue
        known = dict(zip(one.hashes, one.paths, strict=True))
        for path, digest in zip(other.paths, other.hashes, strict=True):
            if digest in known:
                yield Finding(second, str(path), f"the same bytes as {known[digest]} of {first}", images=(path,))


def find_near_copies(split: str, index: ImageIndex) -> Iterator[Finding]:
    """Find images that look like another image of their split, without exact copies.

    Args:
        split: The name of the split.
        index: The split.

    Yields:
        A finding for each image that looks like an earlier one.
    """
    if index.perceptual_hashes is None:
        return
    seen = set()
    for one, other in near_pairs(index.perceptual_hashes).tolist():
        if index.hashes[one] != index.hashes[other] and other not in seen:
            seen.add(other)
            yield _look_alike(split, index.paths[other], index.paths[one], "")


def find_near_leaks(splits: Mapping[str, ImageIndex]) -> Iterator[Finding]:
    """Find images that look like an image of another split, without exact copies.

    Args:
        splits: The splits in their order. A finding belongs to the later one of two splits.

    Yields:
        A finding for each image that looks like an image of an earlier split.
    """
    for (first, one), (second, other) in combinations(splits.items(), 2):
        if one.perceptual_hashes is None or other.perceptual_hashes is None:
            continue
        copies, seen = set(one.hashes), set[int]()
        for place, twin in near_pairs(one.perceptual_hashes, other.perceptual_hashes).tolist():
            if other.hashes[twin] not in copies and twin not in seen:
                seen.add(twin)
                yield _look_alike(second, other.paths[twin], one.paths[place], f" of {first}")


def find_odd_aspects(split: str, index: ImageIndex) -> Iterator[Finding]:
    """Find very wide and very high images.

    Args:
        split: The name of the split.
        index: The split.

    Yields:
        A finding for each image.
    """
    longer, shorter = np.maximum(index.widths, index.heights), np.minimum(index.widths, index.heights)
    for i in np.flatnonzero(longer > MAX_ASPECT * shorter).tolist():
        path = index.paths[i]
        yield Finding(split, str(path), f"{index.widths[i]} x {index.heights[i]} pixels", images=(path,))


def read_headers(index: ImageIndex) -> list[Header | None]:
    """Read the headers of all images of a split; None for those whose header cannot be read.

    Args:
        index: The split.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(_header, index.paths))


def find_odd_channels(
    splits: Mapping[str, ImageIndex], headers: Mapping[str, list[Header | None]]
) -> Iterator[Finding]:
    """Find images with other channels than the most frequent ones.

    Args:
        splits: The splits.
        headers: The headers of the images of each split.

    Yields:
        A finding for each image.
    """
    yield from _unlike_most(splits, headers, lambda header: header.channels and _CHANNELS.get(header.channels))


def find_odd_depths(splits: Mapping[str, ImageIndex], headers: Mapping[str, list[Header | None]]) -> Iterator[Finding]:
    """Find images with another depth than the most frequent one.

    Args:
        splits: The splits.
        headers: The headers of the images of each split.

    Yields:
        A finding for each image.
    """
    yield from _unlike_most(splits, headers, lambda header: f"{header.bits} bits per sample")


def _unlike_most(
    splits: Mapping[str, ImageIndex],
    headers: Mapping[str, list[Header | None]],
    describe: Callable[[Header], str | int | None],
) -> Iterator[Finding]:
    told = {
        split: [None if header is None else describe(header) for header in listed] for split, listed in headers.items()
    }
    counts = Counter(text for texts in told.values() for text in texts if text)
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    for split, texts in told.items():
        for path, text in zip(splits[split].paths, texts, strict=True):
            if text and text != usual:
                yield Finding(split, str(path), f"{text}; most images: {usual}", images=(path,))


def _look_alike(split: str, path: Path, other: Path, where: str) -> Finding:
    return Finding(split, str(path), f"looks like {other}{where}", images=(path, other))


def _header(path: Path) -> Header | None:
    try:
        with open_regular(path) as file:
            header = read_header(file.read(_HEADER_BYTES))
            if header is None:
                file.seek(0)
                header = read_header(file.read())
    except OSError:
        return None
    return header
