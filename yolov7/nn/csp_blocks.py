"""Cross-stage partial blocks of PP-YOLOE and YOLOv4-tiny."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from yolov7.nn.blocks import ConvBnAct, RepConv
from yolov7.nn.pooling import pool_pyramid
from yolov7.spec.block_schema import CspRepRow, CspTinyRow
from yolov7.spec.row import MapShape


@final
class ChannelAttention(nn.Module):
    """Effective squeeze and excitation: each channel times the hard sigmoid of a 1x1 of the means of all channels."""

    def __init__(self, channels: int) -> None:
        """Make the 1x1 convolution, which has a bias and no batch norm."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, C, H, W)."""
        return x * nn.functional.hardsigmoid(self.conv(x.mean((2, 3), keepdim=True)))


@final
class RepBlock(nn.Module):
    """A 3x3 and a re-parameterised 3x3 convolution without identity branch, plus the input."""

    def __init__(self, width: int, *, shortcut: bool, activation: str) -> None:
        """Make both convolutions with `width` channels; `shortcut` states whether the input is added."""
        super().__init__()
        self.first = ConvBnAct(width, width, 3, activation=activation)
        self.second = RepConv(width, width, identity=False, activation=activation)
        self.adds = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, width, H, W)."""
        y: Tensor = self.second(self.first(x))
        return x + y if self.adds else y


@final
class CspRep(nn.Module):
    """1x1 of cat[1x1, chain of blocks behind another 1x1], with channel attention in the backbone of PP-YOLOE."""

    def __init__(self, row: CspRepRow, inputs: Sequence[MapShape], *, activation: str) -> None:
        """Make the block of a row whose source has the given shape."""
        super().__init__()
        channels, hidden = inputs[0].channels, row.hidden(inputs)
        self.pooled_block = row.pooled_block
        self.bypass = ConvBnAct(channels, hidden, 1, activation=activation)
        self.reduce = ConvBnAct(channels, hidden, 1, activation=activation)
        self.chain = nn.ModuleList(
            RepBlock(hidden, shortcut=row.residual, activation=activation) for _ in range(row.depth)
        )
        self.spp = ConvBnAct(4 * hidden, hidden, 1, activation=activation) if row.spp else None
        self.attention = ChannelAttention(2 * hidden) if row.residual else nn.Identity()
        self.merge = ConvBnAct(2 * hidden, row.out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, out, H, W)."""
        y = self.reduce(x)
        for i, block in enumerate(self.chain, start=1):
            y = block(y)
            if self.spp is not None and i == self.pooled_block:
                y = self.spp(torch.cat([y, *pool_pyramid(y)], dim=1))
        merged: Tensor = self.merge(self.attention(torch.cat([self.bypass(x), y], dim=1)))
        return merged


@final
class CspTiny(nn.Module):
    """1x1 of cat[second, first] of two 3x3 convolutions, of which the first takes half of the channels."""

    def __init__(self, row: CspTinyRow, channels: int, *, activation: str) -> None:
        """Make the block of a row whose source has `channels` channels."""
        super().__init__()
        self.taken = 0 if row.half == "first" else 1
        self.first = ConvBnAct(channels // 2, channels // 2, 3, activation=activation)
        self.second = ConvBnAct(channels // 2, channels // 2, 3, activation=activation)
        self.merge = ConvBnAct(channels, row.out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, out, H, W)."""
        first = self.first(x.chunk(2, dim=1)[self.taken])
        merged: Tensor = self.merge(torch.cat([self.second(first), first], dim=1))
        return merged
