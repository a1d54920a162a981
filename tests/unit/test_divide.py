"""Division of images into splits: shares, classes, seeds, order and groups."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from yolov7.data.divide import divide_images
from yolov7.data.index import ImageIndex
from yolov7.data.selection import select_images
from yolov7.errors import DataError

COUNT = 200


def make(*, classes: int = 4) -> ImageIndex:
    """Images of few classes of very different frequency, and some without objects."""
    random = np.random.default_rng(0)
    counts = random.integers(0, 4, COUNT)
    labels = random.choice(classes, int(counts.sum()), p=[0.7, 0.2, 0.08, 0.02])
    return ImageIndex(
        class_names=tuple("abcd"[:classes]),
        paths=tuple(Path(f"/data/{'xyz'[i % 3]}/scene{i // 10}_{i}.jpg") for i in range(COUNT)),
        widths=np.full(COUNT, 60, np.int32),
        heights=np.full(COUNT, 40, np.int32),
        hashes=tuple(f"{value:016x}" for value in random.integers(0, 2**63, COUNT)),
        box_offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes_xyxy=random.uniform(0, 40, (len(labels), 4)).astype(np.float32),
        labels=labels,
        crowd=np.zeros(len(labels), np.bool_),
        image_ids=tuple(f"id{i}" for i in range(COUNT)),
        perceptual_hashes=random.integers(1, 2**63, COUNT, np.uint64),
    )


def names_of(index: ImageIndex, **options: object) -> dict[str, set[str]]:
    places = divide_images(index, {"val": 0.2, "test": 0.1}, **{"seed": 0, **options})  # type: ignore[arg-type]
    return {split: {str(index.paths[i]) for i in images} for split, images in places.items()}


def test_each_class_is_divided_in_the_stated_shares() -> None:
    index = make()
    places = divide_images(index, {"val": 0.2, "test": 0.1}, seed=0)
    assert sorted(np.concatenate(list(places.values())).tolist()) == list(range(COUNT))
    for split, share in {"train": 0.7, "val": 0.2, "test": 0.1}.items():
        part = select_images(index, places[split])
        assert abs(len(part) - share * COUNT) <= 4
        for label in range(4):
            with_class, all_with = (len({i for i in range(len(x)) if label in x.labels_of(i)}) for x in (part, index))
            assert abs(with_class - share * all_with) <= 4
            assert with_class > 0


def test_the_seed_decides_and_the_order_and_names_of_files_do_not() -> None:
    index = make()
    order = np.random.default_rng(1).permutation(COUNT)
    counts = np.diff(index.box_offsets)
    rows = np.concatenate([np.arange(index.box_offsets[i], index.box_offsets[i + 1]) for i in order])
    shuffled = replace(
        index,
        paths=tuple(index.paths[i] for i in order),
        hashes=tuple(index.hashes[i] for i in order),
        box_offsets=np.concatenate([[0], np.cumsum(counts[order])]),
        boxes_xyxy=index.boxes_xyxy[rows],
        labels=index.labels[rows],
    )
    assert names_of(shuffled) == names_of(index)
    assert names_of(index, seed=1) != names_of(index)


@pytest.mark.parametrize(("group", "pattern"), [("folder", "^(.*)/"), (r"scene(\d+)_", r"scene(\d+)_")])
def test_a_group_is_in_one_split(group: str, pattern: str) -> None:
    splits_of: dict[str, set[str]] = {}
    for split, paths in names_of(make(), group=group).items():
        for path in paths:
            found = re.search(pattern, path)
            assert found is not None
            splits_of.setdefault(found[1], set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert set.union(*splits_of.values()) == {"train", "val", "test"}


def test_near_duplicates_and_copies_are_in_one_split() -> None:
    index = make()
    assert index.perceptual_hashes is not None
    looks = index.perceptual_hashes.copy()
    looks[100:] = looks[:100] ^ np.uint64(0b101)  # each of the second half looks like one of the first
    index = replace(index, perceptual_hashes=looks)
    split_of = {path: split for split, paths in names_of(index, group="near-duplicates").items() for path in paths}
    assert all(split_of[str(index.paths[i])] == split_of[str(index.paths[i + 100])] for i in range(100))
    copies = replace(index, hashes=index.hashes[:100] * 2)
    split_of = {path: split for split, paths in names_of(copies).items() for path in paths}
    assert all(split_of[str(index.paths[i])] == split_of[str(index.paths[i + 100])] for i in range(100))


def test_groups_that_cannot_be_divided_are_refused() -> None:
    wanted = "200 images, which form 1 set by group='data', cannot fill 3 splits; choose another group, or add images$"
    with pytest.raises(DataError, match="the split val would have no image, because " + wanted):
        names_of(make(), group="data")
    one = select_images(make(), np.arange(1))
    with pytest.raises(DataError, match=r"because 1 image cannot fill 3 splits; add images$"):
        names_of(one, group="near-duplicates")
    copies = replace(make(), hashes=("0" * 16,) * COUNT)
    with pytest.raises(DataError, match=r"which form 1 set because copies of a file stay together, .*; add images$"):
        names_of(copies, group="folder")
    with pytest.raises(DataError, match=r"group '\(' is not a regular expression"):
        names_of(make(), group="(")
    with pytest.raises(DataError, match=r"group 'nothing' matches no path, e\.g\. /data/x/scene0_0\.jpg"):
        names_of(make(), group="nothing")
