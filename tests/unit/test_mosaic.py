"""Mosaics of nine, mixup and pasting: where the images lie, and the samples made of them."""

from __future__ import annotations

from itertools import combinations

import cv2
import numpy as np
import pytest

from yolov7.data.augment.mosaic import place_mosaic_nine
from yolov7.data.build_index import AnnotatedImage, build_index
from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import ImageIndex
from yolov7.settings import AugmentSettings


def rectangles(sizes: list[tuple[int, int]], corners: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    return [(x, y, x + w, y + h) for (w, h), (x, y) in zip(sizes, corners, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_nine_images_touch_and_do_not_overlap(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = [(int(w), int(h)) for w, h in random.integers(20, 101, (9, 2))]
    placed = rectangles(sizes, place_mosaic_nine(sizes, size=100, generator=random))
    for a, b in combinations(placed, 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
    middle, above, _, right, below_right, below, _, left, _ = placed
    assert (above[0], above[3]) == (middle[0], middle[1])
    assert (right[0], right[1]) == (middle[2], middle[1])
    assert below_right[1] == right[3]
    assert (below[2], below[1]) == (middle[2], middle[3])
    assert (left[2], left[3]) == (middle[0], middle[3])


def test_nine_whole_squares_fill_the_canvas() -> None:
    sizes = [(100, 100)] * 9
    placed = rectangles(sizes, place_mosaic_nine(sizes, size=100, generator=np.random.default_rng(0)))
    canvas = np.zeros((200, 200), int)
    for x1, y1, x2, y2 in placed:
        canvas[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] += 1
    assert (canvas == 1).all()
    assert len({(x, y) for x, y, _, _ in placed}) == 9


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    folder = tmp_path_factory.mktemp("images")
    annotated = []
    for i in range(9):
        path = folder / f"{i}.png"
        image = np.full((96, 96, 3), 40 * (i % 3), np.uint8)
        image[30:60, 30:70] = (20 * i, 255, 255 - 20 * i)
        cv2.imwrite(str(path), image)
        annotated.append(AnnotatedImage(path, np.array([[30.0, 30, 70, 60]]), np.array([0]), np.array([False])))
    return build_index(annotated, class_names=("thing",))[0]


def samples(index: ImageIndex, **settings: float) -> list[int]:
    augment = AugmentSettings(mixup=0.0, scale=0.0, translate=0.0, **settings)
    dataset = DetectionDataset(index, image_size=96, augment=augment, seed=1)
    return [len(dataset.sample(i, epoch=epoch).labels) for i in range(9) for epoch in range(4)]


def test_the_setting_decides_between_mosaics_of_four_and_of_nine(index: ImageIndex) -> None:
    four, mixed, nine = (samples(index, mosaic_nine=share) for share in (0.0, 0.2, 1.0))
    assert four == samples(index)
    assert four != mixed != nine


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_mixup_blends_two_samples_with_and_without_mosaic(index: ImageIndex, mosaic: float) -> None:
    still = {"scale": 0.0, "translate": 0.0, "hsv_hue": 0.0, "hsv_saturation": 0.0, "hsv_value": 0.0}
    augment = AugmentSettings(mosaic=mosaic, mixup=1.0, flip_horizontal=0.0, **still)
    dataset = DetectionDataset(index, image_size=96, augment=augment, seed=1)
    counts = [len(dataset.sample(i).labels) for i in range(9)]
    if not mosaic:
        assert counts == [2] * 9  # one object of each image
        assert len(np.unique(dataset.sample(0).image.reshape(-1, 3), axis=0)) > 2
    assert sum(counts) > 1.5 * sum(samples(index, mosaic=mosaic)) / 4
    assert [len(dataset.sample(i, mosaic=False).labels) for i in range(9)] == [1] * 9  # the last epochs


def test_pasting_adds_objects(index: ImageIndex) -> None:
    plain = sum(samples(index, mosaic=0.0))
    assert sum(samples(index, mosaic=0.0, paste_in=1.0)) > 1.5 * plain
    assert sum(samples(index, mosaic=0.0, copy_paste=1.0)) >= plain


def test_boxes_stay_around_their_objects_with_everything_combined(index: ImageIndex) -> None:
    """At least half of every box has the colours of an object."""
    augment = AugmentSettings(
        mosaic=1.0,
        mosaic_nine=0.5,
        mixup=0.0,
        paste_in=1.0,
        copy_paste=0.5,
        hsv_hue=0.0,
        hsv_saturation=0.0,
        hsv_value=0,
    )
    dataset = DetectionDataset(index, image_size=96, augment=augment, seed=1)
    for i in range(9):
        sample = dataset.sample(i)
        centre, size = sample.boxes_cxcywh[:, :2] * 96, sample.boxes_cxcywh[:, 2:] * 96
        for (x, y), (w, h) in zip(centre, size, strict=True):
            part = sample.image[int(y - h / 2 + 1) : int(y + h / 2), int(x - w / 2 + 1) : int(x + w / 2)]
            if part.size:
                assert (part[..., 1] > 180).mean() > 0.5
