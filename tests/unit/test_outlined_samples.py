"""Training samples of data with outlines: boxes around the visible parts of rotated, cut and pasted objects."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from yolov7.data.build_index import AnnotatedImage, build_index
from yolov7.data.dataset import DetectionDataset
from yolov7.data.index import ImageIndex
from yolov7.data.outlines import bounds, fill
from yolov7.settings import AugmentSettings

SIDE = 96
STILL = {"hsv_hue": 0.0, "hsv_saturation": 0.0, "hsv_value": 0.0, "mixup": 0.0}
BRIGHT = 185  # green, between the background's and the objects'


def drawn(generator: np.random.Generator) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return a randomly rotated green L on grey, in about half of the cases with a second, separate part."""
    corners = np.array([[0, 0], [32, 0], [32, 10], [10, 10], [10, 44], [0, 44]]) - [16, 22]
    angle = generator.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    ell = (corners @ turn + generator.uniform(34, 62, 2)).astype(np.float32)
    chip = np.array([[2, 2], [14, 2], [2, 14]], np.float32)
    parts = (ell, chip) if generator.random() < 0.5 else (ell,)
    image = np.full((SIDE, SIDE, 3), 114, np.uint8)
    image[fill(parts, width=SIDE, height=SIDE)] = (30, 255, 30)
    return image, parts


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    folder, generator, annotated = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for i in range(8):
        image, outline = drawn(generator)
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), image)
        box = bounds(outline)[None].astype(np.float64)
        annotated.append(AnnotatedImage(path, box, np.array([0]), np.array([False]), outlines=(outline,)))
    return build_index(annotated, class_names=("ell",))[0]


def samples(index: ImageIndex, **settings: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images and boxes (k, 4) as corners, pixels."""
    augment = AugmentSettings(**(STILL | settings))
    dataset = DetectionDataset(index, image_size=SIDE, augment=augment, seed=3)
    made = [dataset.sample(i, epoch=epoch) for i in range(8) for epoch in range(2)]
    assert all(len(sample.labels) == len(sample.boxes_cxcywh) for sample in made)
    halves = np.array([[-0.5, -0.5, 0.5, 0.5]], np.float32)
    return [
        (s.image, (s.boxes_cxcywh[:, [0, 1, 0, 1]] + halves * s.boxes_cxcywh[:, [2, 3, 2, 3]]) * SIDE) for s in made
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"mosaic": 0.0},
        {"degrees": 0.0},
        {"degrees": 180.0, "scale": 0.3},
        {"degrees": 30.0, "shear": 15.0, "perspective": 0.001, "mosaic_nine": 0.5},
    ],
)
def test_boxes_are_around_the_pixels_of_their_objects(index: ImageIndex, settings: dict[str, float]) -> None:
    """Compare boxes that are separate from all others; a few objects have tips that are thinner than a pixel."""
    errors = []
    for image, boxes in samples(index, **settings):
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            others = np.delete(boxes, i, axis=0)
            near = (others[:, :2] < [x2 + 3, y2 + 3]).all(axis=1) & (others[:, 2:] > [x1 - 3, y1 - 3]).all(axis=1)
            if near.any():
                continue
            left, top = max(int(x1) - 2, 0), max(int(y1) - 2, 0)
            green = image[top : int(y2) + 3, left : int(x2) + 3, 1] > BRIGHT
            rows, columns = np.flatnonzero(green.any(axis=1)), np.flatnonzero(green.any(axis=0))
            found = [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]
            errors.append(np.abs(np.array([x1, y1, x2, y2]) - found).max())
    assert len(errors) > 10
    assert np.median(errors) < 1
    assert np.quantile(errors, 0.8) < 2


@pytest.mark.parametrize("settings", [None, {"flip_horizontal": 1.0, "flip_vertical": 1.0}, {"degrees": 45.0}])
def test_outlines_are_where_their_objects_are(index: ImageIndex, settings: dict[str, float] | None) -> None:
    augment = AugmentSettings(**(STILL | settings)) if settings is not None else None
    dataset = DetectionDataset(index, image_size=2 * SIDE, augment=augment)
    both, either = 0, 0
    for i in range(8):
        sample = dataset.sample(i)
        assert len(sample.outlines) == len(sample.labels) > 0
        within = np.any([fill(outline, width=2 * SIDE, height=2 * SIDE) for outline in sample.outlines], axis=0)
        green = sample.image[..., 1] > BRIGHT
        both, either = both + (within & green).sum(), either + (within | green).sum()
    assert both > 0.85 * either  # edges are blurred


def test_boxes_of_rotated_outlines_are_smaller_than_those_of_rotated_boxes(index: ImageIndex) -> None:
    areas = []
    for given in (index, replace(index, outlines=None)):
        boxes = np.concatenate([boxes for _, boxes in samples(given, degrees=45.0, mosaic=0.0, translate=0.0)])
        areas.append(np.median((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)))
    assert areas[0] < 0.8 * areas[1]


def test_without_rotation_outlines_only_change_the_boxes_of_cut_objects(index: ImageIndex) -> None:
    for (image, boxes), (same, others) in zip(
        samples(index, mosaic=0.0), samples(replace(index, outlines=None), mosaic=0.0), strict=True
    ):
        np.testing.assert_array_equal(image, same)
        assert (boxes[:, :2] >= others[:, :2] - 1e-3).all()
        assert (boxes[:, 2:] <= others[:, 2:] + 1e-3).all()


def test_objects_are_pasted_mixed_and_rotated(index: ImageIndex) -> None:
    plain, pasted = (samples(index, mosaic=0.0, **more) for more in ({}, {"paste_in": 1.0, "copy_paste": 1.0}))
    assert sum(len(boxes) for _, boxes in pasted) > 1.5 * sum(len(boxes) for _, boxes in plain)
    mixed = samples(index, mixup=1.0, copy_paste=0.5, paste_in=0.5, degrees=10.0)
    assert all(((boxes >= -1e-3) & (boxes <= SIDE + 1e-3)).all() for _, boxes in mixed)
