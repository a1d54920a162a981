"""Blocks that the user has written: how they are built, checked and fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from yolov7.errors import SpecError, TrainingError, one_line
from yolov7.spec.plugin_rows import PluginRow
from yolov7.spec.row import MapShape
from yolov7.system.plugins import BLOCK, load_plugin, naming

_SIDE = 64  # cells of the map with which a block is checked


@runtime_checkable
class Fusible(Protocol):
    """A module that has an equal, faster form for deployment. Modules without this method are deployed as they are."""

    def fuse(self) -> nn.Module:
        """Return the equal module. It must also work on the meta device, where only shapes matter."""


def build_plugin(row: PluginRow, inputs: Sequence[MapShape]) -> nn.Module:
    """Build an own block, and check on the meta device that its map has the shape that the row states.

    Args:
        row: The row of the block.
        inputs: Shapes of the maps of its sources.

    Returns:
        The module.

    Raises:
        SettingError: The block may not be imported, or cannot be.
        SpecError: The block cannot be built, or its map has another shape.
    """
    make = load_plugin(row.of, BLOCK, options=row.options)
    channels, shape = tuple(source.channels for source in inputs), row.shape(inputs)
    sides = [_SIDE * inputs[0].stride // source.stride for source in inputs]
    maps = [torch.empty(1, c, side, side, device="meta") for c, side in zip(channels, sides, strict=True)]
    try:
        with naming("the block", row.of):
            module: nn.Module = make(channels, shape.channels, row.stride, **row.options)
            with torch.device("meta"):
                probe = make(channels, shape.channels, row.stride, **row.options)
            with torch.no_grad():
                found = probe.eval()(*maps)
    except TrainingError as error:
        raise SpecError(str(error)) from error
    wanted = (1, shape.channels, _SIDE // row.stride, _SIDE // row.stride)
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != wanted:
        got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        given = ", ".join(str(tuple(one.shape)) for one in maps)
        raise SpecError(
            one_line(
                f"the block {row.of} makes {got} of {given}, but its row states {wanted} (out={shape.channels}, "
                f"s={row.stride}); correct the row or the block"
            )
        )
    return module
