"""Test planned re-parameterisation: which convolutions keep an identity branch, and what the plan prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands.specs import plan_lines, scale
from yolov7.errors import SpecError
from yolov7.nn.blocks import RepConv
from yolov7.nn.model import DetectionModel
from yolov7.spec.anchor_free import with_anchor_free_head
from yolov7.spec.graph import plan_rep_convs
from yolov7.spec.scaling import scale_spec
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec


def swapped(base: str, **swap: dict[str, object]) -> ModelSpec:
    return resolve_spec({"base": base, "swap": swap}, name="swapped")


def identities(spec: ModelSpec, row: str) -> dict[int, bool]:
    return {place.position: place.identity for place in plan_rep_convs(spec)[row]}


def test_3_stacked_elan() -> None:
    """Table 4: every second map is concatenated."""
    spec = swapped("yolov7", p4={"depth": 3, "rep": [1, 2, 3, 4, 5, 6]})
    assert identities(spec, "p4") == {1: True, 2: False, 3: True, 4: False, 5: True, 6: False}
    assert identities(swapped("yolov7", p4={"rep": [3]}), "p4") == {3: True}


def test_elan_w_and_tiny_concatenate_every_map() -> None:
    for base, row in (("yolov7", "n4"), ("yolov7-tiny", "p4")):
        assert identities(swapped(base, **{row: {"rep": [1, 2]}}), row) == {1: False, 2: False}


def test_dark_blocks_and_reversed_ones() -> None:
    """Table 5: only a 3x3 convolution in front of the residual addition has no identity branch."""
    rep = {"rep": [1, 3]}
    assert identities(swapped("yolor-w6", p5=rep), "p5") == {1: False, 3: False}
    assert identities(swapped("yolor-w6", p5=rep | {"reversed": True}), "p5") == {1: True, 3: True}
    without = {"rep": [1, 2], "shortcut": False}
    assert identities(swapped("yolor-csp", n4=without), "n4") == {1: True, 2: False}  # the last map is concatenated
    assert identities(swapped("yolor-csp", p2=without), "p2") == {1: True, 2: True}  # a 1x1 convolution is in between


def test_blocks_of_ppyoloe_never_have_an_identity_branch() -> None:
    spec = load_spec("ppyoloe-l")
    for name in ("p3", "n5", "m4"):
        assert set(identities(spec, name).values()) == {False}
    reasons = [place.reason for place in plan_rep_convs(spec)["n5"]]
    assert reasons[0] == "no identity, because PP-YOLOE has only a 3x3 and a 1x1 branch"
    assert reasons[1:] == ["no identity, because its output goes into a concatenation"] * 2  # pooling, then the end
    assert {place.feeds for place in plan_rep_convs(spec)["p3"]} == {"a residual addition"}


def test_rep_conv_in_front_of_a_concatenation_or_an_addition() -> None:
    plain = {"s1": {"block": "conv", "out": 16, "s": 2}, "s2": {"block": "conv", "out": 16, "s": 2}}
    tail = {"head": {"block": "detect", "anchors": [[10, 13, 16, 30]]}}
    for behind, why in (
        (
            {"b": {"block": "conv", "out": 16}},
            "identity, because its output goes into no addition and no concatenation",
        ),
        (
            {"b": {"block": "bottleneck", "out": 16}},
            "no identity, because its output goes into a residual addition in b",
        ),
        ({"b": {"block": "bottleneck", "out": 16, "shortcut": False}}, "identity, because its output goes into no"),
        ({"b": {"block": "conv", "from": ["s2", "r"], "out": 32}}, "goes into a concatenation in b"),
    ):
        spec = resolve_spec({"rows": plain | {"r": {"block": "rep_conv", "out": 16}} | behind | tail}, name="x")
        (place,) = plan_rep_convs(spec)["r"]
        assert why in place.reason
        assert place.identity == (not place.reason.startswith("no"))


def test_the_plan_names_every_row_and_every_position() -> None:
    lines = plan_lines(swapped("yolov7", p3={"rep": [1, 4]}, r3={"out": 128}))
    said = {line.name: line for line in lines}
    assert set(said) == {*load_spec("yolov7").rows, "p3.1", "p3.4"}
    assert said["p3"].planned == "5 convolutions"
    assert [said[name].planned for name in ("p3.1", "p3.4", "r3", "r4")] == [
        "RepConv", "RepConvN", "RepConv", "RepConvN",
    ]  # fmt: skip
    assert "a concatenation" in said["p3.4"].why
    assert "it has 256 input channels and 512 output channels" in said["r4"].why
    assert said["head"].why == "implicit vectors folded in"
    head = {line.name: line for line in plan_lines(load_spec("yolov7-w6"))}["head"]
    assert head.why == "implicit vectors folded in, auxiliary head dropped"
    head = plan_lines(with_anchor_free_head(load_spec("yolov7")))[-1]
    assert (head.planned, head.why) == ("18 convolutions", "batch norm folded in, implicit factors folded in")


def test_tables_4_and_5_are_specs_that_build() -> None:
    for spec in (swapped("yolov7", p3={"depth": 3, "rep": [2, 5]}), swapped("yolor-csp", p3={"rep": [1, 2, 3]})):
        model = DetectionModel(scale_spec(spec, rule="width", width=0.125), num_classes=1)
        places = plan_rep_convs(spec)["p3"]
        assert sum(isinstance(part, RepConv) for part in model.rows["p3"].modules()) == len(places)


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        ({"p3": {"rep": [5]}}, "rep=[5] must name each position once, from 1 to 4, the number of convolutions"),
        ({"p3": {"rep": [1, 1]}}, "rep=[1, 1] must name each position once"),
        ({"p3": {"rep": [0]}}, "p3.elan.rep.0"),
        ({"p3": {"block": "csp_a", "rep": [3]}}, "from 1 to 2, the number of dark blocks"),
        ({"p3": {"grouped": True}}, "grouped=true needs a cardinality greater than 1"),
    ],
)
def test_positions_that_do_not_exist(swap: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_spec({"base": "yolov7", "swap": swap}, name="x")
    assert message in str(caught.value)


def test_scale_writes_a_spec_file_with_its_cost(tmp_path: Path) -> None:
    text = scale("yolov7x-light", rule="compound", depth=1.5, width=1.0, output=tmp_path / "deeper.yaml")
    assert text.startswith("# yolov7x-light compound depth 1.5: 71.31 M parameters deployed (71,311,741), 189.9 GFLOPs")
    assert (tmp_path / "deeper.yaml").read_text() == text
    spec = load_spec(str(tmp_path / "deeper.yaml"))
    assert spec.name == "deeper"
    assert spec.rows == load_spec("yolov7x").rows
