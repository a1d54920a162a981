"""Test where images come from, videos, web addresses, and the threads that read them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from tests.unit.media import FRAMES, jpeg, noise, server, write_video
from yolov7.detect.inputs import as_image
from yolov7.detect.sources import Source, find_sources
from yolov7.detect.threads import in_background, latest, map_in_order
from yolov7.detect.video import Frame, Video
from yolov7.detect.web import without_password
from yolov7.errors import DataError

Item = TypeVar("Item")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.jpg", "a.JPG", "sub/c.png", "sub/.hidden.jpg", "out/drawn.jpg", "notes.md", "film.mp4"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_its_images_and_videos_without_the_results(folder: Path) -> None:
    said: list[str] = []
    found = find_sources(["images"], ignored=Path("images/out"), say=said.append)
    assert said == ["images: files of other types were left out (.md: 1)"]
    assert [(one.kind, one.location, one.output) for one in found] == [
        ("image", "images/a.JPG", "a"),
        ("image", "images/b.jpg", "b"),
        ("video", "images/film.mp4", "film"),
        ("image", "images/sub/c.png", "sub/c"),
    ]


def test_every_other_kind_of_source(folder: Path) -> None:
    (folder / "lists").mkdir()
    (folder / "lists" / "some.txt").write_text("# two\n../images/b.jpg\n\nhttp://host/x.jpg\n", encoding="utf-8")
    names = ["-", "0", "images/*.jpg", "lists/some.txt", "rtsp://me:secret@host/1", "http://host/a%20b.jpg?size=3"]
    found = find_sources(names)
    assert [(one.kind, one.name, one.output) for one in found] == [
        ("stdin", "-", "stdin"),
        ("camera", "0", "camera-0"),
        ("image", "images/b.jpg", "b"),
        ("image", "lists/../images/b.jpg", "b"),
        ("web", "http://host/x.jpg", "x"),
        ("stream", "rtsp://host/1", "1"),
        ("web", "http://host/a%20b.jpg?size=3", "a_b"),
    ]
    assert found[5].location == "rtsp://me:secret@host/1"
    Path("0").write_bytes(b"")
    assert find_sources(["0"])[0].kind == "image"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there is no file, folder or camera 'nothing'; check the path"),
        ("images/*.webp", r"the pattern 'images/\*.webp' matches no file; check it, and put it in quotes"),
        ("empty", "the folder 'empty' has no images and no videos"),
        ("empty.txt", "the list empty.txt names no image"),
        ("binary.txt", "the list binary.txt is not a text file in UTF-8"),
        ("ftp://user:secret@host/x.jpg", "the address ftp://host/x.jpg is of an unknown kind"),
        ("http://[host/x.jpg", r"the address http://\[host/x.jpg is wrong"),
    ],
)
def test_a_source_that_does_not_exist_is_one_line(folder: Path, name: str, message: str) -> None:
    Path("empty").mkdir()
    Path("empty.txt").write_text("# nothing\n", encoding="utf-8")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=message) as caught:
        find_sources([name])
    assert "secret" not in str(caught.value)


def test_passwords_are_not_shown() -> None:
    assert without_password("rtsp://me:p@ss@host:554/a@b") == "rtsp://host:554/a@b"
    assert without_password("images/a@b.jpg") == "images/a@b.jpg"


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "good.jpg").write_bytes(jpeg())
    for suffix in (".avi", ".mkv", ".mp4"):
        whole = write_video(folder / f"film{suffix}")
        content = whole.read_bytes()
        (folder / f"cut{suffix}").write_bytes(content[: len(content) // 2])
    return folder


@pytest.fixture(scope="module")
def site(media: Path) -> Iterator[str]:
    with server(media) as address:
        yield address


def test_images_are_downloaded(site: str) -> None:
    image = as_image(f"{site}/good.jpg")
    assert image.shape == (48, 64, 3)
    private = site.replace("http://", "http://user:p%40ss@") + "/private.jpg"
    assert (as_image(private) == image).all()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/html", "/html is of the type text/html, which is neither an image nor a video; use the address of the file"),
        ("/none.jpg", "/none.jpg: the server answered 404 File not found; check the address"),
        ("/private.jpg", "/private.jpg: the server answered 401"),
        ("/cut.jpg", "image .*/cut.jpg is truncated"),
        ("/film.mp4", "/film.mp4 is a video and not an image"),
        ("/a b", "cannot be read .* check the address and the server"),
    ],
)
def test_what_a_server_sends_instead_of_an_image_is_one_line(site: str, path: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        as_image(site.replace("http://", "http://me:secret@") + path)
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_server_that_does_not_exist() -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:1/x\.jpg cannot be read .*Connection refused"):
        as_image("http://127.0.0.1:1/x.jpg")


def collect(items: Iterable[Item], found: list[Item]) -> None:
    """Append items one by one, so that those before an error are kept."""
    for item in items:
        found.append(item)


def open_video(path: Path) -> Video:
    return Video(Source("video", str(path), "video"))


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_every_frame_of_a_video_is_read(media: Path, suffix: str) -> None:
    with open_video(media / f"film{suffix}") as video:
        assert (video.frame_count, video.frames_per_second, video.is_live) == (FRAMES, 10, False)
        frames = list(video.frames())
    assert [frame.number for frame in frames] == list(range(FRAMES))
    if suffix == ".mkv":  # lossless
        assert (frames[3].image == noise(seed=3)[..., ::-1]).all()
    with open_video(media / f"film{suffix}") as video:
        assert [frame.number for frame in video.frames(every=7)] == [0, 7, 14, 21, 28]


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_video_that_is_cut_yields_its_frames_and_then_one_line(media: Path, suffix: str) -> None:
    frames: list[Frame] = []
    with open_video(media / f"cut{suffix}") as video, pytest.raises(DataError) as caught:
        collect(video.frames(), frames)
    assert 10 < len(frames) < 20
    assert f"ends after {len(frames)} of about {FRAMES} frames; the file is cut off" in str(caught.value)


def test_what_is_not_a_video(media: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("a text", encoding="utf-8")
    for path in (media / "cut.mp4", tmp_path / "text.mp4", tmp_path / "missing.mp4"):
        with pytest.raises(DataError, match=f"video {path} cannot be opened"):
            open_video(path)
    with pytest.raises(DataError, match="camera 99 cannot be opened"):
        Video(Source("camera", "99", "camera-99"))


def test_a_stream_that_stops_yields_its_frames_and_then_one_line(site: str) -> None:
    frames: list[Frame] = []
    with Video(Source("web", f"{site}/stream", "stream")) as video:
        assert video.is_live
        with pytest.raises(DataError, match=f"the stream {site}/stream stopped after 8 frames"):
            collect(video.frames(), frames)
    assert len(frames) == 8
    assert not np.array_equal(frames[0].image, frames[7].image)


def test_results_of_threads_keep_their_order() -> None:
    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        if number == 7:
            raise DataError("seven")
        return number

    found: list[int] = []
    with pytest.raises(DataError, match="seven"):
        collect(map_in_order(slow, range(20), workers=4, ahead=6), found)
    assert found == list(range(7))


def test_a_thread_in_the_background_is_ahead_by_a_bounded_number_of_items_and_bytes() -> None:
    asked: list[int] = []

    def items(count: int) -> Iterator[int]:
        for number in range(count):
            asked.append(number)
            yield number
        raise DataError("the end")

    several = in_background(items(50), size_of=lambda _: 1, most_items=3, most_bytes=100)
    assert next(several) == 0
    time.sleep(0.05)
    assert len(asked) <= 5
    large = in_background(items(50), size_of=lambda _: 80, most_items=100, most_bytes=100)
    asked.clear()
    assert next(large) == 0
    time.sleep(0.05)
    assert len(asked) <= 3
    large.close()  # type: ignore[attr-defined]
    rest: list[int] = []
    with pytest.raises(DataError, match="the end"):
        collect(several, rest)
    assert rest == list(range(1, 50))


def test_of_a_live_source_only_the_newest_item_is_looked_at() -> None:
    go, produced = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        go.wait()
        yield from range(1, 10)
        produced.set()
        raise DataError("stopped")

    found = latest(items())
    assert next(found) == 0
    go.set()
    produced.wait()
    assert next(found) == 9
    with pytest.raises(DataError, match="stopped"):
        next(found)
