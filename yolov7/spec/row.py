"""The base of all rows of a block graph: the maps that a row takes and the shape of the map that it computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

CONCATENATION = "a concatenation"
ADDITION = "a residual addition"

Activation = Literal["silu", "leaky_relu", "mish"]
Count = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Depth = Annotated[int, Field(strict=True, ge=1, le=100)]
Cardinality = Annotated[int, Field(strict=True, ge=1, le=64)]
Sources = Annotated[tuple[str, ...], Field(min_length=1, max_length=64)]
Positions = Annotated[tuple[Count, ...], Field(max_length=200)]


class MapShape(NamedTuple):
    """The shape of a map.

    Attributes:
        channels: Number of channels.
        stride: Distance of neighbouring cells in pixels of the input image.
    """

    channels: int
    stride: int


class Convolution(NamedTuple):
    """Equal convolutions that a row consists of.

    Attributes:
        channels: Input channels.
        width: Output channels.
        kernel: Side of the kernel.
        repeats: How many of them the row has.
        norms: Batch norms of this width per convolution.
        bias: Whether they have a bias.
    """

    channels: int
    width: int
    kernel: int
    repeats: int = 1
    norms: int = 1
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters of all repeats, batch norms and biases included."""
        per_output = self.channels * self.kernel**2 + 2 * self.norms + self.bias
        return self.repeats * self.width * per_output


class PlannedRepConv(NamedTuple):
    """A planned re-parameterised 3x3 convolution of a row (section 4.1 of the paper).

    Attributes:
        position: Position inside the row, from 1; 0 if the row is the convolution itself.
        channels: Input channels.
        width: Output channels.
        stride: Stride of the convolution.
        feeds: The concatenation or addition that its output enters unchanged; empty if there is none.
        two_branches: Whether its block never has an identity branch, wherever its output goes.
    """

    position: int
    channels: int
    width: int
    stride: int
    feeds: str
    two_branches: bool = False

    @property
    def identity(self) -> bool:
        """Whether it keeps its identity branch (RepConv) or has none (RepConvN)."""
        return not self.feeds and self.channels == self.width and self.stride == 1 and not self.two_branches

    @property
    def reason(self) -> str:
        """A short explanation of `identity`."""
        if self.feeds:
            return f"no identity, because its output goes into {self.feeds}"
        if self.stride != 1:
            return f"no identity, because its stride is {self.stride}"
        if self.channels != self.width:
            return f"no identity, because it has {self.channels} input channels and {self.width} output channels"
        if self.two_branches:
            return "no identity, because PP-YOLOE has only a 3x3 and a 1x1 branch"
        return "identity, because its output goes into no addition and no concatenation"


class RowBase(BaseModel, ABC):
    """One row of the graph: a block and the maps that it takes.

    Attributes:
        sources: Names of the rows whose maps the row takes, the main one first (`from` in a file).
        activation: Activation behind the batch norms of the row; that of the specification by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    sources: Sources = Field(alias="from")
    activation: Activation | None = None

    @abstractmethod
    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map of the row.

        Args:
            inputs: Shapes of the maps of the sources.

        Returns:
            The shape.

        Raises:
            ValueError: If the maps do not fit the row.
        """

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return all convolutions of the row, so that the size of a model is known before it is built.

        Args:
            inputs: Shapes of the maps of all sources.

        Returns:
            The convolutions.
        """
        return ()

    def concatenates(self, position: int) -> bool:
        """Return whether a source becomes part of the map of the row unchanged.

        Args:
            position: Index of the source.

        Returns:
            True if the row only concatenates the source.
        """
        return False

    def source_feeds(self, position: int, inputs: Sequence[MapShape]) -> str:
        """Return the concatenation or addition that a source enters unchanged.

        Args:
            position: Index of the source.
            inputs: Shapes of the maps of the sources.

        Returns:
            `CONCATENATION`, `ADDITION`, or an empty string.
        """
        return CONCATENATION if self.concatenates(position) else ""

    def planned_rep_convs(self, inputs: Sequence[MapShape], *, feeds: str) -> tuple[PlannedRepConv, ...]:
        """Return the re-parameterised convolutions of the row.

        Args:
            inputs: Shapes of the maps of the sources.
            feeds: The concatenation or addition that the map of the row enters unchanged; empty if there is none.

        Returns:
            The convolutions by position.
        """
        return ()

    @property
    def all_sources(self) -> tuple[str, ...]:
        """Every map that the row needs, in training or in deployment."""
        return self.sources

    @property
    def num_parts(self) -> int:
        """Number of concatenated maps of equal width that form the own output of the row."""
        return 1

    @property
    def num_branches(self) -> int:
        """Number of maps that the row adds. If there are several, each is available as `name.1`, `name.2` and so on."""
        return 1


def own_width(row: RowBase, *, out: int, inputs: Sequence[MapShape]) -> int:
    """Return the channels that a row computes itself, without the channels that it only concatenates.

    Args:
        row: The row.
        out: Channels of the map of the row.
        inputs: Shapes of the maps of the sources.

    Returns:
        Number of channels.
    """
    return out - sum(shape.channels for i, shape in enumerate(inputs) if row.concatenates(i))


def expect_maps(inputs: Sequence[MapShape], number: int) -> None:
    """Check the number of sources of a row.

    Args:
        inputs: Shapes of the maps of the sources.
        number: The number that the block needs.

    Raises:
        ValueError: If the row has another number of sources.
    """
    if len(inputs) != number:
        raise ValueError(f"takes {number} map{'s' if number > 1 else ''}, not {len(inputs)}; correct `from`")


def check_positions(rep: Sequence[int], number: int, parts: str) -> None:
    """Check the positions of re-parameterised convolutions.

    Args:
        rep: Positions, from 1.
        number: Number of positions that exist.
        parts: What is counted, for the message.

    Raises:
        ValueError: If a position is named twice or does not exist.
    """
    if len(set(rep)) != len(rep) or max(rep, default=0) > number:
        raise ValueError(f"rep={list(rep)} must name each position once, from 1 to {number}, the number of {parts}")


def shape_with_laterals(row: RowBase, out: int, main: MapShape, laterals: Sequence[MapShape]) -> MapShape:
    """Return the shape of the map of a row that concatenates laterals.

    Args:
        row: The row.
        out: Channels of the map of the row, laterals included.
        main: Shape of the main source, with the stride that the row gives it.
        laterals: Shapes of the sources that are concatenated unchanged.

    Returns:
        The shape.

    Raises:
        ValueError: If the strides differ or no channels are left for the row itself.
    """
    for lateral in laterals:
        if lateral.stride != main.stride:
            raise ValueError(f"cannot concatenate a map of stride {main.stride} with one of stride {lateral.stride}")
    own = out - sum(lateral.channels for lateral in laterals)
    if own < 1:
        raise ValueError(f"out={out} must be greater than the {out - own} channels that it concatenates")
    if own % row.num_parts:
        raise ValueError(f"out={out} leaves {own} channels of its own; their number must be even")
    return MapShape(out, main.stride)
