"""Unpacking of archives: repeated after interruptions, and hostile archives are refused without writing outside."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from yolov7.errors import DataError
from yolov7.system.downloads import unpack as module
from yolov7.system.downloads.unpack import unpack

FILES = {"train2017/1.jpg": b"one", "annotations/a.json": b"{}" * 1000, "empty.txt": b""}


def write_zip(path: Path, files: dict[str, bytes], *, mode: int = 0o644, how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, content, how)
    return path


def write_tar(path: Path, files: dict[str, bytes], *, kind: bytes = tarfile.REGTYPE, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, "/etc/passwd", len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def found(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_every_kind_of_archive(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "zip":
        write_zip(path, FILES)
    else:
        write_tar(path, FILES, mode="w" if kind == "tar" else f"w:{kind[4:]}")
    seen: list[int] = []
    assert unpack(path, tmp_path / "out", progress=seen.append) == 3
    assert (found(tmp_path / "out"), seen) == (FILES, [3, 2003, 2003])
    (tmp_path / "out" / "train2017" / "1.jpg").unlink()
    assert unpack(path, tmp_path / "out") == 3
    assert found(tmp_path / "out") == FILES


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", FILES)
    edited = tmp_path / "out" / "annotations" / "a.json"
    edited.parent.mkdir(parents=True)
    edited.write_text("edited")
    with pytest.raises(DataError, match=r"a\.json exists already and has another size; move it away"):
        unpack(path, tmp_path / "out")
    assert edited.read_text() == "edited"


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "C:/x", "a\\..\\x", "a\nb", "..", "./.", "a" * 2000, "C:x"]
)
def test_paths_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    for path in (write_zip(tmp_path / "x.zip", {name: b"x"}), write_tar(tmp_path / "x.tar", {name: b"x"})):
        with pytest.raises(DataError, match="has a file with the unsafe path") as caught:
            unpack(path, tmp_path / "a" / "out")
        assert "\n" not in str(caught.value)
        assert found(tmp_path / "a") == {}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(DataError, match="which is a link or a device and not a file"):
        unpack(write_tar(tmp_path / "x.tar", {"link": b""}, kind=kind), tmp_path / "out")
    if kind == tarfile.SYMTYPE:
        with pytest.raises(DataError, match="which is a link or a device and not a file"):
            unpack(write_zip(tmp_path / "x.zip", {"link": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), tmp_path / "out")
    assert found(tmp_path / "out") == {}


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALL", 1 << 20)
    bomb = {f"{i}.txt": bytes(1 << 20) for i in range(3)}  # shrinks to a thousandth
    with pytest.raises(DataError, match=r"unpacks to more than 0\.00 GB, but 0\.00 GB are the limit by its own size"):
        unpack(write_zip(tmp_path / "x.zip", bomb), tmp_path / "zip")
    assert found(tmp_path / "zip") == {}
    with pytest.raises(DataError, match="are the limit by its own size and the free disk space"):
        unpack(write_tar(tmp_path / "x.tar.gz", bomb, mode="w:gz"), tmp_path / "tar")
    assert len(found(tmp_path / "tar")) == 1
    plain = write_zip(tmp_path / "y.zip", {"a": bytes(1000)}, how=zipfile.ZIP_STORED)
    content = plain.read_bytes()
    directory, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entry = content[directory:end]
    counts = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, 3 * len(entry), directory, 0)
    plain.write_bytes(content[:directory] + 3 * entry + counts)  # three entries with the same content
    with pytest.raises(DataError, match="its entries overlap, which real archives never do"):
        unpack(plain, tmp_path / "y")


def test_damaged_archives_and_other_files(tmp_path: Path) -> None:
    for name, content in (("page.zip", b"<html></html>"), ("empty.zip", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="is neither a zip nor a tar file; check the address"):
            unpack(tmp_path / name, tmp_path / "out")
    path = write_zip(tmp_path / "x.zip", {"a": b"abc" * 1000}, how=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"abcabc", b"abdabc", 1))
    with pytest.raises(DataError, match=r"is a damaged archive \(Bad CRC-32 .*; delete it, then download it again"):
        unpack(path, tmp_path / "out")
    path = write_tar(tmp_path / "x.tar.gz", {"a": bytes(range(256)) * 400}, mode="w:gz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"is a damaged archive \(.*; delete it, then download it again"):
        unpack(path, tmp_path / "out")
    assert found(tmp_path / "out") == {}
