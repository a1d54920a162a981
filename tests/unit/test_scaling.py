from __future__ import annotations

import pytest

from tests.golden.vectors import LIGHT
from yolov7.errors import SpecError
from yolov7.scaling import scale_spec
from yolov7.spec import ModelSpec, load_spec, resolve_spec


def widths(spec: ModelSpec) -> dict[str, int]:
    return {name: row.out for name, row in spec.rows.items() if hasattr(row, "out")}


def test_compound_scaling_gives_x() -> None:
    scaled = scale_spec(resolve_spec(LIGHT, name="light"), rule="compound", depth=1.5)
    assert widths(scaled) == {
        "s1": 40, "s2": 80, "s3": 80, "d2": 160, "p2": 320, "d3": 320, "p3": 640, "d4": 640, "p4": 1280, "d5": 1280,
        "p5": 1280, "n5": 640, "u4": 640, "n4": 320, "u3": 320, "n3": 160, "e4": 640, "m4": 320, "e5": 1280, "m5": 640,
        "r3": 320, "r4": 640, "r5": 1280,
    }  # fmt: skip
    assert [scaled.rows[name].depth for name in ("p2", "p5", "n4", "m5")] == [3, 3, 3, 3]
    assert [scaled.rows[name].hidden for name in ("p2", "p5", "n3", "m5")] == [64, 256, 128, 512]


def test_width_only_scales_every_width() -> None:
    light = resolve_spec(LIGHT, name="light")
    scaled = scale_spec(light, rule="width", width=1.25)
    assert widths(scaled) == {name: width * 5 // 4 for name, width in widths(light).items()}
    assert (scaled.rows["p2"].hidden, scaled.rows["p2"].depth) == (80, 2)


def test_depth_only_leaves_widths() -> None:
    light = resolve_spec(LIGHT, name="light")
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
        ({"rule": "width", "depth": 2.0}, "depth=2.0 does not go with rule 'width'"),
        ({"rule": "compound", "width": 2.0}, "width=2.0 does not go with rule 'compound'"),
        ({"rule": "depth", "depth": 0.0}, "depth=0.0 must lie between 0.01 and 100"),
        ({"rule": "width", "width": float("nan")}, "width=nan must lie between 0.01 and 100"),
    ],
)
def test_factors_that_do_not_go_with_the_rule(factors: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        scale_spec(load_spec("nano"), **factors)
