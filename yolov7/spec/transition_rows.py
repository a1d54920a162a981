"""Rows that change the resolution or the width of a map: convolutions and transitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

from pydantic import Field

from yolov7.spec.row import (
    CONCATENATION,
    Convolution,
    Count,
    MapShape,
    PlannedRepConv,
    RowBase,
    expect_maps,
    own_width,
    shape_with_laterals,
)


@final
class ConvRow(RowBase):
    """Convolution, batch norm and activation; further sources are concatenated behind its map.

    The first convolution of YOLOv5 has a 6x6 kernel with a padding of 2.
    """

    block: Literal["conv"]
    out: Count
    kernel: Literal[1, 3, 6] = Field(3, alias="k")
    stride: Literal[1, 2] = Field(1, alias="s")

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        if self.kernel == 6 and self.stride == 1:
            raise ValueError("k=6 needs s=2, because an even kernel does not keep the resolution")
        main = MapShape(inputs[0].channels, inputs[0].stride * self.stride)
        return shape_with_laterals(self, self.out, main, inputs[1:])

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolution; see `RowBase`."""
        return (Convolution(inputs[0].channels, own_width(self, out=self.out, inputs=inputs), self.kernel),)

    def concatenates(self, position: int) -> bool:
        """Return True for laterals."""
        return position > 0


@final
class MaxPoolRow(RowBase):
    """2x2 max-pooling with stride 2."""

    block: Literal["maxpool"]

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 1)
        return MapShape(inputs[0].channels, inputs[0].stride * 2)


@final
class ReorgRow(RowBase):
    """Space to depth: every 2x2 pixels become four times the channels."""

    block: Literal["reorg"]

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 1)
        return MapShape(inputs[0].channels * 4, inputs[0].stride * 2)


@final
class DownRow(RowBase):
    """Transition that halves the resolution: a strided convolution beside max-pooling, and then any laterals.

    `mp` first reduces the input of both paths with 1x1 convolutions. `down_c` reduces only the pooled path, and keeps
    all channels before the strided convolution.
    """

    block: Literal["mp", "down_c"]
    out: Count

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        return shape_with_laterals(self, self.out, MapShape(inputs[0].channels, inputs[0].stride * 2), inputs[1:])

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions; see `RowBase`."""
        channels, width = inputs[0].channels, own_width(self, out=self.out, inputs=inputs) // 2
        inner = width if self.block == "mp" else channels
        return (
            Convolution(channels, width, 1),
            Convolution(channels, inner, 1),
            Convolution(inner, width, 3),
        )

    def concatenates(self, position: int) -> bool:
        """Return True for laterals."""
        return position > 0

    @property
    def num_parts(self) -> int:
        """The two paths."""
        return 2


@final
class UpRow(RowBase):
    """Transition that doubles the resolution of the first source and concatenates it behind the map of the second."""

    block: Literal["up"]
    out: Count

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 2)
        top, lateral = inputs
        if top.stride != 2 * lateral.stride:
            raise ValueError(
                f"cannot concatenate a map of stride {top.stride}, whose resolution it doubles, with one of stride "
                f"{lateral.stride}"
            )
        return shape_with_laterals(self, self.out, lateral, ())

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions; see `RowBase`."""
        return tuple(Convolution(shape.channels, self.out // 2, 1) for shape in inputs)

    @property
    def num_parts(self) -> int:
        """The lateral and the map of doubled resolution."""
        return 2


@final
class UpsampleRow(RowBase):
    """Transition of YOLOv3: a 1x1 convolution whose resolution is doubled; laterals are concatenated behind it."""

    block: Literal["upsample"]
    out: Count

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        if inputs[0].stride % 2:
            raise ValueError("cannot double the resolution of the image")
        return shape_with_laterals(self, self.out, MapShape(inputs[0].channels, inputs[0].stride // 2), inputs[1:])

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolution; see `RowBase`."""
        return (Convolution(inputs[0].channels, own_width(self, out=self.out, inputs=inputs), 1),)

    def concatenates(self, position: int) -> bool:
        """Return True for laterals."""
        return position > 0


@final
class DoubleRow(RowBase):
    """Double the resolution of the first source without a convolution; laterals are concatenated behind it."""

    block: Literal["double"]

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        main, *laterals = inputs
        if main.stride % 2:
            raise ValueError("cannot double the resolution of the image")
        return _concatenated([MapShape(main.channels, main.stride // 2), *laterals])

    def concatenates(self, position: int) -> bool:
        """Return True for laterals."""
        return position > 0

    def source_feeds(self, position: int, inputs: Sequence[MapShape]) -> str:
        """Return the concatenation, which every source enters if there are laterals; see `RowBase`."""
        return CONCATENATION if len(inputs) > 1 else ""


@final
class ConcatRow(RowBase):
    """The concatenation of all sources."""

    block: Literal["concat"]

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        return _concatenated(inputs)

    def concatenates(self, position: int) -> bool:
        """Return True for every source."""
        return True


@final
class RepConvRow(RowBase):
    """Re-parameterisable 3x3 convolution (section 4.1). The graph decides whether it has an identity branch."""

    block: Literal["rep_conv"]
    out: Count
    stride: Literal[1, 2] = Field(1, alias="s")

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the shape of the map; see `RowBase`."""
        expect_maps(inputs, 1)
        return MapShape(self.out, inputs[0].stride * self.stride)

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the branches, as if there were no identity; see `RowBase`."""
        return Convolution(inputs[0].channels, self.out, 3), Convolution(inputs[0].channels, self.out, 1)

    def planned_rep_convs(self, inputs: Sequence[MapShape], *, feeds: str) -> tuple[PlannedRepConv, ...]:
        """Return the convolution; see `RowBase`."""
        return (PlannedRepConv(0, inputs[0].channels, self.out, self.stride, feeds),)


def _concatenated(maps: Sequence[MapShape]) -> MapShape:
    strides = {shape.stride for shape in maps}
    if len(strides) > 1:
        raise ValueError(f"cannot concatenate maps of the strides {sorted(strides)}")
    return MapShape(sum(shape.channels for shape in maps), maps[0].stride)
