"""Image files that would take gigabytes, never end, or carry bytes behind the picture."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.unit.data_files import write_coco, write_image
from yolov7.data.flaws import FlawKind
from yolov7.data.image_headers import read_header
from yolov7.data.images import decode_image, explain_refusal, read_image
from yolov7.data.inspection import inspect_image
from yolov7.data.read.coco import read_coco
from yolov7.errors import DataError
from yolov7.system.files import open_regular

WIDE, HIGH = 50_000, 20_000
PIXELS = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)


def encoded(suffix: str, pixels: np.ndarray = PIXELS) -> bytearray:
    return bytearray(cv2.imencode(suffix, pixels)[1].tobytes())


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", WIDE, HIGH, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    content = encoded(".jpg")
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", HIGH, WIDE)
    return bytes(content)


def bmp() -> bytes:
    content = encoded(".bmp")
    content[18:26] = struct.pack("<ii", WIDE, -HIGH)
    return bytes(content)


def gif() -> bytes:
    content = encoded(".gif")
    content[6:10] = struct.pack("<HH", WIDE, HIGH)
    return bytes(content)


def tiff() -> bytes:
    content = encoded(".tiff")
    (start,) = struct.unpack_from("<I", content, 4)
    for k in range(struct.unpack_from("<H", content, start)[0]):
        place = start + 2 + 12 * k
        tag, kind = struct.unpack_from("<HH", content, place)
        if tag in (256, 257):
            value = WIDE if tag == 256 else HIGH
            content[place + 8 : place + 12] = struct.pack("<I" if kind == 4 else "<HH", value, *([0] * (kind == 3)))
    return bytes(content)


def jpeg_2000() -> bytes:
    content = encoded(".jp2")
    place = content.index(b"\xff\x4f\xff\x51")
    content[place + 8 : place + 16] = struct.pack(">II", WIDE, HIGH)
    return bytes(content)


def pnm() -> bytes:
    return f"P6\n# comment\n{WIDE} {HIGH}\n255\n".encode() + bytes(100)


def webp() -> bytes:
    flags_and_size = bytes(4) + (WIDE - 1).to_bytes(3, "little") + (HIGH - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + flags_and_size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def avif() -> bytes:
    return (
        struct.pack(">I", 16)
        + b"ftypavif"
        + bytes(4)
        + struct.pack(">I", 20)
        + b"ispe"
        + struct.pack(">III", 0, WIDE, HIGH)
    )


HOSTILE: tuple[Callable[[], bytes], ...] = (png, jpeg, bmp, gif, tiff, jpeg_2000, pnm, webp, avif)


@pytest.mark.parametrize("make", HOSTILE)
def test_pixels_are_counted_before_they_are_decoded(make: Callable[[], bytes]) -> None:
    content = make()
    header = read_header(content)
    assert header is not None
    assert (header.width, header.height) == (WIDE, HIGH)
    assert decode_image(content) is None
    allowed = 178_956_970 * 8 // header.bits
    assert explain_refusal(content) == f"has {WIDE} x {HIGH} pixels, and {allowed:,} are allowed"


def test_such_files_take_no_memory(tmp_path: Path) -> None:
    for make in HOSTILE:
        (tmp_path / f"{make.__name__}.jpg").write_bytes(make())
    code = (
        "import sys, resource, pathlib\nfrom yolov7.data.images import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try: read_image(path)\n    except ValueError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (20, 20))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, preexec_fn=limit
    )
    assert int(done.stdout) < 100_000  # KiB


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".tiff", ".jp2", ".ppm", ".webp", ".avif"])
def test_headers_state_the_size_of_the_decoded_image(suffix: str) -> None:
    content = bytes(encoded(suffix))
    header = read_header(content)
    assert header is not None
    assert (header.width, header.height, header.bits) == (96, 72, 16 if suffix == ".jp2" else 8)
    assert decode_image(content) is not None


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm", ".jp2"])
def test_16_bit_images_of_low_range_are_told(tmp_path: Path, suffix: str) -> None:
    ramp = np.tile(np.linspace(200, 4000, 96).astype(np.uint16), (64, 1))
    for name, pixels, expected in (("low", ramp, 4000), ("full", ramp * 16, None), ("black", ramp * 0, None)):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(encoded(suffix, pixels))
        assert inspect_image(path).largest_value == expected
    path = write_coco(tmp_path, images=[{"file_name": f"low{suffix}", "skip": True}], annotations=[])
    assert [flaw.kind for flaw in read_coco(path)[1]] == [FlawKind.SIZE, FlawKind.LOW_RANGE, FlawKind.BACKGROUND]


def test_bytes_behind_the_picture_are_allowed(tmp_path: Path) -> None:
    """A motion photo: a JPEG file, then a video, in which markers of pictures may stand by chance."""
    content = write_image(tmp_path / "x.jpg")
    for tail in (b"\xff\xda video \xff\xda", b"\xff\xd9 video", b"\xff\xd8\xff\xe1 \xff\xda", bytes(5000)):
        (tmp_path / "y.jpg").write_bytes(content + tail)
        np.testing.assert_array_equal(read_image(tmp_path / "y.jpg"), read_image(tmp_path / "x.jpg"))


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(tmp_path: Path) -> None:
    content = write_image(tmp_path / "x.jpg")
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    (tmp_path / "y.jpg").write_bytes(content[:2] + thumbnail + content[2:])
    assert read_image(tmp_path / "y.jpg").shape == (40, 60, 3)
    for length in (len(thumbnail) + 2, len(thumbnail) + 500, len(thumbnail) - 10):
        (tmp_path / "y.jpg").write_bytes((content[:2] + thumbnail + content[2:])[:length])
        with pytest.raises(DataError, match="is truncated"):
            read_image(tmp_path / "y.jpg")


def test_progressive_files_with_many_scans_are_refused() -> None:
    content = cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    place = content.index(b"\xff\xc2")
    huge = content[: place + 5] + struct.pack(">HH", 10_000, 10_000) + content[place + 9 : -2]
    scan = huge[huge.rindex(b"\xff\xda") :]
    bomb = huge + scan * 100 + b"\xff\xd9"
    assert "goes" in explain_refusal(bomb)
    assert decode_image(content) is not None


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    begin = time.monotonic()
    for name in ("pipe.jpg", "zero.jpg", "folder.jpg"):
        with pytest.raises(OSError, match=f"{name}"):
            open_regular(tmp_path / name)
        with pytest.raises(DataError, match=r"cannot be read \((Not a regular file|Is a directory)\)"):
            read_image(tmp_path / name)
    images = [{}, *({"file_name": f"../{name}.jpg", "skip": True} for name in ("pipe", "zero"))]
    index, flaws = read_coco(write_coco(tmp_path, images=images, annotations=[]))
    assert (len(index), [flaw.detail for flaw in flaws[:2]]) == (1, ["no objects", "not a regular file"])
    (tmp_path / "link.json").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"link\.json cannot be read \(Not a regular file\)"):
        read_coco(tmp_path / "link.json")
    assert time.monotonic() - begin < 20  # a hang would last for ever


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    for content in (b"\0" * 100, b"II*\0\xff\xff\xff\xff", b"BM", b"RIFF1234WEBP", b"P5 x", b"\xff\xd8\xff"):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.jpg is (not an image of a known format \(JPEG, PNG|truncated)"):
            read_image(tmp_path / "x.jpg")


def test_only_files_that_need_several_scans_count_them() -> None:
    content = cv2.imencode(".jpg", PIXELS)[1].tobytes()
    header = read_header(content + b"\xff\xda" * 9)  # a decoder stops after the first scan, which has all channels
    assert header is not None
    assert header.scans == 1
    frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
    progressive = content[:frame] + b"\xff\xc2" + content[frame + 2 :]
    partial = content[: scan + 4] + b"\x01" + content[scan + 5 :]
    for several in (progressive, partial):
        header = read_header(several + several[scan:])
        assert header is not None
        assert header.scans == 2
