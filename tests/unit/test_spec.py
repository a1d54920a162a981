from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from yolov7.errors import SpecError
from yolov7.spec.graph import infer_shapes
from yolov7.spec.row import MapShape
from yolov7.spec.spec_files import list_specs, load_spec, resolve_spec, spec_from_json, spec_to_json, spec_to_yaml

ANCHORS = [[10, 13, 16, 30], [30, 61, 62, 45]]


def rows(**changes: object) -> dict[str, object]:
    """Return a small specification of two levels with changed or added rows."""
    plain: dict[str, object] = {
        "s1": {"block": "conv", "out": 8, "s": 2},
        "s2": {"block": "conv", "out": 8, "s": 2},
        "p2": {"block": "elan", "out": 16, "hidden": 8, "depth": 1},
        "d3": {"block": "mp", "out": 16},
        "head": {"block": "detect", "from": ["p2", "d3"], "anchors": ANCHORS},
    }
    return plain | changes


@pytest.mark.parametrize("name", list_specs())
def test_packaged_specs_survive_json_and_yaml(name: str, tmp_path: Path) -> None:
    spec = load_spec(name)
    assert name in list_specs()
    assert spec.name == name
    assert spec_from_json(spec_to_json(spec)) == spec
    (tmp_path / f"{name}.yaml").write_text(spec_to_yaml(spec))
    assert load_spec(str(tmp_path / f"{name}.yaml")) == spec


def test_row_above_is_the_default_source() -> None:
    spec = resolve_spec({"rows": rows()}, name="small")
    assert spec.rows["s1"].sources == ("image",)
    assert spec.rows["p2"].sources == ("s2",)
    assert infer_shapes(spec)["d3"] == MapShape(16, 8)


def test_swap_keeps_the_keys_that_the_new_block_shares() -> None:
    spec = resolve_spec({"base": "yolov7", "swap": {"r3": {"block": "conv"}, "p2": {"depth": 3}}}, name="swapped")
    row = spec.rows["r3"].model_dump(by_alias=True, exclude_none=True)
    assert row == {"from": ("n3",), "block": "conv", "out": 256, "k": 3, "s": 1}
    assert spec.rows["p2"].depth == 3
    kept = resolve_spec({"base": "yolov7", "swap": {"d2": {"block": "maxpool"}, "p2": {"hidden": 64}}}, name="swapped")
    assert kept.rows["d2"].block == "maxpool"


def test_base_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("base: nano\nimage_size: 256\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\nscale: {rule: depth, depth: 2}\n")
    spec = load_spec(str(tmp_path / "second.yaml"))
    assert (spec.name, spec.image_size, spec.rows["p2"].depth) == ("second", 256, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p2": {"block": "elan", "out": 16, "hiden": 8, "hidden": 8, "depth": 1}},
         "p2.elan.hiden: unknown key; did you mean 'hidden'?"),
        ({"p2": {"block": "elann"}}, "p2: unknown block 'elann'; did you mean 'elan'?"),
        ({"p2": {"out": 8}}, "p2: the key `block` is missing"),
        ({"p2": {"block": "elan", "out": 16, "depth": 1}}, "p2.elan.hidden: missing"),
        ({"p2": {"block": "elan", "out": 16, "hidden": 0, "depth": 1}}, "p2.elan.hidden: Input should be greater"),
        ({"p2": {"block": "elan", "out": True, "hidden": 8, "depth": 1}}, "p2.elan.out: Input should be a valid int"),
        ({"p2": {"block": "elan_w", "out": 16, "hidden": 7, "depth": 1}}, "p2.elan_w: hidden=7 must be even"),
        ({"s2": {"block": "conv", "out": 8, "s": 3}}, "s2.conv.s: Input should be 1 or 2, not 3"),
        ({"s2": {"block": "conv", "out": 8, "from": ["p2"]}}, "s2: takes 'p2', which is not above it"),
        ({"s2": {"block": "conv", "out": 8, "from": ["s2"]}}, "s2: takes 's2', which is not above it"),
        ({"s2": {"block": "conv", "out": 8, "from": ["s11"]}}, "there is no such row; did you mean 's1'?"),
        ({"d3": {"block": "mp", "out": 16, "from": ["p2", "s1"]}}, "d3.mp: cannot concatenate a map of stride 8 with"),
        ({"d3": {"block": "mp", "out": 17}}, "d3.mp: out=17 leaves 17 channels of its own; their number must be even"),
        ({"d3": {"block": "up", "out": 16, "from": ["p2", "s2"]}}, "d3.up: cannot concatenate a map of stride 4"),
        ({"d3": {"block": "up", "out": 16}}, "d3.up: takes 2 maps, not 1"),
        ({"d3": {"block": "double", "from": ["p2", "p2"]}}, "d3.double: cannot concatenate maps of the strides [2, 4]"),
        ({"d3": {"block": "concat", "from": ["p2", "s1"]}}, "d3.concat: cannot concatenate maps of the strides [2, 4]"),
        ({"d3": {"block": "maxpool", "activation": "mish"}}, "d3.maxpool: has no convolution that an activation"),
        ({"s2": {"block": "conv", "out": 8, "k": 6}}, "s2.conv: k=6 needs s=2"),
        ({"p2": {"block": "sppcspc", "out": 8, "widest_first": True}}, "p2.sppcspc: widest_first=true is a choice of"),
        ({"s2": {"block": "conv", "out": 9}, "p2": {"block": "csp_tiny", "out": 8}}, "takes half of 9 channels"),
        ({"head": {"block": "detect", "from": ["p2"], "anchors": ANCHORS}}, "head.detect: 2 levels of anchors for 1"),
        ({"head": {"block": "detect", "from": ["d3", "p2"], "anchors": ANCHORS}}, "head.detect: strides [8, 4]"),
        ({"head": {"block": "detect", "from": ["p2", "d3"], "anchors": [[1, 2], [3]]}}, "must be pairs of width"),
        ({"head": {"block": "conv", "out": 8}}, "the last row must be the only detection head; the"),
        ({"head": {"block": "detect", "from": ["p2"], "anchors": [[1, 2]]}}, "d3: no row takes its map"),
    ],
)  # fmt: skip
def test_faults_are_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_spec({"rows": rows(**changes)}, name="small")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _many_rows(number: int) -> dict[str, object]:
    return {f"a{i}": {"block": "conv", "out": 8} for i in range(number)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p2": {"block": "elan", "out": 8, "hidden": 8, "depth": 100, "cardinality": 4096}}, "p2.elan.cardinality"),
        ({"p2": {"block": "elan", "out": 8, "hidden": 8, "depth": 100, "cardinality": 64}},
         "p2: the model would have 12,997 convolutions, more than the limit of 5,000; reduce the depth"),
        ({"p2": {"block": "elan", "out": 8, "hidden": 8, "depth": 10**400}}, "p2.elan.depth"),
        ({"p2": {"block": "bottleneck", "out": 8, "depth": 65_536}}, "p2.bottleneck.depth"),
        ({"p2": {"block": "sppcspc", "out": 65_536}}, "p2: the model would have"),
        ({"s1": {"block": "conv", "out": 10**9, "s": 2}}, "s1.conv.out"),
        ({"head": {"block": "detect", "from": ["p2", "d3"], "anchors": [[1.0] * 1000] * 2}}, "head.detect.anchors.0"),
        ({"head": {"block": "detect", "from": ["p2"] * 1000, "anchors": [[1, 2]] * 1000}}, "head.detect.from"),
        ({"head": {"block": "detect", "from": ["p2", "d3"], "anchors": [[1, float("nan")]] * 2}}, "head.detect.anch"),
        ({"head": {"block": "detect", "from": ["p2", "d3"], "anchors": [[1, 0]] * 2}}, "head.detect.anchors.0.1"),
        (_many_rows(600), "rows: Dictionary should have at most 500 items"),
        ({"n" * 65: {"block": "conv", "out": 8}}, "rename the row"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_built_are_refused_at_once(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_json(json.dumps({"name": "x", "rows": rows(**changes)}))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_bases_of_bases_end(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"b{i}.yaml").write_text(f"base: b{i + 1}.yaml\n")
    with pytest.raises(SpecError, match="is reached through 16 bases"):
        load_spec(str(tmp_path / "b0.yaml"))


@pytest.mark.parametrize(
    "scale", ["{rule: depth, depth: true}", "{rule: depth, depth: .nan}", "{rule: width, width: '2'}"]
)
def test_factors_are_numbers(tmp_path: Path, scale: str) -> None:
    (tmp_path / "x.yaml").write_text(f"base: nano\nscale: {scale}\n")
    with pytest.raises(SpecError, match="scale"):
        load_spec(str(tmp_path / "x.yaml"))


def test_a_head_on_the_image_itself() -> None:
    spec = resolve_spec({"rows": {"head": {"block": "detect", "anchors": [[1, 2]]}}, "auxiliary": True}, name="x")
    assert spec.head.taps == ("image",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: yolov8\n", "no spec 'yolov8'; did you mean 'yolov7'?"),
        ("base: bad.yaml\n", "is its own base"),
        ("base: none.yaml\n", "does not exist"),
        ("base: nano\nswap: {p22: {out: 8}}\n", "swap.p22: no such row; did you mean 'p2'?"),
        ("base: nano\nscal: {rule: depth}\n", "scal: unknown key; did you mean 'scale'?"),
        ("base: nano\nimage_size: 100\n", "image_size=100 must be a multiple of 32"),
        ("base: nano\nrows: {}\n", "give either `rows` or `base`"),
        ("rows: {a: {block: conv, out: 8}, a: {block: conv, out: 8}}\n", "'a' is written twice"),
        ("rows: {a: {block: conv, out: 8, from: image}}\n", "a.conv.from: must be a list, such as [image], not 'im"),
        ("rows: [1, 2\n", "is not usable YAML"),
        ("- 1\n", "must contain a mapping"),
    ],
)
def test_faults_of_files_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_of_another_kind_is_a_spec_error() -> None:
    for text in ("{", "[]", '{"name": "x", "rows": {"a": {"block": "mystery"}}}'):
        with pytest.raises(SpecError):
            spec_from_json(text)


def test_spec_and_scaling_do_not_import_torch() -> None:
    code = "import sys, yolov7.spec.spec_files as s; s.load_spec('nano'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
