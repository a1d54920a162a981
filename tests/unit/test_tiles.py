"""Test tiled inference and test-time augmentation with an engine that finds bright rectangles exactly."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from yolov7.detect.detector import Detector
from yolov7.detect.tiles import Tiling, join_views
from yolov7.engines.opened_model import OpenedModel
from yolov7.errors import SettingError
from yolov7.settings import NmsSettings
from yolov7.structures import Detections

NMS = NmsSettings()
SIZE = 128


class BrightRectangles:
    """Find the bounding box of each pure colour: red is class 0, green is class 1."""

    needs_suppression = True

    def decode(self, images: Tensor) -> Tensor:
        decoded = torch.zeros(len(images), 2, 7)
        for row, image in zip(decoded, images, strict=True):
            for label in range(2):
                other = image[1 - label] < 64
                ys, xs = ((image[label] > 160) & other & (image[2] < 64)).nonzero(as_tuple=True)
                if len(xs):
                    left, right, top, bottom = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
                    row[label, :4] = torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top))
                    row[label, 4], row[label, 5 + label] = 1.0, 0.9
        return decoded


@pytest.fixture
def detector() -> Detector:
    return Detector(OpenedModel(BrightRectangles(), "test", "float32", ("red", "green"), SIZE, Path("none")))


def scene(width: int, height: int, **boxes: tuple[int, int, int, int]) -> np.ndarray:
    """An image with a red and a green rectangle."""
    image = np.full((height, width, 3), 20, np.uint8)
    for channel, name in enumerate(("red", "green")):
        if name in boxes:
            left, top, right, bottom = boxes[name]
            image[top:bottom, left:right] = 0
            image[top:bottom, left:right, channel] = 255
    return image


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(("width", "height"), [(128, 128), (129, 40), (500, 300), (1000, 129)])
def test_tiles_cover_the_image_and_overlap(width: int, height: int, overlap: float) -> None:
    views = Tiling(SIZE, overlap).views(width, height)
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in views[1:] or views:
        assert right - left == min(SIZE, width)
        assert bottom - top == min(SIZE, height)
        covered[top:bottom, left:right] = True
    assert covered.all()
    assert views[0] == (0, 0, width, height)
    starts = sorted({view[0] for view in views[1:]})
    assert all(b - a <= SIZE * (1 - overlap) + 1 for a, b in pairwise(starts))


@pytest.mark.parametrize(
    "box",
    [
        (10, 20, 40, 60),  # in one tile
        (95, 20, 125, 60),  # in the overlap of two tiles
        (60, 20, 180, 60),  # cut by a border, larger than the overlap
        (5, 100, 390, 140),  # across all tiles of a row
        (80, 80, 140, 140),  # at a corner of four tiles
        (0, 0, 400, 400),  # the whole image
        (100, 0, 130, 400),  # across all tiles of a column
    ],
)
def test_an_object_that_tiles_cut_is_found_once(detector: Detector, box: tuple[int, int, int, int]) -> None:
    found = detector(scene(400, 400, red=box), tiling=Tiling(SIZE, 0.25))
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes_xyxy[0].numpy(), box, atol=3.5)  # the whole image is shrunk 3 times


def test_neighbours_of_another_class_stay_apart(detector: Detector) -> None:
    found = detector(scene(400, 200, red=(60, 20, 150, 60), green=(150, 20, 260, 60)), tiling=Tiling(SIZE, 0.25))
    assert sorted(found.labels.tolist()) == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.9])


def test_neighbours_of_the_same_class_stay_apart() -> None:
    """The left object ends where both tiles see it; the right one begins there and is cut by the left tile."""
    views = [(0, 0, 200, 100), (0, 0, 120, 100), (80, 0, 200, 100)]
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    left = Detections(
        torch.tensor([[30.0, 10, 98, 50], [100, 10, 120, 50]]), torch.tensor([0.9, 0.5]), torch.tensor([0, 0])
    )
    right = Detections(
        torch.tensor([[20.0, 10, 90, 50], [0, 10, 18, 50]]), torch.tensor([0.8, 0.4]), torch.tensor([0, 0])
    )
    joined = join_views(views, [none, left, right], image_size=120, nms=NMS)
    assert sorted(joined.boxes_xyxy.tolist()) == [[30.0, 10.0, 98.0, 50.0], [100.0, 10.0, 170.0, 50.0]]
    assert joined.scores.tolist() == pytest.approx([0.9, 0.8])


def test_no_object_and_a_small_image(detector: Detector) -> None:
    assert len(detector(scene(400, 400), tiling=Tiling(SIZE))) == 0
    small = scene(100, 90, red=(10, 20, 40, 60))
    assert torch.equal(detector(small, tiling=Tiling(SIZE)).boxes_xyxy, detector(small).boxes_xyxy)


def test_wrong_tiles_are_refused() -> None:
    with pytest.raises(SettingError, match="the tile size 8 must be at least 32 pixels"):
        Tiling(8)
    with pytest.raises(SettingError, match=r"the tile overlap 1.0 must be from 0 to 0.9"):
        Tiling(64, 1.0)
    with pytest.raises(SettingError, match=r"into 160,000 parts, and 10,000 are allowed; use larger tiles"):
        Tiling(32, 0.2).views(10_000, 10_000)


def test_all_views_of_test_time_augmentation_agree(detector: Detector) -> None:
    image = torch.from_numpy(scene(SIZE, SIZE, red=(11, 20, 61, 90), green=(90, 30, 120, 70))).permute(2, 0, 1)[None]
    decoded = detector.augmented().engine.decode(image)
    assert decoded.shape == (1, 6, 7)
    plain = BrightRectangles().decode(image)
    torch.testing.assert_close(decoded[:, :2], plain)
    for view in (decoded[:, 2:4], decoded[:, 4:]):
        assert ((view - plain)[..., :4].abs() < 2.5).all()
        torch.testing.assert_close(view[..., 4:], plain[..., 4:])


def test_test_time_augmentation_finds_each_object_once(detector: Detector) -> None:
    found = detector.augmented()(scene(300, 200, red=(20, 30, 140, 120), green=(200, 20, 280, 180)))
    assert sorted(found.labels.tolist()) == [0, 1]
