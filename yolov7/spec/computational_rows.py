"""Rows of computational blocks, which leave the resolution as it is: ELAN, CSP, bottlenecks and pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, final

from yolov7.spec.row import (
    ADDITION,
    CONCATENATION,
    Cardinality,
    Convolution,
    Count,
    Depth,
    MapShape,
    PlannedRepConv,
    Positions,
    RowBase,
    check_positions,
    expect_maps,
)


class DeepRow(RowBase):
    """A row that repeats a block `depth` times."""

    def growth(self, depth: int) -> Fraction:
        """Return the factor by which the maps that the row concatenates grow with another depth.

        Args:
            depth: The other depth.

        Returns:
            The factor; 1 if the row concatenates two maps, whatever the depth, or none.
        """
        return Fraction(1)


@final
class ElanRow(DeepRow):
    """Efficient layer aggregation (section 3.1): a chain of 3x3 convolutions whose maps are concatenated.

    The concatenation has `hidden * (depth + 2)` channels in all three forms.

    Attributes:
        block: `elan`: `depth` pairs of convolutions, of which every second map is concatenated. `elan_w`: `depth` pairs
            of convolutions of half the hidden width, of which all maps are concatenated. `elan_tiny`: `depth` single
            convolutions, of which all maps are concatenated.
        out: Channels of the map.
        hidden: Width of the two 1x1 convolutions before the chain.
        depth: Length of the chain.
        cardinality: Number of equal groups whose maps are added; more than one makes the block an E-ELAN.
        grouped: Whether the groups are computed as group convolutions instead of side by side.
        rep: Positions in the chain, from 1, of the re-parameterised convolutions.
    """

    block: Literal["elan", "elan_w", "elan_tiny"]
    out: Count
    hidden: Count
    depth: Depth
    cardinality: Cardinality = 1
    grouped: bool = False
    rep: Positions = ()

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 1)
        if self.block == "elan_w" and self.hidden % 2:
            raise ValueError(f"hidden={self.hidden} must be even, because its convolutions have half of this width")
        if self.grouped and self.cardinality == 1:
            raise ValueError("grouped=true needs a cardinality greater than 1; leave grouped out")
        check_positions(self.rep, self.num_convs, "convolutions")
        return MapShape(self.out, inputs[0].stride)

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions of all groups; see `RowBase`."""
        groups, taken = self.cardinality, 2 * self.hidden + self.num_convs // self.every * self.inner
        return (
            Convolution(inputs[0].channels, self.hidden, 1, 2 * groups),
            Convolution(self.hidden, self.inner, 3, groups),
            Convolution(self.inner, self.inner, 3, groups * (self.num_convs - 1)),
            *_branches(self.planned_rep_convs(inputs, feeds=""), groups),
            Convolution(taken, self.out, 1, groups),
        )

    def planned_rep_convs(self, inputs: Sequence[MapShape], *, feeds: str) -> tuple[PlannedRepConv, ...]:
        """Return the convolutions of `rep`; see `RowBase`."""
        return tuple(
            PlannedRepConv(
                position=i,
                channels=self.hidden if i == 1 else self.inner,
                width=self.inner,
                stride=1,
                feeds="" if i % self.every else CONCATENATION,
            )
            for i in self.rep
        )

    def growth(self, depth: int) -> Fraction:
        """Return (depth + 2) / (own depth + 2), because each block adds a map; see `DeepRow`."""
        return Fraction(depth + 2, self.depth + 2)

    @property
    def num_branches(self) -> int:
        """Number of groups that the block adds."""
        return self.cardinality

    @property
    def inner(self) -> int:
        """Width of the convolutions of the chain."""
        return self.hidden // 2 if self.block == "elan_w" else self.hidden

    @property
    def num_convs(self) -> int:
        """Number of convolutions in the chain."""
        return self.depth if self.block == "elan_tiny" else 2 * self.depth

    @property
    def every(self) -> int:
        """Step between the concatenated maps of the chain: 1 for all of them, 2 for every second one."""
        return 2 if self.block == "elan" else 1


@final
class CspRow(DeepRow):
    """Cross-stage partial block around `depth` dark blocks of equal width (Scaled-YOLOv4 and YOLOR).

    A dark block is a 1x1 convolution followed by a 3x3 convolution.

    Attributes:
        block: `csp_a` and `csp_c` split the input into two halves of `out` and concatenate the output of the dark
            blocks with the other half; `csp_c` has a 1x1 convolution in between. `csp_b` splits behind a first 1x1
            convolution and has the width `out` inside.
        out: Channels of the map.
        depth: Number of dark blocks.
        shortcut: Whether each dark block adds its input.
        reversed: Whether the 3x3 convolution comes first.
        rep: The dark blocks, from 1, whose 3x3 convolution is re-parameterised (section 5.4.2).
    """

    block: Literal["csp_a", "csp_b", "csp_c"]
    out: Count
    depth: Depth
    shortcut: bool = True
    reversed: bool = False
    rep: Positions = ()

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 1)
        if self.block != "csp_b" and self.out % 2:
            raise ValueError(f"out={self.out} must be even, because each of its two paths has half of this width")
        check_positions(self.rep, self.depth, "dark blocks")
        return MapShape(self.out, inputs[0].stride)

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions; see `RowBase`."""
        channels, hidden = inputs[0].channels, self.hidden
        return (
            Convolution(channels, hidden, 1),
            Convolution(hidden if self.block == "csp_b" else channels, hidden, 1),
            Convolution(hidden, hidden, 1, self.depth + (self.block == "csp_c")),
            Convolution(hidden, hidden, 3, self.depth),
            *_branches(self.planned_rep_convs(inputs, feeds="")),
            Convolution(2 * hidden, self.out, 1),
        )

    def planned_rep_convs(self, inputs: Sequence[MapShape], *, feeds: str) -> tuple[PlannedRepConv, ...]:
        """Return the convolutions of `rep`; see `RowBase`."""
        return tuple(PlannedRepConv(i, self.hidden, self.hidden, 1, self._feeds(i)) for i in self.rep)

    @property
    def hidden(self) -> int:
        """Width inside the block."""
        return self.out if self.block == "csp_b" else self.out // 2

    def _feeds(self, position: int) -> str:
        if self.reversed:
            return ""
        if self.shortcut:
            return ADDITION
        return CONCATENATION if position == self.depth and self.block != "csp_c" else ""


@final
class CspRepRow(DeepRow):
    """Cross-stage partial block of PP-YOLOE: `depth` blocks of a 3x3 and a re-parameterised 3x3 convolution.

    Its re-parameterised convolutions consist of a 3x3 and a 1x1 branch and never have an identity branch.

    Attributes:
        block: `csp_rep_res`, the block of the backbone: its two paths have half of the channels of the input, each
            block adds its input, and channel attention precedes the last convolution. `csp_rep`, the block of the neck:
            its two paths have half of `out`.
        out: Channels of the map.
        depth: Number of blocks.
        spp: Whether spatial pyramid pooling follows the block in the middle.
    """

    block: Literal["csp_rep_res", "csp_rep"]
    out: Count
    depth: Depth
    spp: bool = False

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 1)
        if self.hidden(inputs) < 1:
            raise ValueError("needs at least 2 channels, because each of its two paths has half of them")
        return MapShape(self.out, inputs[0].stride)

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions; see `RowBase`."""
        channels, hidden = inputs[0].channels, self.hidden(inputs)
        attention = Convolution(2 * hidden, 2 * hidden, 1, int(self.residual), norms=0, bias=True)
        return (
            Convolution(channels, hidden, 1, 2),
            Convolution(hidden, hidden, 3, 2 * self.depth),
            *_branches(self.planned_rep_convs(inputs, feeds="")),
            Convolution(4 * hidden, hidden, 1, int(self.spp)),
            attention,
            Convolution(2 * hidden, self.out, 1),
        )

    def planned_rep_convs(self, inputs: Sequence[MapShape], *, feeds: str) -> tuple[PlannedRepConv, ...]:
        """Return the second convolution of every block; see `RowBase`."""
        hidden = self.hidden(inputs)
        positions = range(1, self.depth + 1)
        return tuple(PlannedRepConv(i, hidden, hidden, 1, self._feeds(i), two_branches=True) for i in positions)

    def hidden(self, inputs: Sequence[MapShape]) -> int:
        """Return the width of the two paths.

        Args:
            inputs: Shape of the map of the source.

        Returns:
            Number of channels.
        """
        return (inputs[0].channels if self.residual else self.out) // 2

    @property
    def residual(self) -> bool:
        """Whether it is the block of the backbone."""
        return self.block == "csp_rep_res"

    @property
    def pooled_block(self) -> int:
        """The block, from 1, behind which pooling follows; 0 without pooling."""
        return (self.depth + 1) // 2 if self.spp else 0

    def _feeds(self, position: int) -> str:
        if self.residual:
            return ADDITION
        return CONCATENATION if position in (self.depth, self.pooled_block) else ""


@final
class CspTinyRow(RowBase):
    """Cross-stage partial block of YOLOv4-tiny: two 3x3 convolutions of one half of the channels.

    Their maps are concatenated, the second one first, and a 1x1 convolution follows.

    Attributes:
        block: Always `csp_tiny`.
        out: Channels of the map.
        half: The half of the channels that it takes. Weights of darknet need `second`.
    """

    block: Literal["csp_tiny"]
    out: Count
    half: Literal["first", "second"] = "first"

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 1)
        if inputs[0].channels % 2:
            raise ValueError(f"takes half of {inputs[0].channels} channels; their number must be even")
        return MapShape(self.out, inputs[0].stride)

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions; see `RowBase`."""
        half = inputs[0].channels // 2
        return Convolution(half, half, 3, 2), Convolution(2 * half, self.out, 1)


@final
class BottleneckRow(DeepRow):
    """`depth` dark blocks of Darknet in sequence: 1x1 to half of `out`, 3x3 to `out`, to which the input is added.

    The first one adds its input only if the input has `out` channels. Without `shortcut`, none does.
    """

    block: Literal["bottleneck"]
    out: Count
    depth: Depth = 1
    shortcut: bool = True

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 1)
        if self.out % 2:
            raise ValueError(f"out={self.out} must be even, because its 1x1 convolutions have half of this width")
        return MapShape(self.out, inputs[0].stride)

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions; see `RowBase`."""
        return (
            Convolution(inputs[0].channels, self.out // 2, 1),
            Convolution(self.out, self.out // 2, 1, self.depth - 1),
            Convolution(self.out // 2, self.out, 3, self.depth),
        )

    def source_feeds(self, position: int, inputs: Sequence[MapShape]) -> str:
        """Return the addition of the first dark block, if there is one; see `RowBase`."""
        return ADDITION if self.shortcut and inputs[0].channels == self.out else ""


@final
class SppRow(RowBase):
    """Spatial pyramid pooling: in a cross-stage partial block (`sppcspc`), in its form of YOLOv7-tiny, or alone.

    `spp` is also the SPPF of YOLOv5, because 5x5 pooling that is repeated equals pooling over windows of 9 and 13.

    Attributes:
        block: The form.
        out: Channels of the map.
        widest_first: Whether `spp` concatenates its maps from the widest window to the unpooled map, as YOLOv4 does.
    """

    block: Literal["sppcspc", "spp_tiny", "spp"]
    out: Count
    widest_first: bool = False

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 1)
        if self.widest_first and self.block != "spp":
            raise ValueError("widest_first=true is a choice of the block spp only; leave it out")
        return MapShape(self.out, inputs[0].stride)

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions; see `RowBase`."""
        channels, out = inputs[0].channels, self.out
        if self.block == "spp":
            half = channels // 2
            return Convolution(channels, half, 1), Convolution(4 * half, out, 1)
        more = (Convolution(out, out, 3, 2), Convolution(out, out, 1)) if self.block == "sppcspc" else ()
        return (
            Convolution(channels, out, 1, 2),
            *more,
            Convolution(4 * out, out, 1),
            Convolution(2 * out, out, 1),
        )


def _branches(planned: Sequence[PlannedRepConv], groups: int = 1) -> tuple[Convolution, ...]:
    """Return the 1x1 branches of re-parameterised convolutions, with a second batch norm for an identity branch."""
    return tuple(Convolution(conv.channels, conv.width, 1, groups, 1 + conv.identity) for conv in planned)
