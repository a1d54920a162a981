"""Changes of colour against Python's own conversions, and the compiled form against NumPy's."""

from __future__ import annotations

import colorsys
import hashlib

import numpy as np
import pytest

from yolov7.data.augment import colour
from yolov7.data.augment.colour import Gains, draw_gains, recolour, recolour_with_numpy
from yolov7.data.images import Image
from yolov7.settings import AugmentSettings

GAINS = [Gains(1.0, 1.0, 1.0), Gains(1.4, 0.4, 1.3), Gains(0.985, 1.7, 0.6), Gains(0.6, 2.0, 2.0), Gains(1.1, 0.0, 1.0)]
needs_compiler = pytest.mark.skipif(colour._colour is None, reason="the package was installed without a C compiler")
FORMS = [pytest.param("compiled", marks=needs_compiler), "numpy"]


@pytest.fixture
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make `recolour` use one of the two forms."""
    if request.param == "numpy":
        monkeypatch.setattr(colour, "_colour", None)
    return str(request.param)


both_forms = pytest.mark.parametrize("form", FORMS, indirect=True)


def image_of_all_kinds() -> Image:
    """Return random, dark, nearly grey and grey pixels and the corners of the RGB cube (20, 307, 3)."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (20, 307, 3), dtype=np.uint8)
    image[5:8] = random.integers(0, 4, (3, 307, 3))
    image[8:12] = random.integers(120, 124, (4, 307, 3))
    image[12:14] = random.integers(0, 256, (2, 307, 1))
    image[14, :8] = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    return image


def lattice_of_colours() -> Image:
    """Return 64 levels of each channel, the extremes among them, in all combinations: (512, 512, 3)."""
    levels = np.round(np.linspace(0, 255, 64)).astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=3).reshape(512, 512, 3)


def recoloured_exactly(image: Image, gains: Gains) -> np.ndarray:
    """Return levels (H, W, 3), not rounded."""
    pixels = []
    for r, g, b in (image.reshape(-1, 3) / 255).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(r, g, b)
        varied = hue * gains.hue % 1.0, min(saturation * gains.saturation, 1.0), min(value * gains.value, 1.0)
        pixels.append(colorsys.hsv_to_rgb(*varied))
    return np.array(pixels).reshape(image.shape) * 255


@both_forms
@pytest.mark.parametrize("gains", GAINS)
def test_colours_are_exact(form: str, gains: Gains) -> None:
    image = image_of_all_kinds()
    assert np.abs(recolour(image, gains) - recoloured_exactly(image, gains)).max() <= 0.501


@both_forms
def test_every_machine_gives_the_same_bytes(form: str) -> None:
    """The digest was computed with gcc 12 and with NumPy 2.4, on x86-64 with and without AVX."""
    random, digest = np.random.default_rng(0), hashlib.sha256()
    for gains in [*GAINS, *(Gains(*row) for row in random.uniform([0.6, 0, 0], [1.4, 2, 2], (8, 3)).tolist())]:
        digest.update(recolour(lattice_of_colours(), gains).tobytes())
    assert digest.hexdigest() == "ac070ae2af4cfa6099188e9ccc31bb51b6ec21c72a58fd30dc3f74bd779ab880"


@needs_compiler
def test_numpy_gives_the_bytes_of_the_compiled_form() -> None:
    """For random gains beyond the settings' limits too, and for any shape and part of an image."""
    random = np.random.default_rng(1)
    for _ in range(60):
        height, width = (int(side) for side in random.integers(1, 90, 2))
        image = random.integers(0, 256, (height, width + 5, 3), dtype=np.uint8)[:, 2 : width + 2]
        if random.random() < 0.3:
            image //= 32
        gains = random.uniform(0.0, [1.9, 3.0, 3.0]).tolist()
        expected, found = np.empty(image.shape, np.uint8), np.empty(image.shape, np.uint8)
        colour._colour.recolour(image, expected, *gains)
        recolour_with_numpy(image, found, *gains)
        np.testing.assert_array_equal(found, expected)


@both_forms
def test_a_part_changes_as_in_the_whole_and_alone(form: str) -> None:
    image, gains, part = image_of_all_kinds(), Gains(0.9, 1.5, 0.8), np.s_[3:9, 40:300]
    before, whole, out = image.copy(), recolour(image, gains), np.zeros_like(image)
    assert (image == before).all()
    recolour(image[part], gains, out=out[part])
    assert (out[part] == whole[part]).all()
    out[part] = 0
    assert not out.any()
    assert recolour(image, gains, out=image) is image
    assert (image == whole).all()


@both_forms
@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (1, 1, 3), (1, 40_000, 3)])
def test_any_size_is_recoloured(form: str, shape: tuple[int, int, int]) -> None:
    image = np.full(shape, (200, 100, 50), np.uint8)
    expected = np.broadcast_to(np.array([100, 50, 25], np.uint8), shape)
    np.testing.assert_array_equal(recolour(image, Gains(1.0, 1.0, 0.5)), expected)


def test_colours_stay_when_gains_are_zero() -> None:
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
def test_the_compiled_form_refuses_other_arrays(source: np.ndarray, target: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"source and target must be images \(H, W, 3\) of bytes and of the same size"):
        colour._colour.recolour(source, target, 1.0, 1.0, 1.0)


@needs_compiler
def test_a_read_only_image_is_not_written_to() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        colour._colour.recolour(image, image, 1.0, 1.0, 1.0)
    assert recolour(image, Gains(1.0, 1.0, 1.0)).flags.writeable
