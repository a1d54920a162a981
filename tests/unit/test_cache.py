"""The cache of decoded images: what it returns, which processes share it, and how much memory or disk it may take."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest

from yolov7.data import cache as module
from yolov7.data.cache import ImageCache, make_cache
from yolov7.data.index import ImageIndex
from yolov7.errors import SettingError

SIZES = [(4, 3), (5, 2), (1, 7)]


def index_of(*hashes: str) -> ImageIndex:
    count = len(hashes)
    return ImageIndex(
        class_names=("thing",),
        paths=tuple(Path(f"/{i}.jpg") for i in range(count)),
        widths=np.ones(count, np.int32),
        heights=np.ones(count, np.int32),
        hashes=hashes,
        box_offsets=np.zeros(count + 1, np.int64),
        boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, bool),
    )


INDEX = index_of("a", "b", "c")
IMAGES = [np.random.default_rng(i).integers(0, 256, (h, w, 3), np.uint8) for i, (w, h) in enumerate(SIZES)]


@pytest.mark.parametrize("on_disk", [False, True])
def test_it_returns_what_was_stored_and_nothing_else(on_disk: bool, tmp_path: Path) -> None:
    cache = ImageCache(SIZES, file=tmp_path / "x" if on_disk else None)
    assert [cache.get(i) for i in range(3)] == [None] * 3
    for i in (2, 0):
        cache.put(i, IMAGES[i])
    assert cache.get(1) is None
    np.testing.assert_array_equal(cache.get(0), IMAGES[0])
    np.testing.assert_array_equal(cache.get(2), IMAGES[2])


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_a_forked_process_fills_it_for_the_others(mode: str, tmp_path: Path) -> None:
    cache = make_cache(INDEX, SIZES, mode=mode, folder=tmp_path)  # type: ignore[arg-type]
    assert cache is not None
    child = os.fork()
    if child == 0:
        cache.put(1, IMAGES[1])
        os._exit(0)
    os.waitpid(child, 0)
    np.testing.assert_array_equal(cache.get(1), IMAGES[1])


def test_a_later_run_finds_the_file_filled_unless_it_has_other_images(tmp_path: Path) -> None:
    first = make_cache(INDEX, SIZES, mode="disk", folder=tmp_path)
    assert first is not None
    first.put(0, IMAGES[0])
    again = make_cache(INDEX, SIZES, mode="disk", folder=tmp_path)
    others = (
        make_cache(index_of("a", "b", "changed"), SIZES, mode="disk", folder=tmp_path),
        make_cache(INDEX, SIZES[::-1], mode="disk", folder=tmp_path),
    )
    assert again is not None
    np.testing.assert_array_equal(again.get(0), IMAGES[0])
    assert all(other is not None and other.get(0) is None for other in others)


def test_after_a_reboot_it_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_cache(INDEX, SIZES, mode="disk", folder=tmp_path / "cache")
    assert first is not None
    first.put(0, IMAGES[0])
    (tmp_path / "boot").write_text("another boot")
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "boot")
    again = make_cache(INDEX, SIZES, mode="disk", folder=tmp_path / "cache")
    assert again is not None
    assert again.get(0) is None


def test_old_files_are_deleted_and_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 2.5 * 1_000_000
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": room})())
    big = [(600, 500)]
    for i, name in enumerate("abc"):
        cache = make_cache(index_of(name), big, mode="disk", folder=tmp_path)
        assert cache is not None
        cache.put(0, np.full((500, 600, 3), 7, np.uint8))
        for path in tmp_path.glob("*.images"):
            os.utime(path, (i, i) if path.stat().st_mtime > 1000 else None)
    assert len(list(tmp_path.glob("*.images"))) < 3
    with pytest.raises(SettingError, match=r"needs 0\.1 GB for decoded images"):
        make_cache(index_of("d"), [(6000, 5000)], mode="disk", folder=tmp_path)


def test_all_processes_of_a_machine_together_stay_within_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three images need 90 bytes."""
    assert make_cache(INDEX, SIZES, mode="none") is None
    assert make_cache(INDEX, SIZES, mode="auto") is not None
    monkeypatch.setattr(module, "available_memory", lambda: 800)
    assert make_cache(INDEX, SIZES, mode="auto", processes=2) is not None
    assert make_cache(INDEX, SIZES, mode="auto", processes=3) is None
    assert make_cache(INDEX, SIZES, mode="memory", processes=8) is not None
    with pytest.raises(
        SettingError, match=r"for each of 9 trainings on this machine, but only .* use cache_images: disk"
    ):
        make_cache(INDEX, SIZES, mode="memory", processes=9)


def test_processes_of_a_run_share_one_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the memory has room for one copy (90 bytes) but not for three."""
    monkeypatch.setattr(module, "available_memory", lambda: 800)
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(3)]
    members = [context.Process(target=_fill_and_read, args=(number, pipes[number][1])) for number in range(3)]
    for member in members:
        member.start()
    for _ in range(4):  # every member exchanges four values
        told = [here.recv() for here, _ in pipes]
        for here, _ in pipes:
            here.send(told)
    for member in members:
        member.join()
    assert told == [[True, True, True]] * 3


def _fill_and_read(number: int, pipe: Connection) -> None:
    """Store one image, wait for the others, and report which images are found."""

    def gather(mine: object) -> list[object]:
        pipe.send(mine)
        return pipe.recv()

    cache = make_cache(INDEX, SIZES, mode="auto", processes=3, gather=gather)
    if cache is not None:
        cache.put(number, IMAGES[number])
    gather(None)
    gather([cache is not None and np.array_equal(cache.get(i), IMAGES[i]) for i in range(3)])


def test_memory_is_measured_without_optional_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = psutil.virtual_memory().total
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert 1 << 20 < module.available_memory() <= expected


def test_a_cache_on_disk_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="needs a folder"):
        make_cache(INDEX, SIZES, mode="disk")
