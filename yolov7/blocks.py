"""The blocks of the graph as modules; each takes its row's maps, (B, C, H, W), the main one first.

Convolutions are registered in the order of the reference's graph, so that its weights map one to one.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from yolov7.graph import ElanRow

BN_EPS = 1e-3
BN_MOMENTUM = 0.03
LEAKY_SLOPE = 0.1


def make_activation(name: str) -> nn.Module:
    """`silu` or `leaky_relu` as a module."""
    return nn.SiLU() if name == "silu" else nn.LeakyReLU(LEAKY_SLOPE, inplace=True)


def make_norm(width: int) -> nn.BatchNorm2d:
    """Batch norm with the model's constants; the running variance starts at 1."""
    return nn.BatchNorm2d(width, eps=BN_EPS, momentum=BN_MOMENTUM)


@final
class ConvBnAct(nn.Module):
    """Convolution without bias, batch norm, activation: B C H W -> B width H/stride W/stride."""

    def __init__(self, channels: int, width: int, kernel: int = 3, stride: int = 1, *, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn = make_norm(width)
        self.act = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


@final
class ConvAct(nn.Module):
    """What a fused ConvBnAct or RepConv becomes: one convolution with bias, activation."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.conv(x))
        return y


@final
class RepConv(nn.Module):
    """3x3, 1x1 and, where asked for, identity branch, each with batch norm, added: one 3x3 once fused (section 4.1)."""

    def __init__(self, channels: int, width: int, stride: int = 1, *, identity: bool, activation: str) -> None:
        super().__init__()
        assert not identity or (channels == width and stride == 1)
        self.identity = make_norm(width) if identity else None
        self.dense = _conv_bn(channels, width, 3, stride)
        self.pointwise = _conv_bn(channels, width, 1, stride)
        self.act = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dense(x) + self.pointwise(x)
        if self.identity is not None:
            y = y + self.identity(x)
        activated: Tensor = self.act(y)
        return activated


@final
class ConvTransition(nn.Module):
    """A convolution whose map is concatenated with the laterals, if there are any."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, *, activation: str) -> None:
        super().__init__()
        self.conv = ConvBnAct(channels, width, kernel, stride, activation=activation)

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return torch.cat([y, *laterals], dim=1) if laterals else y


@final
class MaxPool(nn.Module):
    """2x2 max-pooling with stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, 2, 2)


@final
class MpTransition(nn.Module):
    """Halves the resolution twice over, by pooling and by a strided convolution: cat[convolved, pooled, laterals]."""

    def __init__(self, channels: int, width: int, *, activation: str) -> None:
        super().__init__()
        self.pooled = ConvBnAct(channels, width, 1, activation=activation)
        self.reduce = ConvBnAct(channels, width, 1, activation=activation)
        self.strided = ConvBnAct(width, width, 3, 2, activation=activation)

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        pooled = self.pooled(nn.functional.max_pool2d(x, 2, 2))
        return torch.cat([self.strided(self.reduce(x)), pooled, *laterals], dim=1)


@final
class UpTransition(nn.Module):
    """Doubles the resolution of the deeper map: cat[lateral, upsampled], each of `width` channels."""

    def __init__(self, channels: int, lateral_channels: int, width: int, *, activation: str) -> None:
        super().__init__()
        self.top = ConvBnAct(channels, width, 1, activation=activation)
        self.lateral = ConvBnAct(lateral_channels, width, 1, activation=activation)

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:
        upsampled = nn.functional.interpolate(self.top(x), scale_factor=2.0, mode="nearest")
        return torch.cat([self.lateral(lateral), upsampled], dim=1)


@final
class Elan(nn.Module):
    """Efficient layer aggregation: two 1x1, a chain of 3x3 from the second, cat[last, ..., first, b, a], 1x1.

    `inner` is the width of the chain, `every` how many of its convolutions lie between two maps that are taken.
    """

    def __init__(
        self, channels: int, out: int, *, hidden: int, inner: int, chain: int, every: int, activation: str
    ) -> None:
        super().__init__()
        self.every = every
        self.a = ConvBnAct(channels, hidden, 1, activation=activation)
        self.b = ConvBnAct(channels, hidden, 1, activation=activation)
        self.chain = nn.ModuleList(
            ConvBnAct(inner if i else hidden, inner, activation=activation) for i in range(chain)
        )
        self.merge = ConvBnAct(2 * hidden + chain // every * inner, out, 1, activation=activation)

    @classmethod
    def from_row(cls, row: ElanRow, channels: int, *, activation: str) -> Elan:
        """The block's three forms: `elan` takes every second map, `elan_w` and `elan_tiny` all of them."""
        inner = row.hidden // 2 if row.block == "elan_w" else row.hidden
        chain = row.depth if row.block == "elan_tiny" else 2 * row.depth
        every = 2 if row.block == "elan" else 1
        return cls(channels, row.out, hidden=row.hidden, inner=inner, chain=chain, every=every, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(x)
        taken = [self.a(x), y]
        for i, conv in enumerate(self.chain, start=1):
            y = conv(y)
            if i % self.every == 0:
                taken.append(y)
        merged: Tensor = self.merge(torch.cat(taken[::-1], dim=1))
        return merged


@final
class Sppcspc(nn.Module):
    """Spatial pyramid pooling (5, 9, 13) in a cross-stage partial block."""

    def __init__(self, channels: int, out: int, *, activation: str) -> None:
        super().__init__()
        self.reduce = ConvBnAct(channels, out, 1, activation=activation)
        self.bypass = ConvBnAct(channels, out, 1, activation=activation)
        self.dense = ConvBnAct(out, out, 3, activation=activation)
        self.squeeze = ConvBnAct(out, out, 1, activation=activation)
        self.pooled = ConvBnAct(4 * out, out, 1, activation=activation)
        self.refine = ConvBnAct(out, out, 3, activation=activation)
        self.merge = ConvBnAct(2 * out, out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.squeeze(self.dense(self.reduce(x)))
        y = self.refine(self.pooled(torch.cat([y, *pool_pyramid(y)], dim=1)))
        merged: Tensor = self.merge(torch.cat([y, self.bypass(x)], dim=1))
        return merged


@final
class SppTiny(nn.Module):
    """Tiny's reduced form of it: no 3x3 convolutions, pools from wide to narrow."""

    def __init__(self, channels: int, out: int, *, activation: str) -> None:
        super().__init__()
        self.bypass = ConvBnAct(channels, out, 1, activation=activation)
        self.reduce = ConvBnAct(channels, out, 1, activation=activation)
        self.pooled = ConvBnAct(4 * out, out, 1, activation=activation)
        self.merge = ConvBnAct(2 * out, out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        pooled = self.pooled(torch.cat([*pool_pyramid(y)[::-1], y], dim=1))
        merged: Tensor = self.merge(torch.cat([pooled, self.bypass(x)], dim=1))
        return merged


def pool_pyramid(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Max-pooling over windows of 5, 9 and 13: 5x5 once, twice and three times, which is the same and cheaper."""
    pool5 = nn.functional.max_pool2d(x, 5, 1, 2)
    pool9 = nn.functional.max_pool2d(pool5, 5, 1, 2)
    return pool5, pool9, nn.functional.max_pool2d(pool9, 5, 1, 2)


def _conv_bn(channels: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, make_norm(width))
