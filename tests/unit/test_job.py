"""Fingerprints of training runs: what changes them and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolov7.settings import TrainSettings
from yolov7.training.job import TrainJob


def fingerprint(**settings: Any) -> str:
    given, folder = TrainSettings.model_validate(settings), Path("/data")
    job = TrainJob(spec_json="{}", settings=given, seed=1, data_folder=folder, data_hash="h", run_folder=folder)
    return job.fingerprint


def test_settings_that_were_added_later_do_not_change_fingerprints_at_their_defaults() -> None:
    """The digits are from before the settings were added."""
    assert fingerprint() == "d1bbe26cfa4c"
    assert fingerprint(recipe="p5", epochs=7) == "fa4b99efc6cc"
    assert fingerprint(loss={"simota": "r25"}, optim={"nesterov": True, "decay": "cosine"}) == "d1bbe26cfa4c"


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": {"simota": "r15"}},
        {"loss": {"atss_epochs": 1}},
        {"loss": {"objectness_balance": "coarse"}},
        {"loss": {"objectness_by_size": False}},
        {"optim": {"nesterov": False}},
        {"optim": {"clip_norm": 1}},
        {"optim": {"decay": "linear"}},
        {"optim": {"flat_share": 0.1}},
        {"optim": {"decay_biases": True}},
        {"optim": {"ema": "corrected"}},
        {"average_best": 2},
        {"max_images": 3},
    ],
    ids=str,
)
def test_settings_that_were_added_later_change_fingerprints_otherwise(settings: dict[str, Any]) -> None:
    assert fingerprint(**settings) != fingerprint()
