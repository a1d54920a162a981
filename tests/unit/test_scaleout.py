"""The computation behind docs/design/scaling-out.md: a real checkpoint, values by hand, the page's conclusions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from docs.design.scaling_out import (
    AS_IT_IS,
    LINKS,
    MODELS,
    TUNED,
    Assumptions,
    epoch_of,
    evaluation_seconds,
    facts,
    images_per_second,
    main,
    network_seconds,
    reduce_seconds,
    renewed,
    tables,
    tracking_share,
)
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.training.ema import Ema

PAGE = Path(__file__).parents[2] / "docs/design/scaling-out.md"
SLOW, FAST, _ = LINKS


def test_the_page_has_what_is_computed() -> None:
    """If not: python -m docs.design.scaling_out docs/design/scaling-out.md"""
    page = PAGE.read_text()
    assert renewed(page, tables()) == page
    assert page.count("<!-- table ") == len(tables())


def test_a_checkpoint_is_as_large_as_a_real_one() -> None:
    model = DetectionModel(load_spec("nano"), num_classes=80)
    ema = Ema(model, decay=0.9, ramp=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = (model.state_dict(), ema.model.state_dict(), *optimizer.state.values())
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    assert facts("nano").checkpoint_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_an_all_reduce_by_hand() -> None:
    plain = replace(AS_IT_IS, hop_seconds=0, nvlink=100e9, link_share=1)
    assert reduce_seconds(8e9, gpus=1, link=FAST, assumed=plain) == 0
    assert reduce_seconds(8e9, gpus=8, link=FAST, assumed=plain) == pytest.approx(2 * 7 / 8 * 0.08)
    both = 2 * 7 / 8 * 0.08 + 2 * 3 / 4 * 8e9 / 50e9
    assert reduce_seconds(8e9, gpus=32, link=FAST, assumed=plain) == pytest.approx(both)


def test_the_network_is_hidden_but_for_the_last_bucket() -> None:
    model = facts("yolov7")
    plain = replace(AS_IT_IS, hop_seconds=0, small_reduces=0)
    hidden = network_seconds(model, gpus=64, link=FAST, assumed=plain)
    seen = network_seconds(model, gpus=64, link=FAST, assumed=replace(plain, overlap=0.0))
    assert 0 < hidden < seen / 5
    assert network_seconds(model, gpus=1, link=FAST, assumed=plain) == 0


@pytest.mark.parametrize(("gpus", "least", "most"), [(64, 0.05, 0.34), (512, 0.16, 0.74)])
def test_what_a_shared_validation_takes(gpus: int, least: float, most: float) -> None:
    shares = [_share_of_validation(name, gpus=gpus, assumed=AS_IT_IS) for name in MODELS]
    assert (round(min(shares), 2), round(max(shares), 2)) == (least, most)


def test_every_tenth_epoch_gives_most_of_it_back() -> None:
    shares = {name: _share_of_validation(name, gpus=512, assumed=TUNED) for name in MODELS}
    assert shares.pop("yolov7-tiny") > 0.4
    assert (round(min(shares.values()), 2), round(max(shares.values()), 2)) == (0.02, 0.12)


def test_a_validation_by_hand() -> None:
    """5,000 images are 313 batches: five for each of 64 processes."""
    model, plain = facts("yolov7"), replace(AS_IT_IS, letterbox_seconds={640: 0.01}, suppression_seconds=0.0)
    image = 0.01 + 1 / (3 * images_per_second(model, plain))
    assert evaluation_seconds(model, gpus=64, assumed=plain) == pytest.approx(5 * 16 * image + plain.scoring_seconds)


def _share_of_validation(name: str, *, gpus: int, assumed: Assumptions) -> float:
    epoch = epoch_of(facts(name), gpus=gpus, link=FAST, assumed=assumed)
    return epoch.evaluation / epoch.total


def test_the_loader_bounds_tiny_alone() -> None:
    waits = {name: epoch_of(facts(name), gpus=8, link=FAST, assumed=AS_IT_IS).loader for name in MODELS}
    assert [name for name, seconds in waits.items() if seconds > 0] == ["yolov7-tiny"]


@pytest.mark.parametrize(("name", "slow", "fast"), [("yolov7", 0.11, 0.06), ("yolov7-e6e", 0.02, 0.01)])
def test_the_network_takes_little(name: str, slow: float, fast: float) -> None:
    model = facts(name)
    compute = AS_IT_IS.images_per_gpu / images_per_second(model, AS_IT_IS)
    for link, share in ((SLOW, slow), (FAST, fast)):
        seconds = network_seconds(model, gpus=512, link=link, assumed=AS_IT_IS)
        assert round(seconds / (compute + seconds), 2) == share


def test_checkpoints_and_tracking_take_little() -> None:
    for model in map(facts, MODELS):
        epoch = epoch_of(model, gpus=512, link=FAST, assumed=AS_IT_IS)
        assert epoch.checkpoint < 0.035 * epoch.total
        assert tracking_share(epoch, AS_IT_IS) < 0.015


def test_a_measured_rate_takes_the_place_of_the_assumed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table models -->\nold\n<!-- end -->\nafter\n")
    main([str(page), "--rate", "yolov7=1600"])
    (row,) = [line for line in page.read_text().splitlines() if line.startswith("| yolov7 |")]
    assert row.endswith("| 1600 | 10 ms |")
    assert page.read_text().startswith("before\n<!-- table models -->\n| variant")
    assert page.read_text().endswith("<!-- end -->\nafter\n")


def test_an_unknown_variant_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--rate", "yolov9=1"])
    assert ended.value.code == 2
    assert "'yolov9' is none of yolov7-tiny" in capsys.readouterr().err
