"""Test auxiliary heads: their taps, their maps, and that nothing of them is deployed."""

from __future__ import annotations

import math

import pytest
import torch

from yolov7.errors import SpecError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.auxiliary import auxiliary_widths, with_auxiliary, without_auxiliary
from yolov7.spec.scaling import scale_spec
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec


def narrow(name: str) -> ModelSpec:
    return scale_spec(load_spec(name), rule="both", depth=0.5, width=0.125)


@pytest.mark.parametrize(
    ("name", "taps", "widths"),
    [
        ("yolov7", ("n3", "n4", "n5"), (256, 512, 1024)),
        ("yolov7-tiny", ("n3", "n4", "n5"), (128, 256, 512)),
        ("yolov7-w6", ("n3", "n4", "n5", "n6"), (320, 640, 960, 1280)),
        ("yolov7-e6", ("n3", "n4", "n5", "n6"), (320, 640, 960, 1280)),
        ("yolov7-d6", ("n3", "n4", "n5", "n6"), (384, 768, 1152, 1536)),
        ("yolov7-e6e", ("n3.2", "n4.2", "n5.2", "n6"), (320, 640, 960, 1280)),
    ],
)
def test_taps_and_widths(name: str, taps: tuple[str, ...], widths: tuple[int, ...]) -> None:
    spec = with_auxiliary(load_spec(name))
    assert (spec.head.taps, auxiliary_widths(spec)) == (taps, widths)


def test_the_rule_finds_the_taps_that_the_paper_names() -> None:
    for name in ("yolov7-w6", "yolov7-e6", "yolov7-d6"):
        spec = load_spec(name)
        assert with_auxiliary(without_auxiliary(spec)).head.taps == spec.head.taps
    bare = without_auxiliary(load_spec("yolov7-e6e"))
    assert with_auxiliary(bare, partial=True) == load_spec("yolov7-e6e")
    assert with_auxiliary(bare).head.taps == ("n3", "n4", "n5", "n6")
    with pytest.raises(SpecError, match="has no E-ELAN"):
        with_auxiliary(load_spec("yolov7"), partial=True)


def test_the_switch_of_a_spec_file() -> None:
    on = resolve_spec({"base": "yolov7-tiny", "auxiliary": True}, name="x")
    assert on.head.taps == ("n3", "n4", "n5")
    off = resolve_spec({"base": "yolov7-w6", "auxiliary": False}, name="x")
    assert off.head.auxiliary is None
    kept = resolve_spec({"base": "yolov7-w6"}, name="yolov7-w6")
    assert kept == load_spec("yolov7-w6")


def test_maps_in_training_or_when_asked_for() -> None:
    model = DetectionModel(narrow("yolov7-e6e"), num_classes=2)
    images = torch.rand(2, 3, 64, 64)
    assert [tuple(raw.shape) for raw in model(images).auxiliary] == [(2, 3, n, n, 7) for n in (8, 4, 2, 1)]
    with torch.no_grad():
        assert model.eval()(images).auxiliary == ()
        asked = model(images, auxiliary=True)
        for ours, plain in zip(asked.lead, model(images).lead, strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    assert len(asked.auxiliary) == 4


def test_a_partial_head_leaves_the_other_branch_alone() -> None:
    model = DetectionModel(narrow("yolov7-e6e"), num_classes=2)
    model(torch.rand(2, 3, 64, 64)).auxiliary[0].sum().backward()
    first, second = model.rows["n3"].elans
    assert all(p.grad is None for p in first.parameters())
    assert any(bool(p.grad.any()) for p in second.parameters() if p.grad is not None)


def test_biases_start_like_those_of_the_lead_head() -> None:
    torch.manual_seed(0)
    head = DetectionModel(with_auxiliary(load_spec("nano")), num_classes=4).head
    for convs in (head.convs, head.auxiliary_convs):
        for conv, stride in zip(convs, (8, 16, 32), strict=True):
            bias = conv.bias.detach().view(3, -1)
            bound = 1 / math.sqrt(conv.in_channels)
            assert (bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs().max() <= bound
            assert (bias[:, 5:] - math.log(0.6 / 3.01)).abs().max() <= bound


def test_nothing_of_it_is_deployed() -> None:
    torch.manual_seed(0)
    spec = load_spec("nano")
    plain, trained = DetectionModel(spec, num_classes=4), DetectionModel(with_auxiliary(spec), num_classes=4)
    fused = fuse(trained)
    assert fused.state_dict().keys() == fuse(plain).state_dict().keys()
    assert (fused.spec, fused.num_classes, trained.spec.head.auxiliary is None) == (spec, 4, False)
    assert len(trained.head.auxiliary_convs) == 3


@pytest.mark.parametrize(
    ("auxiliary", "message"),
    [
        ({"from": ["n3", "n4"]}, "the maps of the auxiliary head have strides [8, 16]; the lead head needs [8,"),
        ({"from": ["n3", "n4", "n5"], "out": [8]}, "the auxiliary head has 1 widths for 3 levels"),
        ({"from": ["n3", "n4", "n9"]}, "takes 'n9', but there is no such row"),
        ({"from": ["n3.2", "n4", "n5"]}, "takes 'n3.2', but n3 has 1 branch"),
        ({"form": ["n3", "n4", "n5"]}, "head.detect.auxiliary"),
    ],
)  # fmt: skip
def test_faults_are_one_line(auxiliary: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_spec({"base": "yolov7", "swap": {"head": {"auxiliary": auxiliary}}}, name="x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
