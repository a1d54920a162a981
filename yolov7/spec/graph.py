"""The block graph of a model: its rows in order, and the validation of names, channels, strides and size.

This module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Annotated, Any, NamedTuple, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from yolov7.errors import SettingError, SpecError, one_line, shown, suggest, wanted_list
from yolov7.spec.block_schema import DetectRow, HeadRow, Row, keys_of_block, list_blocks
from yolov7.spec.plugin_rows import PluginRow, expand_plugin
from yolov7.spec.row import Activation, Count, MapShape, PlannedRepConv, RowBase

IMAGE = "image"  # the name by which rows refer to the input of the network
MAX_ROWS = 500
MAX_CONVOLUTIONS = 5_000  # the largest packaged model has about 250
MAX_PARAMETERS = 2_000_000_000  # 8 GB in float32
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LEVEL = re.compile(r"p([1-9])")


@final
class ModelSpec(BaseModel):
    """A fully resolved model specification.

    Attributes:
        name: Name of the model, for messages.
        activation: Activation behind the batch norms of all rows that name no other.
        norm_eps: What every batch norm adds to the variance.
        norm_momentum: Weight of a new batch in the running statistics of every batch norm.
        image_size: Side of the training images in pixels, unless the training settings name another size.
        rows: The rows in the order of computation; the last one is the detection head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(max_length=500)]
    activation: Activation = "silu"
    norm_eps: Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)] = 1e-3
    norm_momentum: Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)] = 0.03
    image_size: Count = 640
    rows: Annotated[dict[str, Row], Field(max_length=MAX_ROWS)]

    @model_validator(mode="after")
    def _check_graph(self) -> ModelSpec:
        for name in self.rows:
            if not _NAME.fullmatch(name) or name == IMAGE:
                raise ValueError(
                    f"{shown(name)}: the name of a row must start with a small letter, contain only small letters, "
                    f"digits and _, have at most 64 characters and not be {IMAGE!r}; rename the row"
                )
        shapes = infer_shapes(self)
        _check_head(self)
        _check_size(self)
        _check_activations(self, shapes)
        largest = max(shape.stride for shape in shapes.values())
        if self.image_size % largest:
            raise ValueError(f"image_size={self.image_size} must be a multiple of {largest}, the largest stride")
        return self

    @property
    def head_name(self) -> str:
        """Name of the row of the detection head."""
        return next(reversed(self.rows))

    @property
    def head(self) -> HeadRow:
        """Row of the detection head."""
        head = self.rows[self.head_name]
        assert isinstance(head, HeadRow)
        return head

    @property
    def plugin_rows(self) -> dict[str, PluginRow]:
        """The rows whose blocks the user has written."""
        return {name: row for name, row in self.rows.items() if isinstance(row, PluginRow)}


class ModelSize(NamedTuple):
    """Size of the training graph of a model, without the 1x1 convolutions of its heads.

    Attributes:
        convolutions: Number of convolutions, each branch and each group counted.
        parameters: Number of parameters, without batch norms of identity branches of `rep_conv` rows.
    """

    convolutions: int
    parameters: int


def largest_stride(spec: ModelSpec) -> int:
    """Return the largest stride of a specification; the sides of its images must be multiples of it.

    Args:
        spec: The specification.
    """
    return max(shape.stride for shape in infer_shapes(spec).values())


def nearest_multiple(size: int, stride: int) -> int:
    """Return the multiple of a stride that is nearest to a size; it is never below the stride.

    Args:
        size: The side of an image in pixels.
        stride: The stride in pixels.
    """
    return max(1, round(size / stride)) * stride


def check_image_size(spec: ModelSpec, size: int, *, what: str, stride_of: str = "the largest stride") -> None:
    """Check that images of a size fit a model.

    Args:
        spec: The specification of the model.
        size: The side of the images in pixels.
        what: How an error names the size, such as `image_size=100`.
        stride_of: How an error names the stride.

    Raises:
        SettingError: The size is not a multiple of the largest stride.
    """
    stride = largest_stride(spec)
    if size < stride or size % stride:
        nearest = nearest_multiple(size, stride)
        raise SettingError(f"{what} must be a multiple of {stride}, {stride_of}; try {nearest}")


def infer_shapes(spec: ModelSpec) -> dict[str, MapShape]:
    """Return the shape of every map.

    Args:
        spec: The specification.

    Returns:
        Shapes by row name, `image` included. The entry of the head holds its number of anchors per level, 1 without
        anchors. Branches of E-ELANs have their own entries: `n3.1` and `n3.2` beside `n3`.

    Raises:
        ValueError: If rows do not fit each other.
    """
    shapes = {IMAGE: MapShape(3, 1)}
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


def rows_up_to(spec: ModelSpec, last: str) -> list[str]:
    """List the names of the first rows of a spec, without the head.

    Args:
        spec: The spec.
        last: The last of them. `p3` means the last row before maps with a stride above 2^3 if no row has this name, and
            so on.

    Returns:
        The names in the order of the spec.

    Raises:
        SpecError: The spec has no such row, or no map with such a stride.
    """
    names = list(spec.rows)[:-1]
    if last in names:
        return names[: names.index(last) + 1]
    if level := _LEVEL.fullmatch(last):
        shapes, largest = infer_shapes(spec), largest_stride(spec)
        if 2 ** int(level[1]) > largest:
            raise SpecError(
                f"freeze={last!r}: the largest stride of spec {spec.name!r} is {largest}; name a row, or a level "
                "with at most this stride"
            )
        return list(takewhile(lambda name: shapes[name].stride <= 2 ** int(level[1]), names))
    raise SpecError(
        f"freeze={last!r} is not a row of spec {spec.name!r}{suggest(last, names)}; name one of its rows, or p2, "
        "p3, ... for all rows up to that stride"
    )


def row_of(source: str) -> str:
    """Return the name of the row that computes a map.

    Args:
        source: Name of a map, for instance `n3` or `n3.2`.

    Returns:
        The name of the row, for instance `n3`.
    """
    return source.partition(".")[0]


def find_destination(spec: ModelSpec, name: str, *, shapes: Mapping[str, MapShape]) -> str:
    """Return the concatenation or addition that the map of a row enters unchanged.

    Args:
        spec: The specification.
        name: Name of the row.
        shapes: The shapes of all maps.

    Returns:
        A text such as `a concatenation in e4` or `a residual addition in b2`; empty if there is none.
    """
    for user, row in spec.rows.items():
        if name in row.sources:
            inputs = [shapes[source] for source in row.sources]
            for position, source in enumerate(row.sources):
                if source == name and (feeds := row.source_feeds(position, inputs)):
                    return f"{feeds} in {user}"
    return ""


def plan_rep_convs(spec: ModelSpec) -> dict[str, tuple[PlannedRepConv, ...]]:
    """Return the plan of all re-parameterised convolutions (section 4.1 of the paper).

    Args:
        spec: The specification.

    Returns:
        The planned convolutions by the name of their row; rows without any are left out.
    """
    shapes = infer_shapes(spec)
    plan = {
        name: row.planned_rep_convs(
            [shapes[source] for source in row.sources], feeds=find_destination(spec, name, shapes=shapes)
        )
        for name, row in spec.rows.items()
    }
    return {name: planned for name, planned in plan.items() if planned}


def count_size(spec: ModelSpec) -> ModelSize:
    """Return the size of a model without building it.

    Args:
        spec: The specification.

    Returns:
        The size of the training graph.
    """
    return ModelSize(*(sum(column) for column in zip(*_row_sizes(spec).values(), strict=True)))


def build_spec(data: Mapping[str, Any]) -> ModelSpec:
    """Validate a specification of plain values.

    Args:
        data: The keys of a `ModelSpec`. Rows without `from` take the map of the row above.

    Returns:
        The specification.

    Raises:
        SpecError: If anything is wrong; the message is one line and names the row and the key.
    """
    rows = data.get("rows")
    filled = dict(data) | ({"rows": _fill_sources(rows)} if isinstance(rows, Mapping) else {})
    try:
        return ModelSpec.model_validate(filled)
    except ValidationError as error:
        message = describe(error, keys=list(ModelSpec.model_fields))
        raise SpecError(f"{message} (spec {one_line(data.get('name'), limit=80)})") from None


def describe(error: ValidationError, *, keys: Iterable[str] = ()) -> str:
    """Describe the first error of a validation in one line.

    Args:
        error: The error of pydantic.
        keys: Known keys outside of rows, for suggestions.

    Returns:
        A line such as `p2.elan.hiden: unknown key; did you mean 'hidden'?`.
    """
    return one_line(_describe(error.errors(include_url=False)[0], keys))


def _describe(first: ErrorDetails, keys: Iterable[str]) -> str:
    place = ".".join(one_line(part, limit=80) for part in first["loc"] if part != "rows" or len(first["loc"]) == 1)
    match first["type"]:
        case "extra_forbidden":
            known = keys_of_block(str(first["loc"][-2])) if len(first["loc"]) > 2 else keys
            fault = f"unknown key{suggest(str(first['loc'][-1]), known)}"
        case "missing":
            fault = "missing"
        case "union_tag_invalid" | "union_tag_not_found":
            fault = _describe_block(first)
        case "value_error":
            fault = str(first["ctx"]["error"])
        case "tuple_type":
            fault = f"{wanted_list(first['input'])}, not {shown(first['input'])}"
        case _:
            fault = f"{first['msg']}, not {shown(first['input'])}"
    return f"{place}: {fault}" if place else fault


def _describe_block(error: ErrorDetails) -> str:
    known = list_blocks()
    given = error["input"].get("block") if isinstance(error["input"], Mapping) else None
    if given is None:
        return f"the key `block` is missing; it must be one of {', '.join(known)}"
    return f"unknown block {shown(given)}{suggest(str(given), known)} (the blocks are {', '.join(known)})"


def _fill_sources(rows: Mapping[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    above = IMAGE
    for name, row in rows.items():
        filled[name] = {"from": [above], **expand_plugin(row)} if isinstance(row, Mapping) else row
        above = name
    return filled


def _check_source(source: str, *, of: str, known: Mapping[str, MapShape], rows: Mapping[str, RowBase]) -> None:
    if source in known:
        return
    if source in rows:
        raise ValueError(f"{of}: takes {source!r}, which is not above it; move {source!r} above {of!r}")
    name = shown(source)
    if row_of(source) in known and row_of(source) in rows:
        number = rows[row_of(source)].num_branches
        raise ValueError(f"{of}: takes {name}, but {row_of(source)} has {number} branch{'es' * (number > 1)}")
    raise ValueError(f"{of}: takes {name}, but there is no such row{suggest(source, known)}")


def _check_head(spec: ModelSpec) -> None:
    heads = [name for name, row in spec.rows.items() if isinstance(row, HeadRow)]
    if len(heads) != 1 or heads != list(spec.rows)[-1:]:
        raise ValueError(f"the last row must be the only detection head; the detection heads are {shown(heads)}")
    used = {row_of(source) for row in spec.rows.values() for source in row.all_sources}
    unused = [name for name in list(spec.rows)[:-1] if name not in used]
    if unused:
        raise ValueError(f"{unused[0]}: no row takes its map; use it or remove it")


def _check_activations(spec: ModelSpec, shapes: Mapping[str, MapShape]) -> None:
    for name, row in spec.rows.items():
        if row.activation and not row.convolutions([shapes[source] for source in row.all_sources]):
            raise ValueError(f"{name}.{row.block}: has no convolution that an activation could follow; leave it out")


def _row_sizes(spec: ModelSpec) -> dict[str, ModelSize]:
    shapes = infer_shapes(spec)
    sizes: dict[str, ModelSize] = {}
    for name, row in spec.rows.items():
        convolutions = row.convolutions([shapes[source] for source in row.all_sources])
        sizes[name] = ModelSize(sum(c.repeats for c in convolutions), sum(c.parameters for c in convolutions))
    return sizes


def _check_size(spec: ModelSpec) -> None:
    """Refuse models that would exhaust the memory or take hours to build, before anything is built."""
    total, limit = count_size(spec), ModelSize(MAX_CONVOLUTIONS, MAX_PARAMETERS)
    for what in ModelSize._fields:
        found, allowed = getattr(total, what), getattr(limit, what)
        if found > allowed:
            sizes = _row_sizes(spec)
            largest = max(sizes, key=lambda name: getattr(sizes[name], what))
            raise ValueError(
                f"{largest}: the model would have {found:,} {what}, more than the limit of {allowed:,}; "
                "reduce the depth, cardinality or width of this row, which has most of them"
            )
