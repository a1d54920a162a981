"""The blocks of the graph as modules; each takes its row's maps, (B, C, H, W), the main one first.

Convolutions are registered in the order of the reference's graph, so that its weights map one to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from yolov7.spec.block_schema import BottleneckRow, CspRow
from yolov7.spec.row import MapShape, PlannedRepConv

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

    def __init__(
        self, channels: int, width: int, kernel: int = 3, stride: int = 1, *, groups: int = 1, activation: str
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
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

    def __init__(
        self, channels: int, width: int, stride: int = 1, *, identity: bool, groups: int = 1, activation: str
    ) -> None:
        super().__init__()
        assert not identity or (channels == width and stride == 1)
        self.identity = make_norm(width) if identity else None
        self.dense = _conv_bn(channels, width, 3, stride, groups)
        self.pointwise = _conv_bn(channels, width, 1, stride, groups)
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
class Reorg(nn.Module):
    """Space to depth: the 2x2 pixels become groups of channels, column by column."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], dim=1)


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
class DownC(nn.Module):
    """The P6 models' way down: cat[strided after a 1x1 of all channels, pooled, laterals], `width` channels each."""

    def __init__(self, channels: int, width: int, *, activation: str) -> None:
        super().__init__()
        self.mix = ConvBnAct(channels, channels, 1, activation=activation)
        self.strided = ConvBnAct(channels, width, 3, 2, activation=activation)
        self.pooled = ConvBnAct(channels, width, 1, activation=activation)

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        pooled = self.pooled(nn.functional.max_pool2d(x, 2, 2))
        return torch.cat([self.strided(self.mix(x)), pooled, *laterals], dim=1)


@final
class UpTransition(nn.Module):
    """Doubles the resolution of the deeper map: cat[lateral, upsampled], each of `width` channels."""

    def __init__(self, channels: int, lateral_channels: int, width: int, *, activation: str) -> None:
        super().__init__()
        self.top = ConvBnAct(channels, width, 1, activation=activation)
        self.lateral = ConvBnAct(lateral_channels, width, 1, activation=activation)

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:
        return torch.cat([self.lateral(lateral), _double(self.top(x))], dim=1)


@final
class Upsample(nn.Module):
    """YOLOv3's way up: a 1x1 convolution, doubled in resolution, and the laterals as they are behind it."""

    def __init__(self, channels: int, width: int, *, activation: str) -> None:
        super().__init__()
        self.top = ConvBnAct(channels, width, 1, activation=activation)

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        return torch.cat([_double(self.top(x)), *laterals], dim=1)


@final
class DarkBlock(nn.Module):
    """1x1 to `hidden`, 3x3 to `width`, and the input added; `reversed`: 3x3, then 1x1."""

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        hidden: int,
        shortcut: bool,
        reversed: bool = False,
        rep: PlannedRepConv | None = None,
        activation: str,
    ) -> None:
        super().__init__()
        first, second = (3, 1) if reversed else (1, 3)
        self.first = make_conv(channels, hidden, first, rep=rep if reversed else None, activation=activation)
        self.second = make_conv(hidden, width, second, rep=None if reversed else rep, activation=activation)
        self.adds = shortcut and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return x + y if self.adds else y


@final
class Bottlenecks(nn.Module):
    """Darknet's dark blocks, one after the other."""

    def __init__(self, row: BottleneckRow, channels: int, *, activation: str) -> None:
        super().__init__()
        widths = [channels] + [row.out] * (row.depth - 1)
        self.chain = nn.Sequential(
            *(
                DarkBlock(width, row.out, hidden=row.out // 2, shortcut=row.shortcut, activation=activation)
                for width in widths
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.chain(x)
        return y


@final
class Csp(nn.Module):
    """Cross-stage partial block in its three forms; 1x1 convolutions come before the chain of dark blocks."""

    def __init__(self, row: CspRow, inputs: Sequence[MapShape], *, activation: str) -> None:
        super().__init__()
        channels, hidden = inputs[0].channels, row.hidden
        self.splits_late = row.block == "csp_b"
        self.a = ConvBnAct(channels, hidden, 1, activation=activation)
        self.b = ConvBnAct(hidden if self.splits_late else channels, hidden, 1, activation=activation)
        self.behind = ConvBnAct(hidden, hidden, 1, activation=activation) if row.block == "csp_c" else nn.Identity()
        self.merge = ConvBnAct(2 * hidden, row.out, 1, activation=activation)
        planned = {conv.position: conv for conv in row.planned_rep_convs(inputs, feeds="")}
        self.chain = nn.Sequential(
            *(
                DarkBlock(
                    hidden,
                    hidden,
                    hidden=hidden,
                    shortcut=row.shortcut,
                    reversed=row.reversed,
                    rep=planned.get(i),
                    activation=activation,
                )
                for i in range(1, row.depth + 1)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        bypass = self.b(y if self.splits_late else x)
        merged: Tensor = self.merge(torch.cat([self.behind(self.chain(y)), bypass], dim=1))
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


@final
class Spp(nn.Module):
    """YOLOv3-SPP's pyramid: a 1x1 to half the channels, cat[it, its pools], 1x1."""

    def __init__(self, channels: int, out: int, *, activation: str) -> None:
        super().__init__()
        self.reduce = ConvBnAct(channels, channels // 2, 1, activation=activation)
        self.merge = ConvBnAct(4 * (channels // 2), out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        merged: Tensor = self.merge(torch.cat([y, *pool_pyramid(y)], dim=1))
        return merged


def make_conv(
    channels: int, width: int, kernel: int, *, rep: PlannedRepConv | None = None, groups: int = 1, activation: str
) -> ConvBnAct | RepConv:
    """A plain convolution, or a re-parameterised one where a place of it was planned."""
    if rep is None:
        return ConvBnAct(channels, width, kernel, groups=groups, activation=activation)
    return RepConv(channels, width, identity=rep.identity, groups=groups, activation=activation)


def pool_pyramid(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Max-pooling over windows of 5, 9 and 13: 5x5 once, twice and three times, which is the same and cheaper."""
    pool5 = nn.functional.max_pool2d(x, 5, 1, 2)
    pool9 = nn.functional.max_pool2d(pool5, 5, 1, 2)
    return pool5, pool9, nn.functional.max_pool2d(pool9, 5, 1, 2)


def _double(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _conv_bn(channels: int, width: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, make_norm(width))
