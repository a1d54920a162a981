"""The rows of a block graph and the graph itself; validation of names, channels and strides. Imports no torch.

A new block is a row class here, a module in `blocks`, and an arm of the `match` in `model`.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from yolov7.errors import SpecError

IMAGE = "image"  # the name by which rows take the network's input
_NAME = re.compile(r"[a-z][a-z0-9_]*")

Count = Annotated[int, Field(strict=True, ge=1)]
Side = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Shape(NamedTuple):
    """What a map holds: its channels, and its stride in pixels of the input image."""

    channels: int
    stride: int


class RowBase(BaseModel, ABC):
    """One row of the graph: a block, and the maps it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sources: tuple[str, ...] = Field(alias="from", min_length=1)

    @abstractmethod
    def shape(self, inputs: Sequence[Shape]) -> Shape:
        """The shape of the row's map from those of its sources; ValueError where they do not fit."""

    def concatenates(self, position: int) -> bool:
        """Whether the source at this position goes into a concatenation (or addition) just as it is."""
        return False

    @property
    def num_parts(self) -> int:
        """Of how many maps of equal width, concatenated, the row's own output consists."""
        return 1


@final
class ConvRow(RowBase):
    """Convolution, batch norm and activation; any further sources are concatenated behind its map."""

    block: Literal["conv"]
    out: Count
    kernel: Literal[1, 3] = Field(3, alias="k")
    stride: Literal[1, 2] = Field(1, alias="s")

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        return _with_laterals(self, self.out, Shape(inputs[0].channels, inputs[0].stride * self.stride), inputs[1:])

    def concatenates(self, position: int) -> bool:
        return position > 0


@final
class MaxPoolRow(RowBase):
    """2x2 max-pooling with stride 2."""

    block: Literal["maxpool"]

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        _expect(inputs, 1)
        return Shape(inputs[0].channels, inputs[0].stride * 2)


@final
class MpRow(RowBase):
    """Transition that halves the resolution: a strided convolution beside max-pooling, then any laterals."""

    block: Literal["mp"]
    out: Count

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        return _with_laterals(self, self.out, Shape(inputs[0].channels, inputs[0].stride * 2), inputs[1:])

    def concatenates(self, position: int) -> bool:
        return position > 0

    @property
    def num_parts(self) -> int:
        return 2


@final
class UpRow(RowBase):
    """Transition that doubles the resolution of the first source and concatenates it behind the second's map."""

    block: Literal["up"]
    out: Count

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        _expect(inputs, 2)
        top, lateral = inputs
        if top.stride != 2 * lateral.stride:
            raise ValueError(f"cannot join a map of stride {top.stride}, doubled, with one of stride {lateral.stride}")
        return _with_laterals(self, self.out, lateral, ())

    @property
    def num_parts(self) -> int:
        return 2


@final
class ElanRow(RowBase):
    """Efficient layer aggregation (the paper's section 3.1): a chain of 3x3 convolutions whose maps are concatenated.

    `elan`: `depth` pairs of convolutions, every second map is taken. `elan_w`: `depth` pairs of half the hidden
    width, all maps are taken. `elan_tiny`: `depth` single convolutions, all maps are taken. In each of them the
    concatenation holds `hidden * (depth + 2)` channels.
    """

    block: Literal["elan", "elan_w", "elan_tiny"]
    out: Count
    hidden: Count
    depth: Count

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        _expect(inputs, 1)
        if self.block == "elan_w" and self.hidden % 2:
            raise ValueError(f"hidden={self.hidden} must be even, as its convolutions have half of it")
        return Shape(self.out, inputs[0].stride)

    @property
    def num_concatenated(self) -> int:
        """Channels of the concatenation, in units of the hidden width."""
        return self.depth + 2


@final
class SppRow(RowBase):
    """Spatial pyramid pooling in a cross-stage partial block: `sppcspc`, or tiny's reduced form of it."""

    block: Literal["sppcspc", "spp_tiny"]
    out: Count

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        _expect(inputs, 1)
        return Shape(self.out, inputs[0].stride)


@final
class RepConvRow(RowBase):
    """Re-parameterisable 3x3 convolution (section 4.1); whether it has an identity branch follows from the graph."""

    block: Literal["rep_conv"]
    out: Count
    stride: Literal[1, 2] = Field(1, alias="s")

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        _expect(inputs, 1)
        return Shape(self.out, inputs[0].stride * self.stride)


@final
class DetectRow(RowBase):
    """The detection head: one map a level; `anchors` holds, for each, w and h of every anchor in pixels."""

    block: Literal["detect"]
    anchors: tuple[tuple[Side, ...], ...]
    implicit: bool = True

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        if len(self.anchors) != len(inputs):
            raise ValueError(f"{len(self.anchors)} levels of anchors for {len(inputs)} maps; give one list a map")
        sizes = {len(level) for level in self.anchors}
        if len(sizes) != 1 or sizes == {0} or min(sizes) % 2:
            raise ValueError("anchors must be pairs of width and height, equally many a level")
        strides = [shape.stride for shape in inputs]
        if strides != sorted(set(strides)):
            raise ValueError(f"strides {strides} must rise; name the finest map first")
        return Shape(len(self.anchors[0]) // 2, strides[-1])


Row = Annotated[
    ConvRow | MaxPoolRow | MpRow | UpRow | ElanRow | SppRow | RepConvRow | DetectRow, Field(discriminator="block")
]
_ROW_CLASSES: tuple[type[RowBase], ...] = (
    ConvRow, MaxPoolRow, MpRow, UpRow, ElanRow, SppRow, RepConvRow, DetectRow,
)  # fmt: skip


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
    """The shape of every map, `image` included (of the head: its anchors); ValueError where rows do not fit."""
    shapes = {IMAGE: Shape(3, 1)}
    for name, row in spec.rows.items():
        for source in row.sources:
            _check_source(source, of=name, known=shapes, all_names=spec.rows)
        try:
            shapes[name] = row.shape([shapes[source] for source in row.sources])
        except ValueError as error:
            raise ValueError(f"{name}.{row.block}: {error}") from None
    return shapes


def own_width(row: RowBase, *, out: int, inputs: Sequence[Shape]) -> int:
    """Channels of `out` that the row computes itself, without those it only concatenates."""
    return out - sum(shape.channels for i, shape in enumerate(inputs) if row.concatenates(i))


def is_concatenated(spec: ModelSpec, name: str) -> bool:
    """Whether a row's output meets a concatenation or addition as it is (planned re-parameterisation, section 4.1)."""
    return any(
        source == name and row.concatenates(i) for row in spec.rows.values() for i, source in enumerate(row.sources)
    )


def build_spec(data: Mapping[str, Any]) -> ModelSpec:
    """A ModelSpec from plain values, `from` filled in where a row has none; SpecError, in one line, for every fault."""
    rows = data.get("rows")
    filled = dict(data) | ({"rows": _fill_sources(rows)} if isinstance(rows, Mapping) else {})
    try:
        return ModelSpec.model_validate(filled)
    except ValidationError as error:
        message = describe(error, keys=list(ModelSpec.model_fields))
        raise SpecError(f"{message} (spec {data.get('name')!s})") from None


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def describe(error: ValidationError, *, keys: Iterable[str] = ()) -> str:
    """The first fault of a validation in one line, such as `p2.elan.hiden: unknown key; did you mean 'hidden'?`.

    `keys` are those known outside of rows.
    """
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "rows")
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
            return f"{place}: {first['msg']}, not {first['input']!r}"


def keys_of_block(block: str) -> tuple[str, ...]:
    """The keys that a row of this block may have; none for an unknown block."""
    classes = [row for row in _ROW_CLASSES if block in _blocks_of(row)]
    return tuple(field.alias or name for row in classes for name, field in row.model_fields.items())


def _describe_block(error: ErrorDetails) -> str:
    known = [block for row in _ROW_CLASSES for block in _blocks_of(row)]
    given = error["input"].get("block") if isinstance(error["input"], Mapping) else None
    if given is None:
        return f"names no block; one of {', '.join(known)}"
    return f"unknown block {given!r}{suggest(str(given), known)} (there are {', '.join(known)})"


def _blocks_of(row: type[RowBase]) -> tuple[str, ...]:
    blocks: tuple[str, ...] = row.model_fields["block"].annotation.__args__  # type: ignore[union-attr]
    return blocks


def _fill_sources(rows: Mapping[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    above = IMAGE
    for name, row in rows.items():
        filled[name] = {"from": [above], **row} if isinstance(row, Mapping) else row
        above = name
    return filled


def _expect(inputs: Sequence[Shape], number: int) -> None:
    if len(inputs) != number:
        raise ValueError(f"takes {number} map{'s' if number > 1 else ''}, not {len(inputs)}")


def _with_laterals(row: RowBase, out: int, main: Shape, laterals: Sequence[Shape]) -> Shape:
    for lateral in laterals:
        if lateral.stride != main.stride:
            raise ValueError(f"cannot concatenate a map of stride {main.stride} with one of stride {lateral.stride}")
    own = out - sum(lateral.channels for lateral in laterals)
    if own < 1:
        raise ValueError(f"out={out} must exceed the {out - own} channels that it concatenates")
    if own % row.num_parts:
        raise ValueError(f"out={out} leaves {own} channels of its own, which must be even")
    return Shape(out, main.stride)


def _check_source(source: str, *, of: str, known: Mapping[str, Shape], all_names: Iterable[str]) -> None:
    if source in known:
        return
    if source in all_names:
        raise ValueError(
            f"{of}: takes {source!r}, which is not above it; order the rows so that none needs a later one"
        )
    raise ValueError(f"{of}: takes {source!r}, but there is no such row{suggest(source, known)}")


def _check_head(spec: ModelSpec) -> None:
    heads = [name for name, row in spec.rows.items() if isinstance(row, DetectRow)]
    if heads != list(spec.rows)[-1:] or not heads:
        raise ValueError(f"the last row, and no other, must be a detect row; found {heads or 'none'}")
    for name in spec.rows:
        if not _NAME.fullmatch(name) or name == IMAGE:
            raise ValueError(f"{name}: a row's name is made of small letters, digits and _, and is not {IMAGE!r}")
    used = {source for row in spec.rows.values() for source in row.sources}
    unused = [name for name in list(spec.rows)[:-1] if name not in used]
    if unused:
        raise ValueError(f"{unused[0]}: no row takes its map; use it or remove it")
