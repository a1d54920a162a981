"""Scaling of a specification: compound, width only, depth only (section 3.2 of the paper).

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from yolov7.errors import SpecError, one_line, suggest
from yolov7.spec.block_schema import Auxiliary, ComputationalRow, DetectRow, ElanRow, YoloxHeadRow
from yolov7.spec.graph import ModelSpec, build_spec, infer_shapes, row_of
from yolov7.spec.row import MapShape, RowBase, own_width

Rule = Literal["compound", "width", "depth", "both"]
DepthFactor = float | Mapping[str, float]  # one factor, or factors by row name
MULTIPLE = 8  # scaled widths are rounded up to a multiple of this
MAX_FACTOR = 100


def scale_spec(spec: ModelSpec, *, rule: Rule, depth: DepthFactor = 1.0, width: float = 1.0) -> ModelSpec:
    """Return a deeper or wider specification of the same name.

    Args:
        spec: The specification to scale.
        rule: `compound` multiplies the depth; the width of the output of each block, and of the transitions that follow
            it, grows as the concatenation of the block does, by (k' + 2) / (k + 2), and hidden widths stay. `depth`
            multiplies the depth and leaves all widths. `width` multiplies every width. `both` multiplies depth and
            width by given factors, as models before YOLOv7 did.
        depth: Factor for the depth of every computational block, or factors for the named rows.
        width: Factor for widths.

    Returns:
        The scaled specification.

    Raises:
        SpecError: If the factors do not fit the rule or the result is not a valid specification.
    """
    _check_factors(rule, depth=depth, width=width)
    depths = _scaled_depths(spec, depth)
    factor = Fraction(width).limit_denominator(10_000)
    if not depths and rule != "width":
        raise SpecError(f"rule={rule!r} scales the depth of blocks, but spec {spec.name!r} has none; use 'width'")
    growth = concat_growth(spec, depths) if rule == "compound" else dict.fromkeys(spec.rows, factor)
    return _widen(spec, growth=growth, hidden=factor, depths=depths)


def concat_growth(spec: ModelSpec, depths: Mapping[str, int]) -> dict[str, Fraction]:
    """Return the factor for the width of every row if computational blocks get new depths.

    The factor of a block is the growth of its concatenation. Any other row has the factor of its first source. Rows
    before the first block have the factor of that block.

    Args:
        spec: The specification.
        depths: New depth of each row that has one.

    Returns:
        Factors by row name.
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
    """Round a width up to a multiple, as in the released models.

    Args:
        width: The exact width.
        multiple: What the result is a multiple of.

    Returns:
        The rounded width.
    """
    return math.ceil(width / multiple) * multiple


def _check_factors(rule: Rule, *, depth: DepthFactor, width: float) -> None:
    factors = depth if isinstance(depth, Mapping) else {"depth": depth}
    for name, factor in (*factors.items(), ("width", width)):
        if not 1 / MAX_FACTOR <= factor <= MAX_FACTOR:
            raise SpecError(
                f"scale {one_line(name, limit=80)}={factor} must be between {1 / MAX_FACTOR} and {MAX_FACTOR}"
            )
    if rule == "width" and set(factors.values()) != {1.0}:
        raise SpecError(f"scale depth={depth} has no effect with rule 'width'; use 'compound', 'depth' or 'both'")
    if rule in ("compound", "depth") and width != 1:
        raise SpecError(f"scale width={width} has no effect with rule {rule!r}; leave it out")


def _scaled_depths(spec: ModelSpec, factor: DepthFactor) -> dict[str, int]:
    """Return the new depth of every row that has one, rounded to the nearest integer and at least 1."""
    old = {name: row.depth for name, row in spec.rows.items() if isinstance(row, ComputationalRow)}
    factors = factor if isinstance(factor, Mapping) else dict.fromkeys(old, factor)
    for name in factors:
        if name not in old:
            near = suggest(name, old)
            raise SpecError(f"scale depth.{one_line(name, limit=80)}: no row of spec {spec.name!r} with a depth{near}")
    return {name: max(1, math.floor(depth * factors.get(name, 1.0) + 0.5)) for name, depth in old.items()}


def _widen(
    spec: ModelSpec, *, growth: Mapping[str, Fraction], hidden: Fraction, depths: Mapping[str, int]
) -> ModelSpec:
    """Multiply the own width of each row by its growth and hidden widths by `hidden`, and set the depths."""
    old = infer_shapes(spec)
    new = dict(old)
    rows: dict[str, Any] = {}
    for name, row in spec.rows.items():
        change: dict[str, Any] = {"depth": depths[name]} if name in depths else {}
        if "out" in type(row).model_fields:
            before, after = ([shapes[source] for source in row.sources] for shapes in (old, new))
            change["out"] = _scaled_out(row, factor=growth[name], out=old[name].channels, before=before, after=after)
        if isinstance(row, ElanRow | YoloxHeadRow):
            change["hidden"] = _scaled_width(row.hidden, hidden)
        if isinstance(row, DetectRow):
            change["auxiliary"] = _scaled_auxiliary(row.auxiliary, hidden)
        scaled = row.model_copy(update=change)
        shape = scaled.shape([new[source] for source in row.sources])
        new |= dict.fromkeys((key for key in old if row_of(key) == name), shape)
        rows[name] = scaled.model_dump(by_alias=True)
    return build_spec(spec.model_dump(by_alias=True, exclude={"rows"}) | {"rows": rows})


def _scaled_auxiliary(auxiliary: Auxiliary | None, factor: Fraction) -> Auxiliary | None:
    """Scale explicit widths by a given factor. Compound scaling keeps them, because those of W6 are those of E6."""
    if auxiliary is None or auxiliary.out is None:
        return auxiliary
    return auxiliary.model_copy(update={"out": tuple(_scaled_width(width, factor) for width in auxiliary.out)})


def _scaled_out(
    row: RowBase, *, factor: Fraction, out: int, before: Sequence[MapShape], after: Sequence[MapShape]
) -> int:
    own = own_width(row, out=out, inputs=before)
    laterals = -own_width(row, out=0, inputs=after)
    return _scaled_width(own, factor, parts=row.num_parts) + laterals


def _scaled_width(width: int, factor: Fraction, *, parts: int = 1) -> int:
    """Round each of the equal parts of a width; a width whose factor is 1 is not rounded."""
    return width if factor == 1 else round_width(width * factor, multiple=MULTIPLE * parts)
