"""What every row of a block graph is: the maps it takes, the shape of its own. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

CONCATENATION = "a concatenation"
ADDITION = "a residual addition"


class Shape(NamedTuple):
    """What a map holds: its channels, and its stride in pixels of the input image."""

    channels: int
    stride: int


class RepPlace(NamedTuple):
    """A re-parameterised 3x3 convolution of a row, as it is planned (the paper's section 4.1).

    `position` counts from 1 inside the row; 0: it is the row itself. `meets`: what its output goes into as it is,
    a concatenation or an addition, or nothing.
    """

    position: int
    channels: int
    width: int
    stride: int
    meets: str

    @property
    def identity(self) -> bool:
        """Whether it keeps its identity branch (RepConv) or has none (RepConvN)."""
        return not self.meets and self.channels == self.width and self.stride == 1

    @property
    def reason(self) -> str:
        """Why, in a few words."""
        if self.meets:
            return f"no identity, as its output goes into {self.meets}"
        if self.stride != 1:
            return f"no identity, as its stride is {self.stride}"
        if self.channels != self.width:
            return f"no identity, as it takes {self.channels} channels and gives {self.width}"
        return "identity, as its output meets no addition and no concatenation"


class RowBase(BaseModel, ABC):
    """One row of the graph: a block, and the maps it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sources: tuple[str, ...] = Field(alias="from", min_length=1)

    @abstractmethod
    def shape(self, inputs: Sequence[Shape]) -> Shape:
        """The shape of the row's map from those of its sources; ValueError where they do not fit."""

    def concatenates(self, position: int) -> bool:
        """Whether the source at this position is concatenated into the row's map just as it is."""
        return False

    def source_meets(self, position: int, inputs: Sequence[Shape]) -> str:
        """What the source at this position goes into just as it is: a concatenation, an addition, or nothing."""
        return CONCATENATION if self.concatenates(position) else ""

    def rep_places(self, inputs: Sequence[Shape], *, meets: str) -> tuple[RepPlace, ...]:
        """The row's re-parameterised convolutions; `meets`: what the row's own map goes into as it is."""
        return ()

    @property
    def all_sources(self) -> tuple[str, ...]:
        """Every map that the row may need, in training or afterwards."""
        return self.sources

    @property
    def num_parts(self) -> int:
        """Of how many maps of equal width, concatenated, the row's own output consists."""
        return 1

    @property
    def num_branches(self) -> int:
        """How many maps the row adds up; each can be taken alone, as `name.1`, `name.2`, where there are several."""
        return 1


def own_width(row: RowBase, *, out: int, inputs: Sequence[Shape]) -> int:
    """Channels of `out` that the row computes itself, without those it only concatenates."""
    return out - sum(shape.channels for i, shape in enumerate(inputs) if row.concatenates(i))


def expect_maps(inputs: Sequence[Shape], number: int) -> None:
    """ValueError unless a row has so many sources."""
    if len(inputs) != number:
        raise ValueError(f"takes {number} map{'s' if number > 1 else ''}, not {len(inputs)}")


def check_positions(rep: Sequence[int], number: int, what: str) -> None:
    """ValueError unless `rep` names different positions from 1 to the number of what there is."""
    if len(set(rep)) != len(rep) or max(rep, default=0) > number:
        raise ValueError(f"rep={list(rep)} must name each position once, from 1 to {number}, the number of {what}")


def shape_with_laterals(row: RowBase, out: int, main: Shape, laterals: Sequence[Shape]) -> Shape:
    """The shape of a row that makes `main` into `out` channels, laterals included; ValueError where they do not fit."""
    for lateral in laterals:
        if lateral.stride != main.stride:
            raise ValueError(f"cannot concatenate a map of stride {main.stride} with one of stride {lateral.stride}")
    own = out - sum(lateral.channels for lateral in laterals)
    if own < 1:
        raise ValueError(f"out={out} must exceed the {out - own} channels that it concatenates")
    if own % row.num_parts:
        raise ValueError(f"out={out} leaves {own} channels of its own, which must be even")
    return Shape(out, main.stride)
