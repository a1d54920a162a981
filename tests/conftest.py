"""Checks the shapes that pure tensor functions state, in every test; one thread, so that tests share two cores well.

A test that starts a training in its own process sets the variables of Ray; they are removed after it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from jaxtyping import install_import_hook

install_import_hook(
    [
        "yolov7.boxes",
        "yolov7.criterion.assigners",
        "yolov7.criterion.candidates",
        "yolov7.criterion.loss",
        "yolov7.inference.nms",
    ],
    "beartype.beartype",
)


@pytest.fixture(autouse=True)
def _restore_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})
