"""Scaling of a spec: compound, width only, depth only (the paper's section 3.2). Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from yolov7.errors import SpecError
from yolov7.graph import ElanRow, ModelSpec, RowBase, Shape, build_spec, infer_shapes, own_width

Rule = Literal["compound", "width", "depth"]
MULTIPLE = 8  # widths are rounded up to a multiple of this


def scale_spec(spec: ModelSpec, *, rule: Rule, depth: float = 1.0, width: float = 1.0) -> ModelSpec:
    """A deeper or wider spec of the same name; SpecError for factors that do not go with the rule.

    `depth` multiplies the depth of every computational block and leaves all widths. `width` multiplies every width.
    `compound` multiplies the depth; the width of each block's output, and of the transitions that follow it, grows as
    the block's concatenation does, by (k' + 2) / (k + 2), while the hidden widths stay.
    """
    _check_factors(rule, depth=depth, width=width)
    depths = {name: _scaled_depth(row, depth) for name, row in spec.rows.items() if isinstance(row, ElanRow)}
    if rule == "width":
        factor = Fraction(width).limit_denominator(10_000)
        return _widen(spec, growth=dict.fromkeys(spec.rows, factor), hidden=factor, depths={})
    if not depths:
        raise SpecError(f"rule={rule!r} scales the depth of ELAN blocks, but spec {spec.name!r} has none; use 'width'")
    growth = concat_growth(spec, depths) if rule == "compound" else dict.fromkeys(spec.rows, Fraction(1))
    return _widen(spec, growth=growth, hidden=Fraction(1), depths=depths)


def concat_growth(spec: ModelSpec, depths: Mapping[str, int]) -> dict[str, Fraction]:
    """The factor on every row's width when its ELAN blocks get these depths.

    A block's own is the growth of its concatenation; any other row has that of its first source, and rows before the
    first block have that block's.
    """
    growth: dict[str, Fraction] = {}
    stem: list[str] = []
    for name, row in spec.rows.items():
        if isinstance(row, ElanRow):
            growth[name] = Fraction(depths[name] + 2, row.num_concatenated)
            growth |= dict.fromkeys(stem, growth[name])
            stem = []
        elif row.sources[0] in growth:
            growth[name] = growth[row.sources[0]]
        else:
            stem.append(name)
    return growth | dict.fromkeys(stem, Fraction(1))


def round_width(width: Fraction, *, multiple: int = MULTIPLE) -> int:
    """The width rounded up to the multiple, as the released models have it."""
    return math.ceil(width / multiple) * multiple


def _check_factors(rule: Rule, *, depth: float, width: float) -> None:
    for name, factor in (("depth", depth), ("width", width)):
        if not (math.isfinite(factor) and factor > 0):
            raise SpecError(f"scale {name}={factor} must be a positive number")
    if rule == "width" and depth != 1:
        raise SpecError(f"scale depth={depth} does not go with rule 'width'; use 'compound' or 'depth'")
    if rule != "width" and width != 1:
        raise SpecError(f"scale width={width} does not go with rule {rule!r}, which needs none; leave it out")


def _scaled_depth(row: ElanRow, factor: float) -> int:
    return max(1, math.floor(row.depth * factor + 0.5))


def _widen(
    spec: ModelSpec, *, growth: Mapping[str, Fraction], hidden: Fraction, depths: Mapping[str, int]
) -> ModelSpec:
    """The spec with each row's own width times its growth, hidden widths times `hidden`, and these depths."""
    old = infer_shapes(spec)
    new = dict(old)
    rows: dict[str, Any] = {}
    for name, row in spec.rows.items():
        change: dict[str, Any] = {}
        if "out" in type(row).model_fields:
            before, after = ([shapes[source] for source in row.sources] for shapes in (old, new))
            change["out"] = _scaled_out(row, factor=growth[name], out=old[name].channels, before=before, after=after)
        if isinstance(row, ElanRow):
            change |= {"hidden": _scaled_width(row.hidden, hidden), "depth": depths.get(name, row.depth)}
        scaled = row.model_copy(update=change)
        new[name] = scaled.shape([new[source] for source in row.sources])
        rows[name] = scaled.model_dump(by_alias=True)
    return build_spec(spec.model_dump(by_alias=True, exclude={"rows"}) | {"rows": rows})


def _scaled_out(row: RowBase, *, factor: Fraction, out: int, before: Sequence[Shape], after: Sequence[Shape]) -> int:
    own = own_width(row, out=out, inputs=before)
    laterals = -own_width(row, out=0, inputs=after)
    return _scaled_width(own, factor, parts=row.num_parts) + laterals


def _scaled_width(width: int, factor: Fraction, *, parts: int = 1) -> int:
    """Rounded part by part; a width that does not change is not rounded either."""
    return width if factor == 1 else round_width(width * factor, multiple=MULTIPLE * parts)
