"""The block graph of a model: its rows in order; validation of names, channels and strides. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, final

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from yolov7.errors import SpecError, one_line, shown, suggest
from yolov7.spec.block_schema import Count, DetectRow, Row, keys_of_block, list_blocks
from yolov7.spec.row import RepPlace, RowBase, Shape

IMAGE = "image"  # the name by which rows take the network's input
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@final
class ModelSpec(BaseModel):
    """A model, fully resolved: its rows in the order of computation, the last one its detection head.

    `image_size` is the side of its training images in pixels, unless the training says otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    activation: Literal["silu", "leaky_relu"] = "silu"
    image_size: Count = 640
    rows: dict[str, Row]

    @model_validator(mode="after")
    def _check_graph(self) -> ModelSpec:
        shapes = infer_shapes(self)
        _check_head(self)
        largest = max(shape.stride for shape in shapes.values())
        if self.image_size % largest:
            raise ValueError(f"image_size={self.image_size} must be a multiple of {largest}, the largest stride")
        return self

    @property
    def head_name(self) -> str:
        """The name of the detection head's row."""
        return next(reversed(self.rows))

    @property
    def head(self) -> DetectRow:
        """The detection head's row."""
        head = self.rows[self.head_name]
        assert isinstance(head, DetectRow)
        return head


def infer_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """The shape of every map, `image` included (of the head: its anchors); ValueError where rows do not fit.

    The branches of an E-ELAN have their own entries: `n3.1`, `n3.2` beside `n3`.
    """
    shapes = {IMAGE: Shape(3, 1)}
    for name, row in spec.rows.items():
        for source in row.all_sources:
            _check_source(source, of=name, known=shapes, rows=spec.rows)
        try:
            shapes[name] = row.shape([shapes[source] for source in row.sources])
            if isinstance(row, DetectRow):
                row.check_auxiliary(*([shapes[source] for source in part] for part in (row.sources, row.taps)))
        except ValueError as error:
            raise ValueError(f"{name}.{row.block}: {error}") from None
        if row.num_branches > 1:
            shapes |= {f"{name}.{i}": shapes[name] for i in range(1, row.num_branches + 1)}
    return shapes


def row_of(source: str) -> str:
    """The name of the row whose map, or a branch of it, this is."""
    return source.partition(".")[0]


def what_meets(spec: ModelSpec, name: str, *, shapes: Mapping[str, Shape]) -> str:
    """What a row's map goes into just as it is: `a concatenation in e4`, `a residual addition in b2`, or nothing."""
    for user, row in spec.rows.items():
        inputs = [shapes[source] for source in row.sources]
        for position, source in enumerate(row.sources):
            if source == name and (what := row.source_meets(position, inputs)):
                return f"{what} in {user}"
    return ""


def plan_rep_convs(spec: ModelSpec) -> dict[str, tuple[RepPlace, ...]]:
    """Of every row that has any, its re-parameterised convolutions with what was planned (the paper's section 4.1)."""
    shapes = infer_shapes(spec)
    plan = {
        name: row.rep_places([shapes[source] for source in row.sources], meets=what_meets(spec, name, shapes=shapes))
        for name, row in spec.rows.items()
    }
    return {name: places for name, places in plan.items() if places}


def build_spec(data: Mapping[str, Any]) -> ModelSpec:
    """A ModelSpec from plain values, `from` filled in where a row has none; SpecError, in one line, for every fault."""
    rows = data.get("rows")
    filled = dict(data) | ({"rows": _fill_sources(rows)} if isinstance(rows, Mapping) else {})
    try:
        return ModelSpec.model_validate(filled)
    except ValidationError as error:
        message = describe(error, keys=list(ModelSpec.model_fields))
        raise SpecError(f"{message} (spec {one_line(data.get('name'), limit=80)})") from None


def describe(error: ValidationError, *, keys: Iterable[str] = ()) -> str:
    """The first fault of a validation in one line, such as `p2.elan.hiden: unknown key; did you mean 'hidden'?`.

    `keys` are those known outside of rows.
    """
    return one_line(_describe(error.errors(include_url=False)[0], keys))


def _describe(first: ErrorDetails, keys: Iterable[str]) -> str:
    place = ".".join(one_line(part, limit=80) for part in first["loc"] if part != "rows")
    match first["type"]:
        case "extra_forbidden":
            known = keys_of_block(str(first["loc"][-2])) if len(first["loc"]) > 2 else keys
            return f"{place}: unknown key{suggest(str(first['loc'][-1]), known)}"
        case "missing":
            return f"{place}: missing"
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{place}: {_describe_block(first)}"
        case "value_error":
            return f"{place}: {first['ctx']['error']}".removeprefix(": ")
        case _:
            return f"{place}: {first['msg']}, not {shown(first['input'])}"


def _describe_block(error: ErrorDetails) -> str:
    known = list_blocks()
    given = error["input"].get("block") if isinstance(error["input"], Mapping) else None
    if given is None:
        return f"names no block; one of {', '.join(known)}"
    return f"unknown block {shown(given)}{suggest(str(given), known)} (there are {', '.join(known)})"


def _fill_sources(rows: Mapping[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    above = IMAGE
    for name, row in rows.items():
        filled[name] = {"from": [above], **row} if isinstance(row, Mapping) else row
        above = name
    return filled


def _check_source(source: str, *, of: str, known: Mapping[str, Shape], rows: Mapping[str, RowBase]) -> None:
    if source in known:
        return
    if source in rows:
        raise ValueError(
            f"{of}: takes {source!r}, which is not above it; order the rows so that none needs a later one"
        )
    if row_of(source) in known and row_of(source) in rows:
        number = rows[row_of(source)].num_branches
        raise ValueError(f"{of}: takes {source!r}, but {row_of(source)} has {number} branch{'es' * (number > 1)}")
    raise ValueError(f"{of}: takes {source!r}, but there is no such row{suggest(source, known)}")


def _check_head(spec: ModelSpec) -> None:
    heads = [name for name, row in spec.rows.items() if isinstance(row, DetectRow)]
    if heads != list(spec.rows)[-1:] or not heads:
        raise ValueError(f"the last row, and no other, must be a detect row; found {heads or 'none'}")
    for name in spec.rows:
        if not _NAME.fullmatch(name) or name == IMAGE:
            raise ValueError(f"{name}: a row's name is made of small letters, digits and _, and is not {IMAGE!r}")
    used = {row_of(source) for row in spec.rows.values() for source in row.all_sources}
    unused = [name for name in list(spec.rows)[:-1] if name not in used]
    if unused:
        raise ValueError(f"{unused[0]}: no row takes its map; use it or remove it")
