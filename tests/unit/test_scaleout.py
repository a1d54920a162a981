"""The script behind docs/design/scaling-out.md: a real checkpoint, values computed by hand, the page's conclusions."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.doc_scripts import FOLDER, import_script
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.training.ema import Ema

script = import_script(FOLDER / "scaling_out.py")
DEFAULTS, TUNED, MODELS, facts = script.DEFAULTS, script.TUNED, script.MODELS, script.facts
SLOW, FAST = script.LINKS["100G"], script.LINKS["400G"]


def test_the_pages_contain_the_computed_tables() -> None:
    """`python docs/design/scaling_out.py PAGE` renews them."""
    pages = [(FOLDER / "scaling-out.md").read_text(), (FOLDER.parent / "reproduce.md").read_text()]
    assert [script.renewed(page, script.tables()) for page in pages] == pages
    assert sum(page.count("<!-- table ") for page in pages) == len(script.tables())


def test_the_size_of_a_checkpoint_is_that_of_a_real_one() -> None:
    model = DetectionModel(load_spec("nano"), num_classes=80)
    ema = Ema(model, decay=0.9, ramp=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = (model.state_dict(), ema.model.state_dict(), *optimizer.state.values())
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    assert facts("nano").checkpoint_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_an_all_reduce_computed_by_hand() -> None:
    plain = replace(DEFAULTS, hop_seconds=0, nvlink=100e9, link_share=1)
    assert plain.reduce_seconds(8e9, gpus=1, link=FAST) == 0
    assert plain.reduce_seconds(8e9, gpus=8, link=FAST) == pytest.approx(2 * 7 / 8 * 0.08)
    both = 2 * 7 / 8 * 0.08 + 2 * 3 / 4 * 8e9 / 50e9
    assert plain.reduce_seconds(8e9, gpus=32, link=FAST) == pytest.approx(both)


def test_the_backward_pass_hides_all_buckets_except_the_last() -> None:
    plain = replace(DEFAULTS, hop_seconds=0, small_reduces=0)
    hidden = plain.network_seconds(facts("yolov7"), gpus=64, link=FAST)
    visible = replace(plain, overlap=0.0).network_seconds(facts("yolov7"), gpus=64, link=FAST)
    assert 0 < hidden < visible / 5
    assert plain.network_seconds(facts("yolov7"), gpus=1, link=FAST) == 0


def shares_of_validation(assumed: Any, *, gpus: int) -> dict[str, float]:
    epochs = {name: assumed.epoch(facts(name), gpus=gpus, link=FAST) for name in MODELS}
    return {name: epoch.validation / epoch.total for name, epoch in epochs.items()}


@pytest.mark.parametrize(("gpus", "least", "most"), [(64, 0.05, 0.34), (512, 0.16, 0.74)])
def test_the_share_of_validation(gpus: int, least: float, most: float) -> None:
    shares = shares_of_validation(DEFAULTS, gpus=gpus).values()
    assert (round(min(shares), 2), round(max(shares), 2)) == (least, most)


def test_validating_every_tenth_epoch_reduces_that_share() -> None:
    shares = shares_of_validation(TUNED, gpus=512)
    assert shares.pop("yolov7-tiny") > 0.4
    assert (round(min(shares.values()), 2), round(max(shares.values()), 2)) == (0.02, 0.12)


def test_a_validation_computed_by_hand() -> None:
    """5,000 images are 313 batches, at most five for each of 64 GPUs."""
    model, plain = facts("yolov7"), replace(DEFAULTS, letterbox_seconds={640: 0.01}, suppression_seconds=0.0)
    image = 0.01 + 1 / (3 * plain.images_per_second(model))
    assert plain.validation_seconds(model, gpus=64) == pytest.approx(5 * 16 * image + plain.scoring_seconds)


def test_only_tiny_waits_for_the_loader() -> None:
    waits = {name: DEFAULTS.epoch(facts(name), gpus=8, link=FAST).loader for name in MODELS}
    assert [name for name, seconds in waits.items() if seconds > 0] == ["yolov7-tiny"]


@pytest.mark.parametrize(("name", "slow", "fast"), [("yolov7", 0.11, 0.06), ("yolov7-e6e", 0.02, 0.01)])
def test_the_network_takes_a_small_share(name: str, slow: float, fast: float) -> None:
    for link, share in ((SLOW, slow), (FAST, fast)):
        seconds = DEFAULTS.network_seconds(facts(name), gpus=512, link=link)
        assert round(seconds / (DEFAULTS.step_seconds(facts(name)) + seconds), 2) == share


def test_checkpoints_and_tracking_take_a_small_share() -> None:
    for name in MODELS:
        epoch = DEFAULTS.epoch(facts(name), gpus=512, link=FAST)
        assert epoch.checkpoint < 0.035 * epoch.total
        assert DEFAULTS.tracking_seconds < 0.015 * epoch.total


def test_a_measured_rate_replaces_the_assumed_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table models -->\nold\n<!-- end -->\nafter\n")
    script.main([str(page), "--rate", "yolov7=1600"])
    (row,) = [line for line in page.read_text().splitlines() if line.startswith("| yolov7 |")]
    assert row.endswith("| 1600 | 10 ms |")
    assert page.read_text().startswith("before\n<!-- table models -->\n| variant")
    assert page.read_text().endswith("<!-- end -->\nafter\n")


def test_the_script_runs_by_its_path_and_names_an_unknown_variant() -> None:
    command = [sys.executable, str(FOLDER / "scaling_out.py"), "--rate", "yolov9=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'yolov9' must be one of yolov7-tiny" in done.stderr
