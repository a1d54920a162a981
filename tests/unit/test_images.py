"""Image files of every odd kind: 8-bit RGB and upright, or a reason; samples of the smallest and largest."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.unit.data_files import make_index, write_image
from yolov7.data.dataset import DetectionDataset
from yolov7.data.images import read_image
from yolov7.data.inspection import inspect_image
from yolov7.errors import DataError
from yolov7.settings import AugmentSettings

pillow = pytest.importorskip("PIL.Image")


def _picture() -> np.ndarray:
    """(24, 32, 3) RGB: a smooth ramp in each channel, which no codec alters much."""
    ramp = np.linspace(20, 220, 32, dtype=np.uint8)
    return np.stack([np.tile(ramp, (24, 1)), np.tile(ramp[::-1], (24, 1)), np.full((24, 32), 90, np.uint8)], axis=2)


def _assert_close(path: Path, expected: np.ndarray, *, mean: float) -> None:
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() <= mean


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
def test_truncated_images_are_found(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"x{suffix}"
    content = write_image(path)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"x\.\w+ is (empty|truncated) \(\d+ bytes\); replace the file"):
        read_image(path)


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.bmp", "x.tif", "x.jp2"])
def test_other_formats_truncated_are_refused(tmp_path: Path, name: str) -> None:
    pillow.fromarray(_picture()).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    _assert_close(tmp_path / name, _picture(), mean=12)
    for share in (0.1, 0.5, 0.9):
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError, match="is not an image"):
            read_image(tmp_path / name)


def test_a_png_with_altered_pixels_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(write_image(tmp_path / "x.png"))
    content[len(content) // 2] ^= 1
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        read_image(tmp_path / "x.png")
    assert capfd.readouterr().err == ""


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("<html>")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DataError, match="is not an image"):
        read_image(tmp_path / "x.jpg")
    for name in ("y.jpg", "folder.jpg", "n" * 300 + ".jpg", "nul\0.jpg"):
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path / name)


def test_grey_and_deep_images_become_rgb(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    grey = np.stack([ramp] * 3, axis=2)
    pillow.fromarray(ramp).save(tmp_path / "grey.jpg", quality=95)
    cv2.imwrite(str(tmp_path / "grey.png"), ramp)
    cv2.imwrite(str(tmp_path / "deep.png"), ramp.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deep.tif"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([grey, 255 - ramp]))
    pillow.fromarray(ramp > 127).save(tmp_path / "one-bit.png")
    for name in ("grey.jpg", "grey.png", "deep.png", "deep.tif", "alpha.png"):
        _assert_close(tmp_path / name, grey, mean=1)
    _assert_close(tmp_path / "one-bit.png", np.where(grey > 127, 255, 0), mean=0)


def test_palette_and_cmyk_images_become_rgb(tmp_path: Path) -> None:
    picture = pillow.fromarray(_picture())
    picture.quantize(256).save(tmp_path / "palette.png")
    picture.quantize(256).save(tmp_path / "palette.gif")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    picture.convert("CMYK").save(tmp_path / "cmyk.tif")
    for name in ("palette.png", "palette.gif", "cmyk.jpg", "cmyk.tif"):
        _assert_close(tmp_path / name, _picture(), mean=6)


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tif"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, name: str) -> None:
    first = pillow.fromarray(_picture())
    others = [pillow.fromarray(255 - _picture()), pillow.fromarray(_picture() // 4)]
    first.save(tmp_path / name, save_all=True, append_images=others)
    assert pillow.open(tmp_path / name).n_frames == 3
    _assert_close(tmp_path / name, _picture(), mean=6)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    content = write_image(tmp_path / "x.jpg", width=60, height=40)
    tags = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    segment = b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags
    (tmp_path / "turned.jpg").write_bytes(content[:2] + segment + content[2:])
    facts = inspect_image(tmp_path / "turned.jpg")
    assert (facts.width, facts.height) == (40, 60)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.jpg"), np.rot90(read_image(tmp_path / "x.jpg"), -1))


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif"])
def test_exif_rotation_in_every_format(tmp_path: Path, name: str, orientation: int) -> None:
    tags = pillow.Exif()
    tags[0x0112] = orientation
    pillow.fromarray(_picture()).save(tmp_path / name, exif=tags)
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    _assert_close(tmp_path / name, np.rot90(_picture(), turns), mean=6)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 16), (1, 3000), (3000, 2), (8000, 6000)])
def test_images_of_any_size_become_samples(tmp_path: Path, width: int, height: int) -> None:
    small = make_index(tmp_path, count=1)
    small.paths[0].write_bytes(cv2.imencode(".jpg", np.full((height, width), 200, np.uint8))[1].tobytes())
    index = replace(small, widths=np.array([width]), heights=np.array([height]))
    for augment in (None, AugmentSettings(mosaic=1.0, mixup=1.0, degrees=10.0)):
        sample = DetectionDataset(index, image_size=64, augment=augment).sample(0, epoch=1)
        assert sample.image.shape == (64, 64, 3)
        assert np.isfinite(sample.boxes_cxcywh).all()
