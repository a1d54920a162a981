"""Select images of a split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolov7.data.index import ImageIndex


def select_images(index: ImageIndex, places: NDArray[np.int64]) -> ImageIndex:
    """Return the index of the images at some places.

    Args:
        index: The images.
        places: (k,) the images to keep, rising.
    """
    is_kept = np.zeros(len(index), np.bool_)
    is_kept[places] = True
    counts = np.diff(index.box_offsets)
    rows = np.flatnonzero(np.repeat(is_kept, counts))
    outlines = index.outlines and index.outlines.select(rows, has_outline=np.ones(len(rows), np.bool_))
    hashes = index.perceptual_hashes
    return ImageIndex(
        class_names=index.class_names,
        paths=tuple(index.paths[i] for i in places.tolist()),
        widths=index.widths[places],
        heights=index.heights[places],
        hashes=tuple(index.hashes[i] for i in places.tolist()),
        box_offsets=np.concatenate([[0], np.cumsum(counts[places])]),
        boxes_xyxy=index.boxes_xyxy[rows],
        labels=index.labels[rows],
        crowd=index.crowd[rows],
        outlines=outlines if outlines is not None and len(outlines.points) else None,
        areas=None if index.areas is None else index.areas[rows],
        stated_xywh=None if index.stated_xywh is None else index.stated_xywh[rows],
        image_ids=tuple(index.image_ids[i] for i in places.tolist()),
        category_ids=index.category_ids,
        perceptual_hashes=None if hashes is None else hashes[places],
    )


def keep_images(index: ImageIndex, count: int) -> ImageIndex:
    """Return the index of the first images in an order that is arbitrary but always the same.

    The order of the hashes of their files decides. The choice therefore depends neither on the names and the order of
    the images nor on the seed of the run, and more images always contain fewer ones.

    Args:
        index: The images.
        count: The number of images to keep; 0, or more than there are: all.
    """
    if not 0 < count < len(index):
        return index
    return select_images(index, np.sort(np.argsort(np.array(index.hashes), kind="stable")[:count]))
