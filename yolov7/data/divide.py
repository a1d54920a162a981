"""Division of images into splits: stratified by class, seeded, independent of the order of files, and without leaks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from yolov7.data.flaws import Flaw
from yolov7.data.index import ImageIndex
from yolov7.data.near_duplicates import join_pairs, near_pairs
from yolov7.errors import DataError, counted, shown

FOLDER, NEAR_DUPLICATES = "folder", "near-duplicates"


def divide_images(
    index: ImageIndex, fractions: Mapping[str, float], *, seed: int, group: str | None = None
) -> dict[str, NDArray[np.int64]]:
    """Divide the images of an index into splits.

    Groups of images are assigned one after the other, in an order that depends on the seed and on the content of the
    images only. Groups with the class that has the fewest unassigned groups come first; each goes to the split that
    lacks the most images of this class (iterative stratification: Sechidis, Tsoumakas and Vlahavas, "On the
    stratification of multi-label data", 2011). Images without objects count as a class of their own.

    Args:
        index: The images.
        fractions: The share of the images of each split; all other images are the split `train`.
        seed: Another seed gives another division.
        group: Which images stay together: those of one `folder`, those of a cluster of `near-duplicates`, or those in
            whose path a regular expression finds the same text (the text of its groups, if it has any). Copies of one
            file always stay together.

    Returns:
        The places of the images of each split, rising.

    Raises:
        DataError: If a split would be empty, or the pattern is no regular expression.
    """
    shares = {"train": 1.0 - sum(fractions.values()), **fractions}
    groups = group_images(index, group)
    presence = _classes_of_groups(index, groups)
    order = _seeded_order(index, groups, seed)
    assigned = _stratify(presence, order, np.array(list(shares.values())))
    places = {split: np.flatnonzero(assigned[groups] == k) for k, split in enumerate(shares)}
    for split, images in places.items():
        if not len(images):
            raise DataError(_describe_lack(index, split, group, sets=len(presence), splits=len(shares)))
    return places


def group_images(index: ImageIndex, group: str | None) -> NDArray[np.int64]:
    """Return the number of the group of each image (n,).

    Args:
        index: The images.
        group: As in `divide_images`.

    Raises:
        DataError: If the pattern is no regular expression.
    """
    count = len(index)
    numbers = np.unique(np.array(index.hashes, dtype=np.str_), return_inverse=True)[1].reshape(-1)
    pairs = [np.stack([np.arange(count), _first_of_value(numbers)], axis=1)]
    if group == NEAR_DUPLICATES:
        assert index.perceptual_hashes is not None  # every index that was built from images has them
        pairs.append(near_pairs(index.perceptual_hashes))
    elif group is not None:
        pairs.append(np.stack([np.arange(count), _first_of_value(_keys(index, group))], axis=1))
    return np.unique(join_pairs(np.concatenate(pairs), count=count), return_inverse=True)[1].reshape(-1)


def divide_flaws(
    splits: Mapping[str, ImageIndex], flaws: Sequence[Flaw]
) -> dict[str, tuple[ImageIndex, tuple[Flaw, ...]]]:
    """Give each split of a division the flaws of its images.

    Args:
        splits: The splits, `train` among them.
        flaws: The flaws of all images. Those of no image of a split belong to `train`.

    Returns:
        The index and the flaws of each split.
    """
    split_of = {str(path): split for split, index in splits.items() for path in index.paths}
    divided: dict[str, list[Flaw]] = {split: [] for split in splits}
    for flaw in flaws:
        divided[split_of.get(flaw.file, "train")].append(flaw)
    return {split: (index, tuple(divided[split])) for split, index in splits.items()}


def _describe_lack(index: ImageIndex, split: str, group: str | None, *, sets: int, splits: int) -> str:
    """Say why a split would be empty, which is so if there are fewer sets of images than splits, and the remedy."""
    files = len(set(index.hashes))  # copies of one file always stay together
    by = "because copies of a file stay together" if files < splits or group is None else f"by group={group!r}"
    formed = f", which form {counted(sets, 'set')} {by}," if len(index) >= splits else ""
    remedy = "choose another group, or add images" if files >= splits else "add images"
    images = f"{counted(len(index), 'image')}{formed}"
    return f"the split {split} would have no image, because {images} cannot fill {splits} splits; {remedy}"


def _keys(index: ImageIndex, group: str) -> NDArray[np.int64]:
    """Return a number for each image that is the same for images with the same folder or the same match."""
    if group == FOLDER:
        texts = [str(path.parent) for path in index.paths]
    else:
        try:
            pattern = re.compile(group)
        except re.error as error:
            raise DataError(f"group {shown(group)} is not a regular expression ({error}); correct it") from None
        found = [pattern.search(path.as_posix()) for path in index.paths]
        if not any(found):
            raise DataError(f"group {shown(group)} matches no path, e.g. {index.paths[0].as_posix()}; correct it")
        texts = [
            f"no match: {path}" if match is None else "\0".join(part or "" for part in match.groups() or (match[0],))
            for path, match in zip(index.paths, found, strict=True)
        ]
    return np.unique(np.array(texts, dtype=np.str_), return_inverse=True)[1].reshape(-1)


def _first_of_value(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first place that has the same value as each place."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def _classes_of_groups(index: ImageIndex, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of images (groups, classes + 1) with each class; the last column counts images without any."""
    classes = len(index.class_names)
    image = np.repeat(np.arange(len(index)), np.diff(index.box_offsets))
    pairs = np.unique(np.stack([image, index.labels], axis=1), axis=0)
    counts = np.zeros((int(groups.max(initial=-1)) + 1, classes + 1), np.int64)
    np.add.at(counts, (groups[pairs[:, 0]], pairs[:, 1]), 1)
    np.add.at(counts, (groups[np.diff(index.box_offsets) == 0], classes), 1)
    return counts


def _seeded_order(index: ImageIndex, groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the groups in an order that depends on the seed and on the content of their images only."""
    least: dict[int, str] = {}
    for number, content in zip(groups.tolist(), index.hashes, strict=True):
        least[number] = min(content, least.get(number, content))
    keys = {
        number: hashlib.blake2b(f"{seed} {content}".encode(), digest_size=8).digest()
        for number, content in least.items()
    }
    return np.array(sorted(keys, key=keys.__getitem__), np.int64)


def _stratify(presence: NDArray[np.int64], order: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the split (groups,) of each group."""
    lacking = shares[:, None] * presence.sum(axis=0)  # images of each class that each split still lacks
    lacking_images = shares * presence.sum(axis=0).sum()
    assigned = np.full(len(presence), -1, np.int64)
    remaining = (presence > 0).sum(axis=0)
    while remaining.any():
        label = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
        for number in order[(presence[order, label] > 0) & (assigned[order] < 0)].tolist():
            need = lacking[:, label]
            most = np.flatnonzero(need >= need.max() - 1e-9)
            split = int(most[lacking_images[most].argmax()])
            assigned[number] = split
            lacking[split] -= presence[number]
            lacking_images[split] -= presence[number].sum()
            remaining -= presence[number] > 0
    for split in np.flatnonzero(np.bincount(assigned, minlength=len(shares)) == 0).tolist():
        counts = np.bincount(assigned, minlength=len(shares))
        if counts.max() > 1:  # few large groups: the smallest one of the split that has the most is moved
            donor = order[assigned[order] == counts.argmax()]
            assigned[donor[presence[donor].sum(axis=1).argmin()]] = split
    return assigned
