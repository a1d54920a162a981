"""Changes of colour against Python's own conversions; in one pass, and in OpenCV's steps."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from yolov7.data.augment import colour
from yolov7.data.augment.colour import Gains, draw_gains, recolour, recolour_in_steps
from yolov7.data.images import Image
from yolov7.settings import AugmentSettings

GAINS = [Gains(1.0, 1.0, 1.0), Gains(1.4, 0.4, 1.3), Gains(0.985, 1.7, 0.6), Gains(0.6, 2.0, 2.0), Gains(1.1, 0.0, 1.0)]
needs_compiler = pytest.mark.skipif(colour._colour is None, reason="installed where there was no compiler")


def image_of_all_kinds() -> Image:
    """Random, dark, nearly grey, grey, and one of each corner of the cube; (20, 307, 3), no width of any vector."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (20, 307, 3), dtype=np.uint8)
    image[5:8] = random.integers(0, 4, (3, 307, 3))
    image[8:12] = random.integers(120, 124, (4, 307, 3))
    image[12:14] = random.integers(0, 256, (2, 307, 1))
    image[14, :8] = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    return image


def recoloured_exactly(image: Image, gains: Gains) -> np.ndarray:
    """Levels (H, W, 3), not rounded."""
    pixels = []
    for r, g, b in (image.reshape(-1, 3) / 255).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(r, g, b)
        varied = hue * gains.hue % 1.0, min(saturation * gains.saturation, 1.0), min(value * gains.value, 1.0)
        pixels.append(colorsys.hsv_to_rgb(*varied))
    return np.array(pixels).reshape(image.shape) * 255


@needs_compiler
@pytest.mark.parametrize("gains", GAINS)
def test_one_pass_is_exact(gains: Gains) -> None:
    image = image_of_all_kinds()
    assert np.abs(recolour(image, gains) - recoloured_exactly(image, gains)).max() <= 0.501


@pytest.mark.parametrize("gains", GAINS)
def test_steps_are_exact_but_for_their_rounding(gains: Gains) -> None:
    image = image_of_all_kinds()
    changed = np.empty_like(image)
    recolour_in_steps(image, changed, *gains)
    error = np.abs(changed - recoloured_exactly(image, gains))
    assert error.mean() < 1
    assert np.quantile(error, 0.99) < 6


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
def test_a_part_changes_as_in_the_whole_and_alone(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(colour, "_colour", None)
    image, gains, part = image_of_all_kinds(), Gains(0.9, 1.5, 0.8), np.s_[3:9, 40:300]
    before, whole, out = image.copy(), recolour(image, gains), np.zeros_like(image)
    assert (image == before).all()
    recolour(image[part], gains, out=out[part])
    assert np.abs(out[part].astype(int) - whole[part]).max() <= (0 if compiled else 3)  # vectorised and not
    out[part] = 0
    assert not out.any()
    assert recolour(image, gains, out=image) is image
    assert (image == whole).all()


def test_colour_stays_when_gains_are_zero() -> None:
    image, other = image_of_all_kinds(), np.zeros((20, 307, 3), np.uint8)
    still = AugmentSettings(hsv_hue=0, hsv_saturation=0, hsv_value=0)
    gains = draw_gains(still, generator=np.random.default_rng(0))
    assert recolour(image, gains) is image
    assert (recolour(image, gains, out=other) == image).all()


def test_gains_are_drawn_within_the_settings() -> None:
    settings, generator = AugmentSettings(hsv_hue=0.1, hsv_saturation=0.5, hsv_value=0.9), np.random.default_rng(0)
    drawn = np.array([draw_gains(settings, generator=generator) for _ in range(500)])
    np.testing.assert_allclose(drawn.min(axis=0), [0.9, 0.5, 0.1], atol=0.02)
    np.testing.assert_allclose(drawn.max(axis=0), [1.1, 1.5, 1.9], atol=0.02)


@needs_compiler
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)[..., :3]),
        (np.zeros((4, 8, 3), np.uint8)[:, ::2], np.zeros((4, 4, 3), np.uint8)),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)),
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3), np.float32)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)[:, :, ::-1]),
    ],
)
def test_what_is_no_image_is_refused(source: np.ndarray, target: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"two images \(H, W, 3\) of bytes and of one size are needed"):
        colour._colour.recolour(source, target, 1.0, 1.0, 1.0)


@needs_compiler
def test_an_image_that_is_not_to_be_written_to_stays() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        colour._colour.recolour(image, image, 1.0, 1.0, 1.0)
    assert recolour(image, Gains(1.0, 1.0, 1.0)).flags.writeable
