"""All rows of a block graph and the row of the detection head.

A new block needs a row class, a module in `yolov7.nn.blocks` and a case in `yolov7.nn.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, final

from pydantic import BaseModel, ConfigDict, Field

from yolov7.spec.computational_rows import BottleneckRow, CspRepRow, CspRow, CspTinyRow, ElanRow, SppRow
from yolov7.spec.row import Convolution, Count, MapShape, RowBase, Sources
from yolov7.spec.transition_rows import (
    ConcatRow,
    ConvRow,
    DoubleRow,
    DownRow,
    MaxPoolRow,
    ReorgRow,
    RepConvRow,
    UpRow,
    UpsampleRow,
)

__all__ = [
    "Auxiliary",
    "BottleneckRow",
    "ComputationalRow",
    "ConcatRow",
    "ConvRow",
    "Count",
    "CspRepRow",
    "CspRow",
    "CspTinyRow",
    "DetectRow",
    "DoubleRow",
    "DownRow",
    "ElanRow",
    "MaxPoolRow",
    "ReorgRow",
    "RepConvRow",
    "Row",
    "SppRow",
    "UpRow",
    "UpsampleRow",
    "keys_of_block",
    "list_blocks",
]

Side = Annotated[float, Field(gt=0.0, le=65_536.0, allow_inf_nan=False)]
LevelAnchors = Annotated[tuple[Side, ...], Field(max_length=40)]


@final
class Auxiliary(BaseModel):
    """The auxiliary head (section 4.2): on each level, a 3x3 convolution of the tapped map, then a 1x1 convolution.

    Attributes:
        sources: Names of the tapped rows, finest first (`from` in a file).
        out: Widths of the 3x3 convolutions. By default, they are the widths of the maps of the lead head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    sources: Sources = Field(alias="from")
    out: Annotated[tuple[Count, ...], Field(max_length=16)] | None = None


@final
class DetectRow(RowBase):
    """The detection head, with one map per level.

    Attributes:
        block: Always `detect`.
        anchors: For each level, width and height of every anchor in pixels, in one flat list.
        implicit: Whether the head has implicit knowledge (section 4.3).
        auxiliary: The auxiliary head, if there is one.
    """

    block: Literal["detect"]
    anchors: Annotated[tuple[LevelAnchors, ...], Field(max_length=16)]
    implicit: bool = True
    auxiliary: Auxiliary | None = None

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the number of anchors per level and the largest stride; see `RowBase`."""
        if len(self.anchors) != len(inputs):
            raise ValueError(f"{len(self.anchors)} levels of anchors for {len(inputs)} maps; give one list per map")
        sizes = {len(level) for level in self.anchors}
        if len(sizes) != 1 or sizes == {0} or min(sizes) % 2:
            raise ValueError(
                "anchors must be pairs of width and height, and each level must have the same number of them"
            )
        strides = [shape.stride for shape in inputs]
        if strides != sorted(set(strides)):
            raise ValueError(f"strides {strides} must be strictly ascending; name the finest map first")
        return MapShape(len(self.anchors[0]) // 2, strides[-1])

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the 3x3 convolutions of the auxiliary head; the 1x1 convolutions depend on the number of classes."""
        lead, taps = inputs[: len(self.sources)], inputs[len(self.sources) :]
        widths = (self.auxiliary.out if self.auxiliary else None) or [shape.channels for shape in lead]
        return tuple(Convolution(tap.channels, width, 3) for tap, width in zip(taps, widths[: len(taps)], strict=True))

    @property
    def taps(self) -> tuple[str, ...]:
        """The maps that the auxiliary head takes."""
        return self.auxiliary.sources if self.auxiliary else ()

    @property
    def all_sources(self) -> tuple[str, ...]:
        """The maps of the lead head, then those of the auxiliary head."""
        return (*self.sources, *self.taps)

    def check_auxiliary(self, lead: Sequence[MapShape], taps: Sequence[MapShape]) -> None:
        """Check that the auxiliary head has the levels of the lead head.

        Args:
            lead: Shapes of the maps of the lead head.
            taps: Shapes of the maps of the auxiliary head.

        Raises:
            ValueError: If the strides or the number of widths differ.
        """
        strides, tapped = [shape.stride for shape in lead], [shape.stride for shape in taps]
        if tapped and tapped != strides:
            raise ValueError(f"the maps of the auxiliary head have strides {tapped}; the lead head needs {strides}")
        if self.auxiliary and self.auxiliary.out and len(self.auxiliary.out) != len(lead):
            raise ValueError(f"the auxiliary head has {len(self.auxiliary.out)} widths for {len(lead)} levels")


Row = Annotated[
    ConvRow
    | MaxPoolRow
    | ReorgRow
    | DownRow
    | UpRow
    | UpsampleRow
    | DoubleRow
    | ConcatRow
    | ElanRow
    | CspRow
    | CspRepRow
    | CspTinyRow
    | BottleneckRow
    | SppRow
    | RepConvRow
    | DetectRow,
    Field(discriminator="block"),
]
_ROW_CLASSES: tuple[type[RowBase], ...] = (
    ConvRow, MaxPoolRow, ReorgRow, DownRow, UpRow, UpsampleRow, DoubleRow, ConcatRow, ElanRow, CspRow, CspRepRow,
    CspTinyRow, BottleneckRow, SppRow, RepConvRow, DetectRow,
)  # fmt: skip

ComputationalRow = ElanRow | CspRow | CspRepRow | BottleneckRow  # rows that have a depth


def list_blocks() -> tuple[str, ...]:
    """Return the names of all blocks.

    Returns:
        The names.
    """
    return tuple(block for row in _ROW_CLASSES for block in _blocks_of(row))


def keys_of_block(block: str) -> tuple[str, ...]:
    """Return the keys that a row may have.

    Args:
        block: Name of the block of the row.

    Returns:
        The keys as they are written in files; none for an unknown block.
    """
    classes = [row for row in _ROW_CLASSES if block in _blocks_of(row)]
    return tuple(field.alias or name for row in classes for name, field in row.model_fields.items())


def _blocks_of(row: type[RowBase]) -> tuple[str, ...]:
    blocks: tuple[str, ...] = row.model_fields["block"].annotation.__args__  # type: ignore[union-attr]
    return blocks
