"""Batches of concurrent requests: how they form, and what an error of the model does to them."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.serving.batches import BatchRunner
from pipeline.serving.content_hash import hash_content
from yolov7.data.augment.letterbox import letterbox
from yolov7.settings import NmsSettings

PIXELS, GEOMETRY = letterbox(np.zeros((8, 8, 3), np.uint8), size=8)


class Engine:
    """Predict one object, or fail; wait before the first batch until it may start."""

    needs_suppression = True

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may_start = threading.Event()
        self.is_broken = False

    def decode(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        assert self.may_start.wait(30)
        if self.is_broken:
            raise RuntimeError("the GPU failed")
        return torch.tensor([[[4.0, 4.0, 2.0, 2.0, 0.5, 1.0]]]).expand(len(images), -1, -1)


def test_images_that_arrive_meanwhile_become_batches_of_equal_thresholds() -> None:
    engine = Engine()
    runner = BatchRunner([engine], max_batch=3)
    low, high = NmsSettings(confidence=0.1), NmsSettings(confidence=0.9)
    first = runner.submit(PIXELS, GEOMETRY, nms=low)
    while not engine.sizes:
        pass
    others = [runner.submit(PIXELS, GEOMETRY, nms=nms) for nms in (low, low, low, low, high, low)]
    engine.may_start.set()
    wait([first, *others], timeout=30)
    assert engine.sizes == [1, 3, 1, 1, 1]
    assert [len(future.result()) for future in (first, *others)] == [1, 1, 1, 1, 1, 0, 1]
    runner.close()


def test_an_error_of_the_model_is_reported_and_the_next_batch_runs() -> None:
    engine = Engine()
    engine.may_start.set()
    engine.is_broken = True
    runner = BatchRunner([engine], max_batch=3)
    with pytest.raises(RuntimeError, match="the GPU failed"):
        runner.submit(PIXELS, GEOMETRY, nms=NmsSettings()).result(30)
    assert runner.is_failing
    engine.is_broken = False
    assert len(runner.submit(PIXELS, GEOMETRY, nms=NmsSettings()).result(30)) == 1
    assert not runner.is_failing
    runner.close()


def test_images_that_wait_when_the_runner_is_closed_are_dropped() -> None:
    engine = Engine()
    runner = BatchRunner([engine], max_batch=1)
    running = runner.submit(PIXELS, GEOMETRY, nms=NmsSettings())
    while not engine.sizes:
        pass
    waiting = runner.submit(PIXELS, GEOMETRY, nms=NmsSettings())
    threading.Timer(0.1, engine.may_start.set).start()
    runner.close()
    assert len(running.result(30)) == 1
    assert waiting.cancelled()


def test_the_hash_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    def written(name: str, content: str) -> str:
        path = tmp_path / str(len(list(tmp_path.iterdir()))) / name
        path.parent.mkdir()
        path.write_text(content)
        return hash_content(path.parent)

    assert written("a", "1") == written("a", "1") != written("b", "1")
    assert written("a", "1") != written("a", "2")
