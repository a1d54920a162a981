"""Published weights: the table, the licence that is accepted once, download, conversion, and names in params.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.commands.published_weights import fetch_weights, list_weights
from pipeline.experiment import find_weights
from tests.faulty_server import FaultyServer, cut, faulty_server
from tests.foreign_files import write_darknet
from yolov7.errors import ArtifactError, DataError, SettingError
from yolov7.system.downloads.http_download import Retries
from yolov7.weights.foreign.darknet import DARKNET_SPECS
from yolov7.weights.published import published_weights
from yolov7.weights.weight_files import load_weights

TINY = "yolov7-tiny"
QUICK = Retries(attempts=2, first_wait=0.001, timeout=10)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """Start a server that offers the weights of `yolov7-tiny`, and use an empty cache folder."""
    monkeypatch.setenv("YOLOV7_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    size = published_weights()[TINY].size
    assert size is not None
    path = write_darknet(tmp_path / "x.weights", np.full(size // 4 - 5, 0.1, "<f4").tobytes())
    with faulty_server() as running:
        running.files["/tiny.weights"] = (path.read_bytes(), '"1"')
        entry = replace(published_weights()[TINY], address=f"{running.address}/tiny.weights")
        monkeypatch.setitem(published_weights(), TINY, entry)
        yield running


def test_the_table() -> None:
    for name, entry in published_weights().items():
        assert entry.address.startswith("https://"), name
        assert entry.licence.startswith(("MIT", "Unlicense")), name
        assert entry.note.endswith("."), name
        assert entry.sha256 is None or len(entry.sha256) == 64, name
    assert {"yolov7-tiny", "yolov7", "yolov7x"} <= published_weights().keys() & set(DARKNET_SPECS)


def test_weights_are_fetched_once_the_licence_is_accepted(
    server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingError, match=r"'yolov7-tiny' are published but not fetched; run `yolov7 weights fetch y"):
        find_weights(TINY)
    for ask in (None, lambda _: False):
        with pytest.raises(SettingError, match=r"the licence of yolov7-tiny \(Unlicense .* add --accept-licence"):
            fetch_weights(TINY, accepted=False, ask=ask, retries=QUICK)
    assert "the repository whose main" not in capsys.readouterr().err
    assert not server.requests
    server.faults["/tiny.weights"] = [cut(1_000_000)]
    lines = fetch_weights(TINY, accepted=False, ask=lambda _: True, retries=QUICK).splitlines()
    assert len(server.requests) == 2
    assert lines[0].endswith(" (recorded, none is published)")
    assert lines[1] == f"{tmp_path}/cache/weights/yolov7-tiny.safetensors: yolov7-tiny, 80 classes"
    assert lines[-1] == "in params.yaml: train: {weights: yolov7-tiny}"
    weights = load_weights(find_weights(TINY))
    assert weights.model.spec.name == TINY
    assert weights.training["licence"] == "Unlicense (public domain)"
    assert "is fetched already" in fetch_weights(TINY, accepted=False, ask=None)
    (row,) = [row for row in json.loads(list_weights(as_json=True)) if row["name"] == TINY]
    assert (row["fetched"], row["recorded_sha256"]) == (True, lines[0].split()[2])
    assert f"sha256 {row['recorded_sha256']} (recorded)" in list_weights(as_json=False)
    (tmp_path / TINY).write_bytes(b"own")
    assert find_weights(TINY) == tmp_path / TINY  # a file comes before a name
    assert find_weights("missing.safetensors") == tmp_path / "missing.safetensors"


def test_a_file_that_differs_from_the_first_download_is_refused(server: FaultyServer, tmp_path: Path) -> None:
    fetch_weights(TINY, accepted=True, ask=None, retries=QUICK)
    find_weights(TINY).unlink()
    server.files["/tiny.weights"] = (server.files["/tiny.weights"][0] + bytes(4), '"2"')
    with pytest.raises(DataError, match="the file was damaged or replaced, and was deleted"):
        fetch_weights(TINY, accepted=False, ask=None, retries=QUICK)


def test_a_file_that_cannot_be_converted(server: FaultyServer) -> None:
    server.files["/tiny.weights"] = (b"PK\3\4" + bytes(100), '"1"')
    with pytest.raises(ArtifactError, match=r"is damaged or cut short .*; the file is from http://127"):
        fetch_weights(TINY, accepted=True, ask=None, retries=QUICK)


def test_an_unknown_name() -> None:
    with pytest.raises(SettingError, match="no published weights 'yolov7-tinny'; did you mean 'yolov7-tiny'"):
        fetch_weights("yolov7-tinny", accepted=True, ask=None)
