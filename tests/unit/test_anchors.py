"""Anchors: recall compared with hand-counted values, fitted anchors, and the choice between them and the spec's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from yolov7.data.box_sizes import count_small_boxes
from yolov7.data.index import ImageIndex
from yolov7.spec.spec_files import load_spec, spec_from_json, spec_to_json
from yolov7.training.anchors import (
    box_sizes,
    choose_anchors,
    differ_in_anchors_only,
    fit_anchors,
    measure_anchors,
    with_anchors,
)


def index_of(sizes: np.ndarray, *, width: int = 640, height: int = 320) -> ImageIndex:
    """Build a split with one box per image, in the corner."""
    count = len(sizes)
    return ImageIndex(
        class_names=("thing",),
        paths=tuple(Path(f"/{i}.jpg") for i in range(count)),
        widths=np.full(count, width, np.int32),
        heights=np.full(count, height, np.int32),
        hashes=("",) * count,
        box_offsets=np.arange(count + 1),
        boxes_xyxy=np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.float32),
        labels=np.zeros(count, np.int64),
        crowd=np.zeros(count, bool),
    )


def clusters(centres: list[tuple[float, float]], *, each: int = 40) -> np.ndarray:
    random = np.random.default_rng(3)
    return np.concatenate([np.array(centre) * np.exp(random.normal(0, 0.05, (each, 2))) for centre in centres])


def test_recall_counts_boxes_that_an_anchor_fits_on_both_sides() -> None:
    anchors = np.array([[10.0, 10.0], [100.0, 100.0]])
    sizes = np.array([[10, 10], [39, 10], [41, 10], [35, 35], [10, 100], [399, 26]], float)
    # fits by the ratio 4: first; first; none (4.1); both; none; second (3.99 and 3.85)
    fit = measure_anchors(sizes, anchors, threshold=4.0)
    assert fit.recall == pytest.approx(4 / 6)
    assert fit.anchors_per_box == pytest.approx(5 / 6)


def test_the_recall_of_no_boxes_is_unknown() -> None:
    fit = measure_anchors(np.zeros((0, 2)), np.ones((3, 2)), threshold=4.0)
    assert (fit.recall, fit.anchors_per_box) == (None, None)
    assert str(fit) == "recall unknown, as there are no boxes"


def test_small_boxes_are_counted_without_crowd_regions() -> None:
    index = index_of(np.array([[64.0, 32], [64, 2], [2, 64], [2, 2]]))
    index.crowd[3] = True
    assert count_small_boxes(index, image_size=656) == (0, 3)
    assert count_small_boxes(index, image_size=640) == (2, 3)  # augmentation drops sides of exactly 2 pixels too


def test_a_ratio_of_just_the_threshold_does_not_fit() -> None:
    assert measure_anchors(np.array([[8.0, 2.0]]), np.array([[2.0, 2.0]]), threshold=4.0).recall == 0


def test_sizes_are_those_of_training_images_without_crowds_and_specks() -> None:
    index = index_of(np.array([[64.0, 32], [64, 32], [2, 2]]))
    index.crowd[1] = True
    np.testing.assert_allclose(box_sizes(index, image_size=320), [[32, 16]])
    np.testing.assert_allclose(box_sizes(index, image_size=1280), [[128, 64], [4, 4]])


def test_fitted_anchors_find_the_clusters_and_rise_with_the_levels() -> None:
    centres = [(6.0, 8.0), (20.0, 12.0), (40.0, 60.0), (90.0, 30.0), (150.0, 160.0), (400.0, 300.0)]
    anchors = fit_anchors(clusters(centres), num_levels=3, per_level=2, threshold=4.0)
    assert anchors.shape == (3, 2, 2)
    np.testing.assert_allclose(anchors.reshape(-1, 2), sorted(centres, key=lambda c: c[0] * c[1]), rtol=0.05)


def test_fitting_gives_the_same_anchors_again() -> None:
    sizes = clusters([(10.0, 20.0), (60.0, 60.0), (200.0, 100.0)])
    first, again = (fit_anchors(sizes, num_levels=3, per_level=1, threshold=4.0) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    ("scale", "mode", "uses_fitted"),
    [(1, "auto", False), (1, "fit", True), (30, "auto", True), (30, "spec", False)],
)
def test_anchors_change_when_asked_or_where_the_specs_miss_boxes(scale: float, mode: str, uses_fitted: bool) -> None:
    sizes = clusters([(13.0, 16.0), (30.0, 60.0), (120.0, 90.0), (300.0, 300.0)]) * (1, 1 / scale)
    choice = choose_anchors(
        load_spec("yolov7-tiny"),
        index_of(sizes, height=640),
        image_size=640,
        threshold=4.0,
        mode=mode,  # type: ignore[arg-type]
    )
    assert choice.own.is_sufficient == (scale == 1)
    assert choice.fitted.is_sufficient
    assert choice.uses_fitted == uses_fitted


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_boxes_change_nothing(count: int) -> None:
    index = index_of(np.full((count, 2), (300.0, 3.0)) + np.arange(count)[:, None])
    choice = choose_anchors(load_spec("yolov7-tiny"), index, image_size=640, threshold=4.0, mode="fit")
    assert not choice.uses_fitted


def test_a_spec_with_other_anchors_is_the_same_but_for_them() -> None:
    spec = load_spec("yolov7-w6")
    other = with_anchors(spec, np.arange(1, 25).reshape(4, 3, 2).astype(float))
    assert other.head.anchors[1] == (7, 8, 9, 10, 11, 12)
    assert spec_from_json(spec_to_json(other)) == other != spec
    assert differ_in_anchors_only(spec, other)
    assert not differ_in_anchors_only(load_spec("yolov7-tiny"), load_spec("yolov7"))
