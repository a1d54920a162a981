"""Downloads from a server with faults: resumed, retried, verified, or refused in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_server import Fault, FaultyServer, chunked_and_cut, cut, faulty_server, page, silence, status
from yolov7.errors import ArtifactError, DataError, SettingError
from yolov7.system.downloads import http_download
from yolov7.system.downloads.http_download import Retries, download
from yolov7.system.locks import exclusive

CONTENT = bytes(range(256)) * 20
SUM = hashlib.sha256(CONTENT).hexdigest()
QUICK = Retries(attempts=3, first_wait=0.001, timeout=10)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as running:
        running.files["/x.zip"] = (CONTENT, '"1"')
        yield running


def fetch(server: FaultyServer, path: Path, *faults: Fault, **how: Any) -> str:
    server.faults["/x.zip"] = list(faults)
    return download(f"{server.address}/x.zip", path / "x.zip", **{"retries": QUICK, **how})


def refusal(server: FaultyServer, path: Path, *faults: Fault, **how: Any) -> str:
    with pytest.raises(DataError) as caught:
        fetch(server, path, *faults, **how)
    message = str(caught.value)
    assert message.startswith(f"{server.address}/x.zip: ")
    assert "\n" not in message
    assert not (path / "x.zip").exists()
    return message


def ranges(server: FaultyServer) -> list[str | None]:
    return [headers.get("Range") for _, headers in server.requests]


def test_a_file_appears_with_its_sum(server: FaultyServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert fetch(server, tmp_path, sha256=SUM.upper(), progress=lambda *at: seen.append(at)) == SUM
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert (seen[0], seen[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["x.zip"]


def test_a_cut_connection_is_continued(server: FaultyServer, tmp_path: Path) -> None:
    fetch(server, tmp_path, cut(1000), cut(500), cut(1), cut(1), cut(1), sha256=SUM)
    assert ranges(server) == [None, *(f"bytes={at}-" for at in (1000, 1500, 1501, 1502, 1503))]
    assert server.requests[1][1]["If-Range"] == '"1"'


def test_a_second_run_continues_the_first(server: FaultyServer, tmp_path: Path) -> None:
    message = refusal(server, tmp_path, cut(1000), cut(0), cut(0), cut(0))
    assert message.endswith(
        "the connection ended after 1,000 of 5,120 bytes, 3 times in a row; try again later to continue the download"
    )
    server.requests.clear()
    assert fetch(server, tmp_path) == SUM
    assert ranges(server) == ["bytes=1000-"]


def test_an_interrupted_run_is_continued(server: FaultyServer, tmp_path: Path) -> None:
    def interrupt(done: int, _: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, cut(2000), progress=interrupt)
    server.requests.clear()
    assert fetch(server, tmp_path, sha256=SUM) == SUM
    assert ranges(server) == ["bytes=2000-"]


def test_a_download_that_was_complete_but_not_renamed(server: FaultyServer, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, progress=interrupt)
    assert fetch(server, tmp_path) == SUM
    assert ranges(server) == [None, f"bytes={len(CONTENT)}-"]


def test_a_file_that_changed_between_two_attempts_is_downloaded_anew(server: FaultyServer, tmp_path: Path) -> None:
    refusal(server, tmp_path, cut(1000), cut(0), cut(0), cut(0))
    other = CONTENT[::-1]
    server.files["/x.zip"] = (other, '"2"')
    assert fetch(server, tmp_path) == hashlib.sha256(other).hexdigest()
    server.files["/x.zip"] = (CONTENT, '"1"')
    refusal(server, tmp_path / "a", cut(3000), cut(0), cut(0), cut(0))
    server.files["/x.zip"] = (other[:2000], '"2"')  # now shorter than what was received
    assert fetch(server, tmp_path / "a") == hashlib.sha256(other[:2000]).hexdigest()


def test_a_server_that_ignores_if_range_is_found_out(server: FaultyServer, tmp_path: Path) -> None:
    refusal(server, tmp_path, cut(1000), cut(0), cut(0), cut(0))
    other = CONTENT[::-1]
    server.files["/x.zip"] = (other, '"2"')

    def ignore(handler: Any) -> None:
        del handler.headers["If-Range"]
        handler.deliver()

    assert fetch(server, tmp_path, ignore) == hashlib.sha256(other).hexdigest()


def test_without_ranges_or_versions_a_download_starts_anew(server: FaultyServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, cut(1000), lambda handler: handler.deliver(ranges=False)) == SUM
    server.requests.clear()
    assert fetch(server, tmp_path / "a", cut(1000, version=False)) == SUM
    assert ranges(server) == [None, None]


def test_without_a_length(server: FaultyServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, lambda handler: handler.deliver(length=False)) == SUM
    assert fetch(server, tmp_path / "a", chunked_and_cut, sha256=SUM) == SUM


def test_a_busy_server_is_asked_again(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("yolov7.system.downloads.http_download.time.sleep", waits.append)
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    faults = [
        status(503, Retry_After="7"),
        status(503, Retry_After=past),
        status(503),
        status(429, Retry_After="99999"),
    ]
    assert fetch(server, tmp_path, *faults, retries=Retries(attempts=5, first_wait=1)) == SUM
    assert waits == [7, 0, 4, 300]
    message = refusal(server, tmp_path / "a", *[status(503)] * 3)
    assert "the server answered 503 Service Unavailable, 3 times in a row; try again later" in message


def test_a_silent_server_is_asked_again(server: FaultyServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, silence(1.0), retries=Retries(attempts=2, first_wait=0.001, timeout=0.2)) == SUM


def test_a_server_that_cannot_be_reached(tmp_path: Path) -> None:
    with faulty_server() as server:
        url = f"{server.address}/x.zip"
    with pytest.raises(DataError, match=r"Connection refused, 3 times in a row"):
        download(url, tmp_path / "x.zip", retries=QUICK)


def test_what_no_retry_can_help_is_refused_at_once(server: FaultyServer, tmp_path: Path) -> None:
    assert "the server answered: 404 Not Found; check the address, or name a mirror" in refusal(
        server, tmp_path, status(404)
    )
    assert "the server sent a web page instead of a file; check the address" in refusal(server, tmp_path, page)
    loop = [status(302, Location="/x.zip")] * 20
    assert "the address redirects in a circle" in refusal(server, tmp_path, *loop)
    assert f"the sha256 of the downloaded file is {SUM}, but {'0' * 64} is expected" in refusal(
        server, tmp_path, sha256="0" * 64
    )
    assert "the md5 of the downloaded file is" in refusal(server, tmp_path, md5="0" * 32)
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


def test_the_disk_is_checked_first(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_download, "_RESERVE", 10**18)
    message = refusal(server, tmp_path)
    assert "0.0 GB are missing, but " in message
    assert message.endswith("GB free; free some space, or choose another folder")


def test_redirects_are_followed(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["/y"] = [status(302, Location="/x.zip")]
    assert download(f"{server.address}/y", tmp_path / "y.zip", retries=QUICK) == SUM


def test_addresses_and_folders_that_cannot_be_used(server: FaultyServer, tmp_path: Path) -> None:
    for url in ("file:///etc/passwd", "ftp://x/y", "http://", "x.zip", "http://[x"):
        with pytest.raises(SettingError, match="is not an address; it must start with http"):
            download(url, tmp_path / "x.zip")
    with (
        exclusive(tmp_path / ".x.zip.lock", what="x"),
        pytest.raises(ArtifactError, match="is in use by another process"),
    ):
        fetch(server, tmp_path)
