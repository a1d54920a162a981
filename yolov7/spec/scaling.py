"""Scaling of a spec: compound, width only, depth only (the paper's section 3.2). Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from yolov7.errors import SpecError, suggest
from yolov7.spec.block_schema import Auxiliary, ComputationalRow, DetectRow, ElanRow
from yolov7.spec.graph import ModelSpec, build_spec, infer_shapes, row_of
from yolov7.spec.row import RowBase, Shape, own_width

Rule = Literal["compound", "width", "depth", "both"]
Depth = float | Mapping[str, float]  # one factor, or factors by row
MULTIPLE = 8  # widths are rounded up to a multiple of this
MAX_FACTOR = 100


def scale_spec(spec: ModelSpec, *, rule: Rule, depth: Depth = 1.0, width: float = 1.0) -> ModelSpec:
    """A deeper or wider spec of the same name; SpecError for factors that do not go with the rule.

    `depth` multiplies the depth of every computational block, or of the rows that it names, and leaves all widths.
    `width` multiplies every width; `both` does both, as models before had it. `compound` multiplies the depth; the
    width of each block's output, and of the transitions that follow it, grows as the block's concatenation does, by
    (k' + 2) / (k + 2), while the hidden widths stay.
    """
    _check_factors(rule, depth=depth, width=width)
    depths = _scaled_depths(spec, depth)
    factor = Fraction(width).limit_denominator(10_000)
    if not depths and rule != "width":
        raise SpecError(f"rule={rule!r} scales the depth of blocks, but spec {spec.name!r} has none; use 'width'")
    growth = concat_growth(spec, depths) if rule == "compound" else dict.fromkeys(spec.rows, factor)
    return _widen(spec, growth=growth, hidden=factor, depths=depths)


def concat_growth(spec: ModelSpec, depths: Mapping[str, int]) -> dict[str, Fraction]:
    """The factor on every row's width when its computational blocks get these depths.

    A block's own is the growth of its concatenation; any other row has that of its first source, and rows before the
    first block have that block's.
    """
    growth: dict[str, Fraction] = {}
    stem: list[str] = []
    for name, row in spec.rows.items():
        source = row_of(row.sources[0])
        if isinstance(row, ComputationalRow):
            growth[name] = row.growth(depths[name])
            growth |= dict.fromkeys(stem, growth[name])
            stem = []
        elif source in growth:
            growth[name] = growth[source]
        else:
            stem.append(name)
    return growth | dict.fromkeys(stem, Fraction(1))


def round_width(width: Fraction, *, multiple: int = MULTIPLE) -> int:
    """The width rounded up to the multiple, as the released models have it."""
    return math.ceil(width / multiple) * multiple


def _check_factors(rule: Rule, *, depth: Depth, width: float) -> None:
    factors = depth if isinstance(depth, Mapping) else {"depth": depth}
    for name, factor in (*factors.items(), ("width", width)):
        if not 1 / MAX_FACTOR <= factor <= MAX_FACTOR:
            raise SpecError(f"scale {name}={factor} must lie between {1 / MAX_FACTOR} and {MAX_FACTOR}")
    if rule == "width" and set(factors.values()) != {1.0}:
        raise SpecError(f"scale depth={depth} does not go with rule 'width'; use 'compound', 'depth' or 'both'")
    if rule in ("compound", "depth") and width != 1:
        raise SpecError(f"scale width={width} does not go with rule {rule!r}, which needs none; leave it out")


def _scaled_depths(spec: ModelSpec, factor: Depth) -> dict[str, int]:
    """The new depth of every row that has one."""
    old = {name: row.depth for name, row in spec.rows.items() if isinstance(row, ComputationalRow)}
    if isinstance(factor, Mapping):
        for name in factor:
            if name not in old:
                raise SpecError(f"scale depth.{name}: no row of spec {spec.name!r} with a depth{suggest(name, old)}")
        return {name: _scaled_depth(depth, factor.get(name, 1.0)) for name, depth in old.items()}
    return {name: _scaled_depth(depth, factor) for name, depth in old.items()}


def _scaled_depth(depth: int, factor: float) -> int:
    return max(1, math.floor(depth * factor + 0.5))


def _widen(
    spec: ModelSpec, *, growth: Mapping[str, Fraction], hidden: Fraction, depths: Mapping[str, int]
) -> ModelSpec:
    """The spec with each row's own width times its growth, hidden widths times `hidden`, and these depths."""
    old = infer_shapes(spec)
    new = dict(old)
    rows: dict[str, Any] = {}
    for name, row in spec.rows.items():
        change: dict[str, Any] = {"depth": depths[name]} if name in depths else {}
        if "out" in type(row).model_fields:
            before, after = ([shapes[source] for source in row.sources] for shapes in (old, new))
            change["out"] = _scaled_out(row, factor=growth[name], out=old[name].channels, before=before, after=after)
        if isinstance(row, ElanRow):
            change["hidden"] = _scaled_width(row.hidden, hidden)
        if isinstance(row, DetectRow):
            change["auxiliary"] = _scaled_auxiliary(row.auxiliary, hidden)
        scaled = row.model_copy(update=change)
        shape = scaled.shape([new[source] for source in row.sources])
        new |= dict.fromkeys((key for key in old if row_of(key) == name), shape)
        rows[name] = scaled.model_dump(by_alias=True)
    return build_spec(spec.model_dump(by_alias=True, exclude={"rows"}) | {"rows": rows})


def _scaled_auxiliary(auxiliary: Auxiliary | None, factor: Fraction) -> Auxiliary | None:
    """Widths of its own change by a factor that was given; compound scaling leaves them (W6 has those of E6)."""
    if auxiliary is None or auxiliary.out is None:
        return auxiliary
    return auxiliary.model_copy(update={"out": tuple(_scaled_width(width, factor) for width in auxiliary.out)})


def _scaled_out(row: RowBase, *, factor: Fraction, out: int, before: Sequence[Shape], after: Sequence[Shape]) -> int:
    own = own_width(row, out=out, inputs=before)
    laterals = -own_width(row, out=0, inputs=after)
    return _scaled_width(own, factor, parts=row.num_parts) + laterals


def _scaled_width(width: int, factor: Fraction, *, parts: int = 1) -> int:
    """Rounded part by part; a width that does not change is not rounded either."""
    return width if factor == 1 else round_width(width * factor, multiple=MULTIPLE * parts)
