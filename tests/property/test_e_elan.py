"""Test that both forms of E-ELAN give the same outputs, before and after fusing, and can be converted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.test_fuse import randomise
from yolov7.nn.elan import Elan, shuffle
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.nn.regroup import faster_form, fastest, regroup, regroup_spec
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec

ANCHORS = [[10, 13, 16, 30], [30, 61, 62, 45]]


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Draw two E-ELANs of any form in sequence; the second one is tapped before its addition."""
    rows: dict[str, Any] = {"s1": {"block": "conv", "out": 16, "s": 2}}
    for name, down in (("p1", "conv"), ("p2", "down_c")):
        rows[f"d{name[1]}"] = {"block": down, "out": 16} | ({"s": 2} if down == "conv" else {})
        rows[name] = {
            "block": draw(st.sampled_from(["elan", "elan_w", "elan_tiny"])),
            "out": draw(st.sampled_from([8, 16])),
            "hidden": 8,
            "depth": draw(st.integers(1, 3)),
            "cardinality": draw(st.integers(2, 3)),
            "rep": draw(st.sampled_from([[], [1]])),
        }
    auxiliary = {"from": ["p1", "p2.2"]}
    rows["head"] = {"block": "detect", "from": ["p1", "p2"], "anchors": ANCHORS, "auxiliary": auxiliary}
    return resolve_spec({"rows": rows}, name="random")


def assert_same_maps(model: DetectionModel, other: DetectionModel) -> None:
    images = torch.rand(2, 3, 32, 24, dtype=torch.float64)
    auxiliary = not (model.fused or other.fused)
    with torch.no_grad():
        first, second = model(images, auxiliary=auxiliary), other(images, auxiliary=auxiliary)
    assert len(first.auxiliary) == len(second.auxiliary) == (2 if auxiliary else 0)
    for ours, theirs in zip((*second.lead, *second.auxiliary), (*first.lead, *first.auxiliary), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@settings(max_examples=6, deadline=None)
@given(spec=specs(), seed=st.integers(0, 1000))
def test_both_forms_are_converted_into_each_other(spec: ModelSpec, seed: int) -> None:
    model = DetectionModel(spec, num_classes=2).double().eval()
    randomise(model, seed)
    grouped = regroup(model, grouped=True)
    assert all(isinstance(grouped.rows[name], Elan) for name in ("p1", "p2"))
    assert_same_maps(model, grouped)
    assert_same_maps(fuse(model), regroup(fuse(model), grouped=True))
    assert_same_maps(model, fuse(grouped))
    back = regroup(grouped, grouped=False)
    assert back.spec == spec
    torch.testing.assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_shuffling_brings_the_maps_of_a_group_together() -> None:
    maps = [torch.tensor([1, 2, 11, 12]).view(1, 4, 1, 1), torch.tensor([3, 13]).view(1, 2, 1, 1)]
    assert shuffle(maps, groups=2).flatten().tolist() == [1, 2, 3, 11, 12, 13]


def test_group_convolutions_of_e6e_have_the_same_size() -> None:
    spec = load_spec("yolov7-e6e")
    with torch.device("meta"):
        models = [DetectionModel(regroup_spec(spec, grouped=grouped), num_classes=80) for grouped in (False, True)]
    side_by_side, grouped = (sum(p.numel() for p in model.parameters()) for model in models)
    assert side_by_side == grouped == 166_408_884
    chain = models[1].rows["p4"].chain[0].conv
    assert (chain.groups, chain.in_channels, chain.out_channels) == (2, 512, 512)


def test_the_faster_form() -> None:
    """On a CPU this is the form side by side; on other devices it is the faster form."""
    images = torch.rand(1, 3, 64, 64)
    plain = DetectionModel(load_spec("nano"), num_classes=2).eval()
    assert faster_form(plain, images) is plain
    grouped_spec = resolve_spec({"base": "nano", "swap": {"p3": {"cardinality": 2, "grouped": True}}}, name="x")
    grouped = DetectionModel(grouped_spec, num_classes=2).eval()
    assert faster_form(grouped, images).spec == regroup_spec(grouped_spec, grouped=False)
    big = DetectionModel(load_spec("yolov7-tiny"), num_classes=2).eval()
    assert fastest((big, plain), images, rounds=3) is plain
    assert fastest((plain, big), images, rounds=3) is plain


@pytest.mark.parametrize("grouped", [True, False])
def test_regroup_does_not_change_the_model(grouped: bool) -> None:
    spec = regroup_spec(load_spec("yolov7-e6e"), grouped=not grouped)
    narrow = resolve_spec({"base": "nano", "swap": {"p3": {"cardinality": 2, "grouped": not grouped}}}, name="x")
    assert spec.rows["p3"].grouped is not grouped
    model = DetectionModel(narrow, num_classes=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = regroup(model, grouped=grouped)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert other.training
