"""Test properties of random small graphs: fusing preserves outputs, and widths grow like the concatenations."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolov7.nn.blocks import ConvBnAct, RepConv
from yolov7.nn.elan import EElan, Elan
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.auxiliary import with_auxiliary
from yolov7.spec.block_schema import ElanRow
from yolov7.spec.graph import count_size, infer_shapes, plan_rep_convs
from yolov7.spec.scaling import round_width, scale_spec
from yolov7.spec.spec_files import ModelSpec, resolve_spec

WIDTHS = st.sampled_from([8, 16, 24])
LATERALS = ("mp", "down_c", "conv", "upsample")
ELANS, CSPS, REP_CSPS = ("elan", "elan_w", "elan_tiny"), ("csp_a", "csp_b", "csp_c"), ("csp_rep", "csp_rep_res")
OTHERS = ("conv", "bottleneck", "sppcspc", "spp_tiny", "spp", "rep_conv", "csp_tiny")
ACTIVATIONS = st.sampled_from(["silu", "leaky_relu", "mish"])


@st.composite
def blocks(draw: st.DrawFn, width: int) -> dict[str, Any]:
    """Draw a row that keeps the resolution; re-parameterised convolutions may have the width of their input."""
    name = draw(st.sampled_from([*ELANS, *CSPS, *REP_CSPS, *OTHERS]))
    row: dict[str, Any] = {"block": name, "out": draw(st.sampled_from([width, 8, 16]))}
    row |= {"activation": draw(ACTIVATIONS)} if draw(st.booleans()) else {}
    if name in ELANS:
        cardinality = draw(st.sampled_from([1, 1, 2]))
        row |= {"hidden": draw(WIDTHS), "depth": draw(st.integers(1, 3)), "cardinality": cardinality}
        row["grouped"] = cardinality > 1 and draw(st.booleans())
        last = row["depth"] * (1 if name == "elan_tiny" else 2)
        row["rep"] = draw(st.lists(st.integers(1, last), unique=True))
    if name in (*CSPS, "bottleneck"):
        row |= {"depth": draw(st.integers(1, 3)), "shortcut": draw(st.booleans())}
    if name in CSPS:
        row["reversed"] = draw(st.booleans())
        row["rep"] = draw(st.lists(st.integers(1, row["depth"]), unique=True))
    if name in REP_CSPS:
        row |= {"depth": draw(st.integers(1, 3)), "spp": draw(st.booleans())}
    if name == "csp_tiny":
        row["half"] = draw(st.sampled_from(["first", "second"]))
    if name == "spp":
        row["widest_first"] = draw(st.booleans())
    return row


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Draw a stem, two levels of random blocks, an up-sampling and a down-sampling transition."""
    rows: dict[str, Any] = {"s1": {"block": "conv", "out": draw(WIDTHS), "s": 2}}
    if draw(st.booleans()):
        rows = {"s0": {"block": "reorg"}, "s1": {"block": "conv", "out": draw(WIDTHS)}}
    rows["p1"] = draw(blocks(rows["s1"]["out"]))
    down = draw(st.sampled_from(["mp", "down_c", "maxpool", "conv", "rep_conv"]))
    rows["d2"] = {"block": down} | ({} if down == "maxpool" else {"out": 16})
    rows["d2"] |= {"s": 2} if down in ("conv", "rep_conv") else {}
    rows["p2"] = draw(blocks(16))
    up = {"block": draw(st.sampled_from(["up", "upsample", "double"])), "from": ["p2", "p1"]}
    lateral = 0 if up["block"] == "up" else rows["p1"]["out"]
    rows["u1"] = up | ({} if up["block"] == "double" else {"out": 2 * draw(WIDTHS) + lateral})
    rows["n1"] = draw(blocks(rows["u1"].get("out", 16)))
    if draw(st.booleans()):
        rows["c1"] = {"block": "concat", "from": ["n1", "u1"]}
    e2 = draw(st.sampled_from(["mp", "down_c", "conv"]))
    rows["e2"] = {"block": e2, "from": ["n1", "p2"], "out": rows["p2"]["out"] + 16}
    rows["e2"] |= {"s": 2} if e2 == "conv" else {}
    rows["r1"] = draw(blocks(rows["n1"]["out"])) | {"from": ["c1" if "c1" in rows else "n1"]}
    rows["head"] = draw(heads()) | {"from": ["r1", "e2"]}
    norms = {"norm_eps": draw(st.sampled_from([1e-3, 0.1])), "norm_momentum": 0.1}
    spec = resolve_spec({"rows": rows, "activation": draw(ACTIVATIONS)} | norms, name="random")
    return with_auxiliary(spec) if not spec.head.anchor_free and draw(st.booleans()) else spec


@st.composite
def heads(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a detection head for two levels."""
    implicit = draw(st.booleans())
    detect = {"block": "detect", "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]], "implicit": implicit}
    yolox, ppyoloe = {"block": "detect_yolox", "hidden": draw(WIDTHS)}, {"block": "detect_ppyoloe"}
    dfl = {"block": "detect_dfl", "implicit": implicit}
    return draw(st.sampled_from([detect, detect, yolox, ppyoloe, dfl, {**dfl, "block": "detect_one_to_one"}]))


def randomise(model: nn.Module, seed: int) -> None:
    """Replace all initial values, including the statistics of batch norms."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim < 4:
            value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5)
        elif value.is_floating_point() and not value.any():
            value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) - 0.5)
        if key.endswith(("bias", "running_mean")):
            value.sub_(1.0)


@settings(max_examples=25, deadline=None)
@given(spec=specs(), num_classes=st.integers(1, 4), seed=st.integers(0, 1000))
def test_fusing_preserves_outputs(spec: ModelSpec, num_classes: int, seed: int) -> None:
    model = DetectionModel(spec, num_classes=num_classes).double().eval()
    randomise(model, seed)
    images = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        fused = fuse(model)
        for ours, theirs in zip(fused(images).lead, model(images).lead, strict=True):
            scale = float(theirs.abs().max().clamp(min=1.0))
            torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-9)
    assert fused.fused
    assert not model.fused
    assert not any(isinstance(module, (nn.BatchNorm2d, RepConv)) for module in fused.modules())
    assert not [key for key in fused.state_dict() if key.startswith(("head.ia.", "head.im", "head.auxiliary"))]
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(spec=specs())
def test_the_model_follows_the_plan(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=1)
    for name, module in model.rows.items():
        built = [part.identity is not None for part in module.modules() if isinstance(part, RepConv)]
        planned = [place.identity for place in sorted(plan_rep_convs(spec).get(name, ()))]
        groups = 1 if getattr(spec.rows[name], "grouped", False) else spec.rows[name].num_branches
        assert built == planned * groups


@settings(max_examples=25, deadline=None)
@given(spec=specs())
def test_the_size_is_known_before_the_model_is_built(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=1)
    counted = [part for part in model.head.modules() if isinstance(part, ConvBnAct)]
    counted += [part.gate for part in model.head.modules() if hasattr(part, "gate")]
    unfused = [part for part in model.rows.values() if isinstance(part, RepConv) and part.identity is not None]
    identities = sum(2 * part.identity.num_features for part in unfused)
    expected = sum(p.numel() for part in (model.rows, *counted) for p in part.parameters())
    assert count_size(spec).parameters == expected - identities
    if not any(getattr(row, "grouped", False) for row in spec.rows.values()):
        convolutions = sum(isinstance(part, nn.Conv2d) for part in model.rows.modules())
        assert count_size(spec).convolutions == convolutions + len(counted)


@settings(max_examples=25, deadline=None)
@given(spec=specs())
def test_identity_branches_exist_only_where_nothing_is_added_or_concatenated(spec: ModelSpec) -> None:
    shapes = infer_shapes(spec)
    laterals = {source for row in spec.rows.values() if row.block in LATERALS for source in row.sources[1:]}
    laterals |= {source for row in spec.rows.values() if row.block in ("double", "concat") for source in row.sources}
    residuals = {
        row.sources[0]
        for row in spec.rows.values()
        if row.block == "bottleneck" and row.shortcut and shapes[row.sources[0]].channels == row.out
    }
    for name, places in plan_rep_convs(spec).items():
        row = spec.rows[name]
        if row.block == "rep_conv":
            fits = shapes[row.sources[0]].channels == row.out and row.stride == 1
            assert places[0].identity == (fits and name not in laterals | residuals)


@settings(max_examples=25, deadline=None)
@given(spec=specs(), depth=st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_width_grows_like_the_concatenation(spec: ModelSpec, depth: float) -> None:
    if not any(isinstance(row, ElanRow) for row in spec.rows.values()):
        return
    scaled = scale_spec(spec, rule="compound", depth=depth)
    with torch.device("meta"):
        before, after = (DetectionModel(s, num_classes=1).rows for s in (spec, scaled))
    for name, row in spec.rows.items():
        if isinstance(row, ElanRow):
            growth = Fraction(_concatenated(after[name]), _concatenated(before[name]))
            expected = round_width(row.out * growth) if growth != 1 else row.out
            assert infer_shapes(scaled)[name].channels == expected


def _concatenated(block: nn.Module) -> int:
    elan = block.elans[0] if isinstance(block, EElan) else block
    assert isinstance(elan, Elan)
    return elan.merge.conv.in_channels
