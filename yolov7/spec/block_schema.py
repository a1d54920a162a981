"""The rows of a block graph: which keys each block has, and what shape its map has. Imports no torch.

A new block is a row class here, a module in `blocks`, and an arm of the `match` in `model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal, final

from pydantic import BaseModel, ConfigDict, Field

from yolov7.spec.row import (
    ADDITION,
    CONCATENATION,
    RepPlace,
    RowBase,
    Shape,
    check_positions,
    expect_maps,
    shape_with_laterals,
)

Count = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Depth = Annotated[int, Field(strict=True, ge=1, le=100)]
Side = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


@final
class ConvRow(RowBase):
    """Convolution, batch norm and activation; any further sources are concatenated behind its map."""

    block: Literal["conv"]
    out: Count
    kernel: Literal[1, 3] = Field(3, alias="k")
    stride: Literal[1, 2] = Field(1, alias="s")

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        main = Shape(inputs[0].channels, inputs[0].stride * self.stride)
        return shape_with_laterals(self, self.out, main, inputs[1:])

    def concatenates(self, position: int) -> bool:
        return position > 0


@final
class MaxPoolRow(RowBase):
    """2x2 max-pooling with stride 2."""

    block: Literal["maxpool"]

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        expect_maps(inputs, 1)
        return Shape(inputs[0].channels, inputs[0].stride * 2)


@final
class ReorgRow(RowBase):
    """Space to depth: every 2x2 pixels become four times the channels."""

    block: Literal["reorg"]

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        expect_maps(inputs, 1)
        return Shape(inputs[0].channels * 4, inputs[0].stride * 2)


@final
class DownRow(RowBase):
    """Transition that halves the resolution: a strided convolution beside max-pooling, then any laterals.

    `mp` brings both ways to their width by a 1x1 convolution first; `down_c` the pooled one only, and keeps all
    channels before the strided convolution.
    """

    block: Literal["mp", "down_c"]
    out: Count

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        return shape_with_laterals(self, self.out, Shape(inputs[0].channels, inputs[0].stride * 2), inputs[1:])

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
        expect_maps(inputs, 2)
        top, lateral = inputs
        if top.stride != 2 * lateral.stride:
            raise ValueError(f"cannot join a map of stride {top.stride}, doubled, with one of stride {lateral.stride}")
        return shape_with_laterals(self, self.out, lateral, ())

    @property
    def num_parts(self) -> int:
        return 2


@final
class UpsampleRow(RowBase):
    """YOLOv3's transition: a 1x1 convolution, doubled in resolution; laterals are concatenated behind it."""

    block: Literal["upsample"]
    out: Count

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        if inputs[0].stride % 2:
            raise ValueError("cannot double the resolution of the image")
        return shape_with_laterals(self, self.out, Shape(inputs[0].channels, inputs[0].stride // 2), inputs[1:])

    def concatenates(self, position: int) -> bool:
        return position > 0


@final
class ElanRow(RowBase):
    """Efficient layer aggregation (the paper's section 3.1): a chain of 3x3 convolutions whose maps are concatenated.

    `elan`: `depth` pairs of convolutions, every second map is taken. `elan_w`: `depth` pairs of half the hidden
    width, all maps are taken. `elan_tiny`: `depth` single convolutions, all maps are taken. In each of them the
    concatenation holds `hidden * (depth + 2)` channels.

    `cardinality` above 1 makes it an E-ELAN: so many groups of the same form, added. They are computed side by side
    or, `grouped`, as group convolutions. `rep`: the positions in the chain, from 1, that are re-parameterised.
    """

    block: Literal["elan", "elan_w", "elan_tiny"]
    out: Count
    hidden: Count
    depth: Depth
    cardinality: Count = 1
    grouped: bool = False
    rep: tuple[Count, ...] = ()

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        expect_maps(inputs, 1)
        if self.block == "elan_w" and self.hidden % 2:
            raise ValueError(f"hidden={self.hidden} must be even, as its convolutions have half of it")
        if self.grouped and self.cardinality == 1:
            raise ValueError("grouped=true needs a cardinality above 1")
        check_positions(self.rep, self.num_convs, "convolutions")
        return Shape(self.out, inputs[0].stride)

    def rep_places(self, inputs: Sequence[Shape], *, meets: str) -> tuple[RepPlace, ...]:
        return tuple(
            RepPlace(
                position=i,
                channels=self.hidden if i == 1 else self.inner,
                width=self.inner,
                stride=1,
                meets="" if i % self.every else CONCATENATION,
            )
            for i in self.rep
        )

    def growth(self, depth: int) -> Fraction:
        """By how much the concatenation grows if the row gets this depth."""
        return Fraction(depth + 2, self.depth + 2)

    @property
    def num_branches(self) -> int:
        return self.cardinality

    @property
    def inner(self) -> int:
        """The width of the chain's convolutions."""
        return self.hidden // 2 if self.block == "elan_w" else self.hidden

    @property
    def num_convs(self) -> int:
        """How many convolutions the chain has."""
        return self.depth if self.block == "elan_tiny" else 2 * self.depth

    @property
    def every(self) -> int:
        """Which maps of the chain are taken: all, or every second one."""
        return 2 if self.block == "elan" else 1


@final
class CspRow(RowBase):
    """Cross-stage partial block around `depth` dark blocks (1x1, then 3x3, of one width), of Scaled-YOLOv4 and YOLOR.

    `csp_a` and `csp_c` split the input into two halves of `out` and bring the dark ones behind it together with the
    other half; `csp_c` has a 1x1 convolution between. `csp_b` splits behind a first 1x1 convolution and is as wide
    as `out` inside. `shortcut`: each dark block adds its input. `reversed`: 3x3, then 1x1. `rep`: the dark blocks,
    from 1, whose 3x3 convolution is re-parameterised (the paper's section 5.4.2).
    """

    block: Literal["csp_a", "csp_b", "csp_c"]
    out: Count
    depth: Depth
    shortcut: bool = True
    reversed: bool = False
    rep: tuple[Count, ...] = ()

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        expect_maps(inputs, 1)
        if self.block != "csp_b" and self.out % 2:
            raise ValueError(f"out={self.out} must be even, as its two ways have half of it")
        check_positions(self.rep, self.depth, "dark blocks")
        return Shape(self.out, inputs[0].stride)

    def rep_places(self, inputs: Sequence[Shape], *, meets: str) -> tuple[RepPlace, ...]:
        return tuple(RepPlace(i, self.hidden, self.hidden, 1, self._meets(i)) for i in self.rep)

    def growth(self, depth: int) -> Fraction:
        """None: however deep the block, two maps are concatenated."""
        return Fraction(1)

    @property
    def hidden(self) -> int:
        """The width inside."""
        return self.out if self.block == "csp_b" else self.out // 2

    def _meets(self, position: int) -> str:
        if self.reversed:
            return ""
        if self.shortcut:
            return ADDITION
        return CONCATENATION if position == self.depth and self.block != "csp_c" else ""


@final
class BottleneckRow(RowBase):
    """`depth` dark blocks of Darknet, one after the other: 1x1 to half of `out`, 3x3 to `out`, and their input added.

    The first one adds its input only if that has `out` channels; without `shortcut` none does.
    """

    block: Literal["bottleneck"]
    out: Count
    depth: Count = 1
    shortcut: bool = True

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        expect_maps(inputs, 1)
        if self.out % 2:
            raise ValueError(f"out={self.out} must be even, as its 1x1 convolutions have half of it")
        return Shape(self.out, inputs[0].stride)

    def source_meets(self, position: int, inputs: Sequence[Shape]) -> str:
        return ADDITION if self.shortcut and inputs[0].channels == self.out else ""

    def growth(self, depth: int) -> Fraction:
        """None: nothing is concatenated."""
        return Fraction(1)


@final
class SppRow(RowBase):
    """Spatial pyramid pooling: in a cross-stage partial block (`sppcspc`), tiny's reduced form of it, or alone."""

    block: Literal["sppcspc", "spp_tiny", "spp"]
    out: Count

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        expect_maps(inputs, 1)
        return Shape(self.out, inputs[0].stride)


@final
class RepConvRow(RowBase):
    """Re-parameterisable 3x3 convolution (section 4.1); whether it has an identity branch follows from the graph."""

    block: Literal["rep_conv"]
    out: Count
    stride: Literal[1, 2] = Field(1, alias="s")

    def shape(self, inputs: Sequence[Shape]) -> Shape:
        expect_maps(inputs, 1)
        return Shape(self.out, inputs[0].stride * self.stride)

    def rep_places(self, inputs: Sequence[Shape], *, meets: str) -> tuple[RepPlace, ...]:
        return (RepPlace(0, inputs[0].channels, self.out, self.stride, meets),)


@final
class Auxiliary(BaseModel):
    """The auxiliary head (section 4.2): on each level a 3x3 convolution of the tapped map, then a 1x1 like the lead's.

    `out`: the widths of the 3x3 convolutions; those of the lead's maps if left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    sources: tuple[str, ...] = Field(alias="from", min_length=1)
    out: tuple[Count, ...] | None = None


@final
class DetectRow(RowBase):
    """The detection head: one map a level; `anchors` holds, for each, w and h of every anchor in pixels."""

    block: Literal["detect"]
    anchors: tuple[tuple[Side, ...], ...]
    implicit: bool = True
    auxiliary: Auxiliary | None = None

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

    @property
    def taps(self) -> tuple[str, ...]:
        """The maps that the auxiliary head takes, if there is one."""
        return self.auxiliary.sources if self.auxiliary else ()

    @property
    def all_sources(self) -> tuple[str, ...]:
        return (*self.sources, *self.taps)

    def check_auxiliary(self, lead: Sequence[Shape], taps: Sequence[Shape]) -> None:
        """ValueError where the taps of the auxiliary head are not those of the lead's levels."""
        strides, tapped = [shape.stride for shape in lead], [shape.stride for shape in taps]
        if tapped and tapped != strides:
            raise ValueError(f"the auxiliary head's maps have strides {tapped}; they must be the lead's, {strides}")
        if self.auxiliary and self.auxiliary.out and len(self.auxiliary.out) != len(lead):
            raise ValueError(f"the auxiliary head has {len(self.auxiliary.out)} widths; it has {len(lead)} levels")


Row = Annotated[
    ConvRow
    | MaxPoolRow
    | ReorgRow
    | DownRow
    | UpRow
    | UpsampleRow
    | ElanRow
    | CspRow
    | BottleneckRow
    | SppRow
    | RepConvRow
    | DetectRow,
    Field(discriminator="block"),
]
_ROW_CLASSES: tuple[type[RowBase], ...] = (
    ConvRow, MaxPoolRow, ReorgRow, DownRow, UpRow, UpsampleRow, ElanRow, CspRow, BottleneckRow, SppRow, RepConvRow,
    DetectRow,
)  # fmt: skip


ComputationalRow = ElanRow | CspRow | BottleneckRow  # the rows with a depth


def list_blocks() -> tuple[str, ...]:
    """The names of all blocks."""
    return tuple(block for row in _ROW_CLASSES for block in _blocks_of(row))


def keys_of_block(block: str) -> tuple[str, ...]:
    """The keys that a row of this block may have; none for an unknown block."""
    classes = [row for row in _ROW_CLASSES if block in _blocks_of(row)]
    return tuple(field.alias or name for row in classes for name, field in row.model_fields.items())


def _blocks_of(row: type[RowBase]) -> tuple[str, ...]:
    blocks: tuple[str, ...] = row.model_fields["block"].annotation.__args__  # type: ignore[union-attr]
    return blocks
