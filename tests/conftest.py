"""Checks the shapes that pure tensor functions state, in every test; one thread, so that tests share two cores well."""

from __future__ import annotations

import os

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
