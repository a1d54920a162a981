"""Spatial pyramid pooling in its three forms."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from yolov7.nn.blocks import ConvBnAct


@final
class Sppcspc(nn.Module):
    """Spatial pyramid pooling (windows of 5, 9 and 13) in a cross-stage partial block."""

    def __init__(self, channels: int, out: int, *, activation: str) -> None:
        """Make the block with `channels` input and `out` output channels."""
        super().__init__()
        self.reduce = ConvBnAct(channels, out, 1, activation=activation)
        self.bypass = ConvBnAct(channels, out, 1, activation=activation)
        self.dense = ConvBnAct(out, out, 3, activation=activation)
        self.squeeze = ConvBnAct(out, out, 1, activation=activation)
        self.pooled = ConvBnAct(4 * out, out, 1, activation=activation)
        self.refine = ConvBnAct(out, out, 3, activation=activation)
        self.merge = ConvBnAct(2 * out, out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, out, H, W)."""
        y = self.squeeze(self.dense(self.reduce(x)))
        y = self.refine(self.pooled(torch.cat([y, *pool_pyramid(y)], dim=1)))
        merged: Tensor = self.merge(torch.cat([y, self.bypass(x)], dim=1))
        return merged


@final
class SppTiny(nn.Module):
    """The reduced form of `Sppcspc` in YOLOv7-tiny: no 3x3 convolutions, pools from the widest to the narrowest."""

    def __init__(self, channels: int, out: int, *, activation: str) -> None:
        """Make the block with `channels` input and `out` output channels."""
        super().__init__()
        self.bypass = ConvBnAct(channels, out, 1, activation=activation)
        self.reduce = ConvBnAct(channels, out, 1, activation=activation)
        self.pooled = ConvBnAct(4 * out, out, 1, activation=activation)
        self.merge = ConvBnAct(2 * out, out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, out, H, W)."""
        y = self.reduce(x)
        pooled = self.pooled(torch.cat([*pool_pyramid(y)[::-1], y], dim=1))
        merged: Tensor = self.merge(torch.cat([pooled, self.bypass(x)], dim=1))
        return merged


@final
class Spp(nn.Module):
    """The pyramid of YOLOv3-SPP: 1x1 to half the channels, cat[map, pools], 1x1; YOLOv4 has the widest pool first."""

    def __init__(self, channels: int, out: int, *, widest_first: bool = False, activation: str) -> None:
        """Make the block with `channels` input and `out` output channels."""
        super().__init__()
        self.widest_first = widest_first
        self.reduce = ConvBnAct(channels, channels // 2, 1, activation=activation)
        self.merge = ConvBnAct(4 * (channels // 2), out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, out, H, W)."""
        y = self.reduce(x)
        maps = [y, *pool_pyramid(y)]
        merged: Tensor = self.merge(torch.cat(maps[::-1] if self.widest_first else maps, dim=1))
        return merged


def pool_pyramid(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return max-pooling over windows of 5, 9 and 13, computed by repeated 5x5 pooling, which is equal and cheaper.

    Args:
        x: Map (B, C, H, W).

    Returns:
        Three maps (B, C, H, W), the narrowest window first.
    """
    pool5 = nn.functional.max_pool2d(x, 5, 1, 2)
    pool9 = nn.functional.max_pool2d(pool5, 5, 1, 2)
    return pool5, pool9, nn.functional.max_pool2d(pool9, 5, 1, 2)
