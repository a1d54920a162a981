from __future__ import annotations

import pytest

from yolov7.errors import SpecError
from yolov7.spec.auxiliary import auxiliary_widths
from yolov7.spec.scaling import scale_spec
from yolov7.spec.spec_files import ModelSpec, load_spec, resolve_spec


def widths(spec: ModelSpec) -> dict[str, int]:
    return {name: row.out for name, row in spec.rows.items() if hasattr(row, "out")}


def test_compound_scaling_gives_x() -> None:
    scaled = scale_spec(load_spec("yolov7x-light"), rule="compound", depth=1.5)
    assert widths(scaled) == {
        "s1": 40, "s2": 80, "s3": 80, "d2": 160, "p2": 320, "d3": 320, "p3": 640, "d4": 640, "p4": 1280, "d5": 1280,
        "p5": 1280, "n5": 640, "u4": 640, "n4": 320, "u3": 320, "n3": 160, "e4": 640, "m4": 320, "e5": 1280, "m5": 640,
        "r3": 320, "r4": 640, "r5": 1280,
    }  # fmt: skip
    assert [scaled.rows[name].depth for name in ("p2", "p5", "n4", "m5")] == [3, 3, 3, 3]
    assert [scaled.rows[name].hidden for name in ("p2", "p5", "n3", "m5")] == [64, 256, 128, 512]


def test_width_only_scales_every_width() -> None:
    light = load_spec("yolov7x-light")
    scaled = scale_spec(light, rule="width", width=1.25)
    assert widths(scaled) == {name: width * 5 // 4 for name, width in widths(light).items()}
    assert (scaled.rows["p2"].hidden, scaled.rows["p2"].depth) == (80, 2)


def test_depth_only_leaves_widths() -> None:
    light = load_spec("yolov7x-light")
    scaled = scale_spec(light, rule="depth", depth=2.0)
    assert widths(scaled) == widths(light)
    assert (scaled.rows["p2"].hidden, scaled.rows["p2"].depth) == (64, 4)


def test_every_unit_of_depth_doubles() -> None:
    tiny = load_spec("yolov7-tiny")
    deep = scale_spec(tiny, rule="compound", depth=2.0)
    assert (tiny.rows["p3"].depth, deep.rows["p3"].depth) == (2, 4)
    assert (tiny.rows["p3"].out, deep.rows["p3"].out) == (128, 192)  # 6 maps for 4
    assert deep.rows["p3"].hidden == tiny.rows["p3"].hidden


def test_factor_one_changes_nothing() -> None:
    for name in ("nano", "yolov7"):
        spec = load_spec(name)
        for rule in ("compound", "width", "depth"):
            assert scale_spec(spec, rule=rule) == spec


def test_widths_round_up_to_multiples_of_8() -> None:
    scaled = scale_spec(load_spec("yolov7-tiny"), rule="width", width=0.3)
    assert {width % 8 for width in widths(scaled).values()} == {0}
    assert (scaled.rows["s1"].out, scaled.rows["p2"].out) == (16, 24)
    assert scaled.rows["u4"].out == 80  # two maps of 40


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"rule": "width", "depth": 2.0}, "depth=2.0 has no effect with rule 'width'"),
        ({"rule": "compound", "width": 2.0}, "width=2.0 has no effect with rule 'compound'"),
        ({"rule": "depth", "depth": 0.0}, "depth=0.0 must be between 0.01 and 100"),
        ({"rule": "width", "width": float("nan")}, "width=nan must be between 0.01 and 100"),
    ],
)
def test_factors_that_do_not_fit_the_rule(factors: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        scale_spec(load_spec("nano"), **factors)


def test_depth_may_differ_from_row_to_row() -> None:
    """Rows that are not named keep their depth; widths follow block by block."""
    light = load_spec("yolov7x-light")
    scaled = scale_spec(light, rule="compound", depth={"p4": 2.0, "p5": 1.5})
    assert [scaled.rows[name].depth for name in ("p2", "p3", "p4", "p5", "n4")] == [2, 2, 4, 3, 2]
    changed = {name: width for name, width in widths(scaled).items() if width != widths(light)[name]}
    assert changed == {"p4": 1536, "d5": 1536, "p5": 1280, "n5": 640, "u4": 640, "e5": 1152}
    assert scale_spec(light, rule="depth", depth={"p4": 2.0}).rows["p4"].depth == 4
    file = {"base": "yolov7x-light", "scale": {"rule": "compound", "depth": {"p4": 2.0, "p5": 1.5}}}
    assert resolve_spec(file, name=light.name) == scaled
    with pytest.raises(SpecError, match=r"depth.p44: no row of spec 'yolov7x-light' with a depth; did you mean 'p4'"):
        scale_spec(light, rule="compound", depth={"p44": 2.0})
    with pytest.raises(SpecError, match=r"depth\.d3: no row"):
        scale_spec(light, rule="compound", depth={"d3": 2.0})


def test_depth_and_width_by_given_factors() -> None:
    """YOLOR-CSP-X: factors 1.33 and 1.25; depths are rounded to the nearest integer."""
    base, scaled = load_spec("yolor-csp"), load_spec("yolor-csp-x")
    assert widths(scaled) == {name: width * 5 // 4 for name, width in widths(base).items()}
    assert [scaled.rows[name].depth for name in ("p1", "p2", "p3", "p5", "n4")] == [1, 3, 11, 5, 3]


def test_compound_scaling_of_cross_stage_partial_blocks_deepens_only() -> None:
    base = load_spec("yolor-csp")
    scaled = scale_spec(base, rule="compound", depth=2.0)
    assert widths(scaled) == widths(base)
    assert scaled.rows["p3"].depth == 16


def test_e6_is_w6_scaled_and_d6_is_e6_scaled() -> None:
    """The auxiliary head of W6 already has the widths of E6, which are not scaled."""
    w6, e6, d6 = (load_spec(f"yolov7-{name}") for name in ("w6", "e6", "d6"))
    scaled = scale_spec(w6, rule="compound", depth=1.5)
    assert widths(scaled) == widths(e6)
    assert auxiliary_widths(scaled) == auxiliary_widths(w6) == auxiliary_widths(e6) == (320, 640, 960, 1280)
    assert widths(d6) == {name: width * 6 // 5 for name, width in widths(e6).items()}
    assert auxiliary_widths(d6) == (384, 768, 1152, 1536)
    assert auxiliary_widths(scale_spec(w6, rule="width", width=0.5)) == (160, 320, 480, 640)


def test_e_elan_scales_as_elan_does() -> None:
    e6e = load_spec("yolov7-e6e")
    scaled = scale_spec(e6e, rule="compound", depth=4 / 3)
    assert widths(scaled) == widths(load_spec("yolov7-d6"))
    assert (scaled.rows["p3"].cardinality, scaled.rows["p3"].hidden) == (2, 128)
    assert scaled.head.taps == e6e.head.taps
