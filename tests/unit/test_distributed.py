"""What training through Ray tells a user, without starting Ray."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline.distributed import _check_reachable, first_cause
from tests.unit.data_files import make_index
from yolov7.data.dataset import DetectionDataset
from yolov7.data.loader import TrainLoader
from yolov7.errors import DataError


def test_a_cluster_that_does_not_answer_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"RAY_ADDRESS={address} .*unset RAY_ADDRESS"):
            _check_reachable(address)
        free.listen()
        _check_reachable(f"ray://{address}")
    _check_reachable("auto")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_is_gone_is_one_line_from_any_process(tmp_path: Path, num_workers: int) -> None:
    index = make_index(tmp_path, count=2)
    loader = TrainLoader(DetectionDataset(index, image_size=64, cache="none"), batch_size=2, num_workers=num_workers)
    Path(index.paths[0]).unlink()
    with pytest.raises(DataError) as caught:
        next(loader.epoch(0))
    assert first_cause(caught.value).startswith(f"image {index.paths[0]} cannot be read (No such file")
    assert "\n" not in first_cause(caught.value)
