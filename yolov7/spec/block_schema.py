"""All rows of a block graph, those of detection heads included.

A new block needs a row class, a module in `yolov7.nn.blocks` and a case in `yolov7.nn.model`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from yolov7.spec.computational_rows import BottleneckRow, CspRepRow, CspRow, CspTinyRow, ElanRow, SppRow
from yolov7.spec.head_rows import (
    Auxiliary,
    DetectRow,
    DflHeadRow,
    HeadRow,
    OneToOneHeadRow,
    PpyoloeHeadRow,
    YoloxHeadRow,
)
from yolov7.spec.plugin_rows import PluginRow
from yolov7.spec.row import Count, RowBase
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
    "DflHeadRow",
    "DoubleRow",
    "DownRow",
    "ElanRow",
    "HeadRow",
    "MaxPoolRow",
    "OneToOneHeadRow",
    "PluginRow",
    "PpyoloeHeadRow",
    "ReorgRow",
    "RepConvRow",
    "Row",
    "SppRow",
    "UpRow",
    "UpsampleRow",
    "YoloxHeadRow",
    "keys_of_block",
    "list_blocks",
]

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
    | PluginRow
    | DetectRow
    | YoloxHeadRow
    | PpyoloeHeadRow
    | DflHeadRow
    | OneToOneHeadRow,
    Field(discriminator="block"),
]
_ROW_CLASSES: tuple[type[RowBase], ...] = (
    ConvRow, MaxPoolRow, ReorgRow, DownRow, UpRow, UpsampleRow, DoubleRow, ConcatRow, ElanRow, CspRow, CspRepRow,
    CspTinyRow, BottleneckRow, SppRow, RepConvRow, PluginRow, DetectRow, YoloxHeadRow, PpyoloeHeadRow, DflHeadRow,
    OneToOneHeadRow,
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
