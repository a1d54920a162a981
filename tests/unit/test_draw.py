"""Test drawings: sizes, positions, unusual images and names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yolov7.detect import text
from yolov7.detect.drawing import captioned, class_colour, contact_sheet, draw_boxes, draw_cells, draw_detections
from yolov7.structures import Detections


def detections(*boxes: tuple[float, float, float, float]) -> Detections:
    count = len(boxes)
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.linspace(0.9, 0.5, count), torch.arange(count))


def test_draws_on_a_copy_in_the_colour_of_the_class() -> None:
    image = np.full((600, 800, 3), 50, np.uint8)
    drawn = draw_detections(image, detections((100, 200, 300, 400)), ["cat"])
    assert (image == 50).all()
    assert drawn.shape == image.shape
    assert tuple(drawn[300, 100].tolist()) == class_colour(0)
    assert (drawn[300, 200] == 50).all()


def test_small_images_are_enlarged() -> None:
    drawn = draw_detections(np.zeros((40, 60, 3), np.uint8), detections((10, 10, 30, 30)), ["cat"])
    assert drawn.shape == (320, 480, 3)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 900, 3), (900, 5, 3)])
def test_odd_images_and_long_names(shape: tuple[int, int, int]) -> None:
    image = np.zeros(shape, np.uint8)
    names = ["a very long name of a class that fits nowhere at all"]
    assert draw_detections(image, detections((0, 0, 1, 1), (0, 0, 5, 5)), names).ndim == 3
    assert draw_detections(image, detections(), names).ndim == 3


def test_neighbouring_classes_differ_in_colour() -> None:
    colours = np.array([class_colour(label) for label in range(20)], int)
    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(20, dtype=int)
    assert distance.min() > 30


def test_contact_sheet() -> None:
    images = [np.zeros((100, 200, 3), np.uint8), np.zeros((200, 100, 3), np.uint8), np.zeros((50, 50, 3), np.uint8)]
    sheet = contact_sheet(images, 2, cell=100, margin=10)
    assert sheet.shape == (100 + 100 + 3 * 10, 2 * 100 + 3 * 10, 3)
    assert (sheet[:10] == 255).all()
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], 3)


def test_cells_hide_the_pale_image_below_them_according_to_their_strength() -> None:
    image = np.full((480, 480, 3), 200, np.uint8)
    cells = np.array([[0.0, 0, 64, 64], [64, 0, 128, 64]])
    drawn = draw_cells(image, cells, colours=[(255, 0, 0)] * 2, strengths=[0.2, 0.9])
    assert (image == 200).all()
    weak, strong, pale = (drawn[32, x].astype(int) for x in (32, 96, 300))
    assert strong[0] > weak[0] > pale[0] - 60
    assert strong[1] < weak[1] < pale[1]


def test_cells_beyond_the_border_are_cut() -> None:
    image = np.zeros((480, 480, 3), np.uint8)
    drawn = draw_cells(image, np.array([[-20.0, 470, 30, 520]]), colours=[(0, 255, 0)], strengths=[1.0])
    assert tuple(drawn[475, 10].tolist()) == (0, 255, 0)


def test_boxes_are_drawn_with_their_texts_and_the_last_on_top() -> None:
    image = np.zeros((480, 480, 3), np.uint8)
    boxes = np.array([[100.0, 100, 300, 300], [100, 200, 400, 400]])
    drawn = draw_boxes(image, boxes, texts=["", ""], colours=[(255, 0, 0), (0, 0, 255)])
    assert tuple(drawn[250, 100].tolist()) == (0, 0, 255)
    assert tuple(drawn[150, 100].tolist()) == (255, 0, 0)
    tagged = draw_boxes(image, boxes, texts=["one", ""], colours=[(255, 0, 0), (0, 0, 255)])
    assert (tagged[:100] != drawn[:100]).any()


def test_a_caption_fits_above_the_image() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    for caption in ("short", "a caption that is much too long for so narrow a picture, whatever it says"):
        picture = captioned(image, caption)
        strip = picture[: picture.shape[0] - 100]
        assert (picture[-100:] == 0).all()
        assert (strip < 128).any()
        assert (strip[:, -1] == 255).all()


def drawn_labels(*names: str) -> list[np.ndarray]:
    """The drawing of one box for each name."""
    image = np.full((480, 480, 3), 50, np.uint8)
    return [draw_detections(image, detections((100, 200, 300, 400)), [name]) for name in names]


def test_names_outside_of_ascii_are_drawn_with_their_characters() -> None:
    """OpenCV draws the same `?` for many characters; DejaVu, which comes with matplotlib, has these."""
    ours = drawn_labels("Ωλ", "Жщ", "éà", "→★", "??")
    for i, one in enumerate(ours):
        assert all((one != other).any() for other in ours[i + 1 :])


def test_names_without_a_font_are_drawn_as_numbers_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(text, "_find_font", lambda _: None)
    text.drawable_names.cache_clear()
    image = np.zeros((480, 480, 3), np.uint8)
    names = ["cat", "日本", "\U0001f600"]
    found = detections((10, 100, 90, 200), (110, 200, 300, 400), (310, 200, 400, 400))
    first, second = draw_detections(image, found, names), draw_detections(image, found, names)
    assert (first == draw_detections(image, found, ["cat", "#1", "#2"])).all()
    assert (first == second).all()
    assert len(caplog.records) == 1
    assert "no installed font can draw the class names 日本, \U0001f600" in caplog.text
    assert "install a font" in caplog.text
    text.drawable_names.cache_clear()


def test_labels_outside_of_ascii_are_cut_at_the_border() -> None:
    image = np.zeros((480, 480, 3), np.uint8)
    long = "Ω" * 100
    assert draw_boxes(image, np.array([[-50.0, -50, 30, 30]]), texts=[long], colours=[(255, 0, 0)]).shape == image.shape
    assert captioned(image, long)[:24].min() < 200


@pytest.mark.parametrize("name", ["$x_$", "<b>&amp;", "a\nb", "\x1b[31m", "", "%s {}", "\U0001f600", "日本"])
def test_odd_names_are_drawn(name: str) -> None:
    assert drawn_labels(name)[0].shape == (480, 480, 3)
