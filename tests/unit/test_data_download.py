"""The command `data download` with a local mirror of small archives."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commands import download as command
from pipeline.commands.download import DATA_SETS, Archive, DataSet, download_data
from tests.faulty_server import FaultyServer, cut, faulty_server, status
from yolov7.errors import DataError, SettingError
from yolov7.system.downloads.http_download import Retries

QUICK = Retries(attempts=3, first_wait=0.001, timeout=10)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A mirror of a small `coco2017`, whose sums are those of its archives."""
    with faulty_server() as server:
        parts = {}
        for part, archive in DATA_SETS["coco2017"].parts.items():
            path = tmp_path / "served.zip"
            with zipfile.ZipFile(path, "w") as file:
                file.writestr(f"{archive.name.removesuffix('.zip')}/{part}.txt", part * 1000)
            content = path.read_bytes()
            server.files[f"/mirror/{archive.path}"] = (content, f'"{part}"')
            parts[part] = Archive(archive.path, len(content), hashlib.sha256(content).hexdigest())
        small: DataSet = DATA_SETS["coco2017"]._replace(parts=parts)
        monkeypatch.setitem(command.DATA_SETS, "coco2017", small)
        yield server


def test_a_data_set_from_a_mirror(mirror: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror.faults["/mirror/zips/train2017.zip"] = [cut(100), status(503, Retry_After="0")]
    mirror.faults["/mirror/zips/val2017.zip"] = [status(404)]
    folder = tmp_path / "coco"

    def run(parts: list[str] | None = None) -> str:
        return download_data("coco2017", mirror=f"{mirror.address}/mirror/", parts=parts, folder=folder, retries=QUICK)

    with pytest.raises(DataError, match=r"zips/val2017\.zip: the server answered: 404 Not Found"):
        run()
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")}
    assert names == {"train2017/train.txt", "annotations_trainval2017/annotations.txt"}
    mirror.requests.clear()
    complete, settings = run().splitlines()
    assert complete == f"{folder}: complete (2 archives had been unpacked before)"
    assert settings == f"in params.yaml: data: {{format: coco, path: {folder}}}"
    assert [path for path, _ in mirror.requests] == ["/mirror/zips/val2017.zip"]
    assert (folder / "val2017" / "val.txt").read_text() == "val" * 1000
    assert "its terms of use are at https://cocodataset.org/#termsofuse" in capsys.readouterr().out
    run(["test", "test"])
    assert (folder / "test2017" / "test.txt").is_file()
    assert not list(folder.rglob("*.zip"))


def test_a_wrong_sum(mirror: FaultyServer, tmp_path: Path) -> None:
    content, _ = mirror.files["/mirror/zips/val2017.zip"]
    mirror.files["/mirror/zips/val2017.zip"] = (content[:-1] + b"x", '"other"')
    with pytest.raises(DataError, match=r"but [0-9a-f]{64} is expected; the file was damaged or replaced"):
        download_data("coco2017", mirror=f"{mirror.address}/mirror", parts=["val"], folder=tmp_path / "out")


def test_an_archive_at_an_address(mirror: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, _ = mirror.files["/mirror/zips/val2017.zip"]
    mirror.files["/a/my%20data.zip?key=1"] = (content, '"1"')
    url = f"{mirror.address}/a/my%20data.zip?key=1"
    lines = download_data(url, sha256=hashlib.sha256(content).hexdigest(), retries=QUICK)
    assert lines == "data/my data: complete\nin params.yaml: data: {path: data/my data}"
    assert (tmp_path / "data" / "my data" / "val2017" / "val.txt").is_file()


def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="no data set 'coco'; did you mean 'coco2017'"):
        download_data("coco")
    with pytest.raises(SettingError, match="--parts: coco2017 has no part 'x'; it has train, val, annotations"):
        download_data("coco2017", parts=["x"])
    with pytest.raises(SettingError, match=r"--sha256='12ab' must consist of 64 hexadecimal digits"):
        download_data("http://localhost:1/x.zip", sha256="12ab")  # before anything is downloaded
    with pytest.raises(SettingError, match="--sha256 is for an address"):
        download_data("coco2017", sha256="0" * 64)
    with pytest.raises(SettingError, match="--mirror and --parts are for data sets"):
        download_data("http://x/y.zip", mirror="http://z")
    with pytest.raises(SettingError, match="names no file; give the address of a zip or tar file"):
        download_data("http://x/")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    with pytest.raises(DataError, match=r"about 39\.7 GB are needed, but 1\.0 GB are free"):
        download_data("coco2017", folder=tmp_path / "new" / "folder")
