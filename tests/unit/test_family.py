"""Test that every packaged specification runs forward and backward, and that fusing preserves its outputs."""

from __future__ import annotations

import re

import pytest
import torch

from tests.property.test_fuse import randomise
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.auxiliary import with_auxiliary, without_auxiliary
from yolov7.spec.block_schema import ComputationalRow
from yolov7.spec.graph import infer_shapes
from yolov7.spec.scaling import scale_spec
from yolov7.spec.spec_files import ModelSpec, list_specs, load_spec, spec_from_json, spec_to_json

_LARGER = re.compile(r"yolov5[smlx]6?|(yolox|ppyoloe)-[mlx]")  # the same rows as the smallest model of their family
DIFFERENT = [name for name in list_specs() if not _LARGER.fullmatch(name)]


def assert_runs(spec: ModelSpec, *, dtype: torch.dtype, tolerance: float) -> None:
    """Check that gradients reach every parameter and that fusing preserves the maps of the lead head."""
    model = DetectionModel(spec, num_classes=2).to(dtype)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=generator, dtype=dtype)
    maps = model(images)
    assert len(maps.auxiliary) == len(spec.head.taps)
    sum(raw.square().mean() for raw in (*maps.lead, *maps.auxiliary)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    randomise(model.eval(), seed=0)
    with torch.no_grad():
        before, fused = model(images), fuse(model)
        after = fused(images)
    assert before.auxiliary == after.auxiliary == ()
    for ours, theirs in zip(after.lead, before.lead, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)
    assert fused.spec == without_auxiliary(spec)


@pytest.mark.parametrize("name", DIFFERENT)
def test_narrowed_specs_run_exactly(name: str) -> None:
    narrow = scale_spec(load_spec(name), rule="width", width=0.125)
    if any(isinstance(row, ComputationalRow) for row in narrow.rows.values()):
        narrow = scale_spec(narrow, rule="depth", depth=0.2)
    assert_runs(narrow, dtype=torch.float64, tolerance=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT)
def test_specs_run(name: str) -> None:
    assert_runs(load_spec(name), dtype=torch.float32, tolerance=1e-4)


@pytest.mark.parametrize("name", [name for name in list_specs() if not load_spec(name).head.anchor_free])
def test_every_spec_with_anchors_can_have_an_auxiliary_head(name: str) -> None:
    plain = without_auxiliary(load_spec(name))
    assert plain.head.auxiliary is None
    spec = with_auxiliary(plain)
    assert without_auxiliary(spec) == plain
    assert spec_from_json(spec_to_json(spec)) == spec
    shapes = infer_shapes(spec)
    assert [shapes[tap].stride for tap in spec.head.taps] == [shapes[source].stride for source in spec.head.sources]
