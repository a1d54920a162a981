"""Properties of random small graphs: fusing changes no output, and widths grow as the concatenations do."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolov7.blocks import RepConv
from yolov7.elan import Elan
from yolov7.graph import infer_shapes
from yolov7.model import DetectionModel
from yolov7.reparam import fuse
from yolov7.rows import ElanRow
from yolov7.scaling import round_width, scale_spec
from yolov7.spec import ModelSpec, resolve_spec

WIDTHS = st.sampled_from([8, 16, 24])
ACTIVATIONS = st.sampled_from(["silu", "leaky_relu"])


@st.composite
def blocks(draw: st.DrawFn, width: int) -> dict[str, Any]:
    """A row that leaves the resolution as it is; a RepConv may have the width of its input."""
    name = draw(st.sampled_from(["conv", "elan", "elan_w", "elan_tiny", "sppcspc", "spp_tiny", "rep_conv"]))
    row: dict[str, Any] = {"block": name, "out": draw(st.sampled_from([width, 8, 16]))}
    if name.startswith("elan"):
        row |= {"hidden": draw(WIDTHS), "depth": draw(st.integers(1, 3))}
    return row


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """A stem, two levels of random blocks, a way up and a way down, in one of the transitions' forms."""
    rows: dict[str, Any] = {"s1": {"block": "conv", "out": draw(WIDTHS), "s": 2}}
    rows["p1"] = draw(blocks(rows["s1"]["out"]))
    down = draw(st.sampled_from(["mp", "maxpool", "conv", "rep_conv"]))
    rows["d2"] = {"block": down} | ({} if down == "maxpool" else {"out": 16})
    rows["d2"] |= {"s": 2} if down in ("conv", "rep_conv") else {}
    rows["p2"] = draw(blocks(16))
    rows["u1"] = {"block": "up", "from": ["p2", "p1"], "out": 2 * draw(WIDTHS)}
    rows["n1"] = draw(blocks(rows["u1"]["out"]))
    rows["e2"] = {"block": draw(st.sampled_from(["mp", "conv"])), "from": ["n1", "p2"], "out": rows["p2"]["out"] + 16}
    rows["e2"] |= {"s": 2} if rows["e2"]["block"] == "conv" else {}
    rows["r1"] = draw(blocks(rows["n1"]["out"])) | {"from": ["n1"]}
    anchors, implicit = [[10, 13, 16, 30], [30, 61, 62, 45]], draw(st.booleans())
    rows["head"] = {"block": "detect", "from": ["r1", "e2"], "anchors": anchors, "implicit": implicit}
    return resolve_spec({"rows": rows, "activation": draw(ACTIVATIONS)}, name="random")


def randomise(model: nn.Module, seed: int) -> None:
    """Other than the initial values everywhere, statistics of batch norms too."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim < 4:
            value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5)
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
    assert not [key for key in fused.state_dict() if key.startswith(("head.ia", "head.im"))]
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(spec=specs())
def test_identity_only_where_nothing_is_concatenated(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=1)
    shapes = infer_shapes(spec)
    laterals = {source for row in spec.rows.values() if row.block in ("mp", "conv") for source in row.sources[1:]}
    for name, module in model.rows.items():
        if isinstance(module, RepConv):
            row = spec.rows[name]
            fits = shapes[row.sources[0]].channels == row.out and row.stride == 1
            assert (module.identity is not None) == (fits and name not in laterals)


@settings(max_examples=25, deadline=None)
@given(spec=specs(), depth=st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_width_grows_as_the_concatenation(spec: ModelSpec, depth: float) -> None:
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
    assert isinstance(block, Elan)
    return block.merge.conv.in_channels
