"""Fingerprints of training runs: what changes them and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolov7.settings import TrainSettings
from yolov7.spec.anchor_free import with_anchor_free_head, with_one_to_one_head
from yolov7.spec.spec_files import load_spec, spec_to_json
from yolov7.training.job import TrainJob


def make_job(spec_json: str = "{}", **settings: Any) -> TrainJob:
    given, folder = TrainSettings.model_validate(settings), Path("/data")
    return TrainJob(spec_json=spec_json, settings=given, seed=1, data_folder=folder, data_hash="h", run_folder=folder)


def fingerprint(**settings: Any) -> str:
    return make_job(**settings).fingerprint


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


def test_the_gradient_is_limited_by_default_where_the_head_needs_it() -> None:
    spec = load_spec("nano")
    free = with_anchor_free_head(spec)
    specs = [spec_to_json(one) for one in (spec, free, with_one_to_one_head(spec), load_spec("ppyoloe-s"))]
    assert [make_job(one).largest_norm for one in specs] == [0, 10, 10, 0]
    stated = [make_job(specs[1], optim={"clip_norm": limit}) for limit in (0, 3, 10, "auto")]
    assert [job.largest_norm for job in stated] == [0, 3, 10, 10]
    fingerprints = [job.fingerprint for job in stated]
    assert len(set(fingerprints)) == 3
    assert fingerprints[2] == fingerprints[3]  # the result is the same
    assert make_job(specs[0], optim={"clip_norm": 0}).fingerprint == make_job(specs[0]).fingerprint
