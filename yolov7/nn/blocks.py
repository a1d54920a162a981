"""The blocks of the graph as modules. Each takes the maps (B, C, H, W) of its row, the main one first.

Convolutions are registered in the order of the graph of the reference, so that its weights can be copied one to one.
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
    """Make an activation.

    Args:
        name: `silu`, `leaky_relu` or `mish`.

    Returns:
        The module.
    """
    if name == "leaky_relu":
        return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
    return nn.Mish() if name == "mish" else nn.SiLU()


def make_norm(width: int) -> nn.BatchNorm2d:
    """Make a batch norm with the constants of YOLOv7; the model replaces them by those of its specification.

    Args:
        width: Number of channels.

    Returns:
        The module.
    """
    return nn.BatchNorm2d(width, eps=BN_EPS, momentum=BN_MOMENTUM)


@final
class ConvBnAct(nn.Module):
    """Convolution without bias, batch norm, activation: B C H W -> B width H/stride W/stride."""

    def __init__(
        self, channels: int, width: int, kernel: int = 3, stride: int = 1, *, groups: int = 1, activation: str
    ) -> None:
        """Make a convolution with `channels` input and `width` output channels and `groups` groups."""
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.bn = make_norm(width)
        self.act = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, width, H / stride, W / stride)."""
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


@final
class ConvAct(nn.Module):
    """One convolution with bias and an activation: the fused form of ConvBnAct and RepConv."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        """Join a convolution and an activation."""
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, width, H / stride, W / stride)."""
        y: Tensor = self.act(self.conv(x))
        return y


@final
class RepConv(nn.Module):
    """The sum of a 3x3, a 1x1 and an optional identity branch with batch norms; one 3x3 when fused (section 4.1)."""

    def __init__(
        self, channels: int, width: int, stride: int = 1, *, identity: bool, groups: int = 1, activation: str
    ) -> None:
        """Make the branches; an identity branch needs equal channels and stride 1."""
        super().__init__()
        assert not identity or (channels == width and stride == 1)
        self.identity = make_norm(width) if identity else None
        self.dense = _conv_bn(channels, width, 3, stride, groups)
        self.pointwise = _conv_bn(channels, width, 1, stride, groups)
        self.act = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, width, H / stride, W / stride)."""
        y: Tensor = self.dense(x) + self.pointwise(x)
        if self.identity is not None:
            y = y + self.identity(x)
        activated: Tensor = self.act(y)
        return activated


@final
class ConvTransition(nn.Module):
    """A convolution whose map is concatenated with laterals."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, *, activation: str) -> None:
        """Make a convolution with `channels` input and `width` output channels, without laterals."""
        super().__init__()
        self.conv = ConvBnAct(channels, width, kernel, stride, activation=activation)

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        """Return the map with the laterals behind it."""
        y: Tensor = self.conv(x)
        return torch.cat([y, *laterals], dim=1) if laterals else y


@final
class MaxPool(nn.Module):
    """2x2 max-pooling with stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, C, H / 2, W / 2)."""
        return nn.functional.max_pool2d(x, 2, 2)


@final
class Reorg(nn.Module):
    """Space to depth: the pixels of each 2x2 square become groups of channels, column by column."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, 4 C, H / 2, W / 2)."""
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], dim=1)


@final
class MpTransition(nn.Module):
    """Half the resolution on two paths: cat[strided convolution, pooling, laterals]."""

    def __init__(self, channels: int, width: int, *, activation: str) -> None:
        """Make both paths, each with `width` output channels."""
        super().__init__()
        self.pooled = ConvBnAct(channels, width, 1, activation=activation)
        self.reduce = ConvBnAct(channels, width, 1, activation=activation)
        self.strided = ConvBnAct(width, width, 3, 2, activation=activation)

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        """Return the concatenation, with H / 2 and W / 2."""
        pooled = self.pooled(nn.functional.max_pool2d(x, 2, 2))
        return torch.cat([self.strided(self.reduce(x)), pooled, *laterals], dim=1)


@final
class DownC(nn.Module):
    """The down-sampling of the P6 models: cat[strided convolution behind a 1x1, pooling, laterals]."""

    def __init__(self, channels: int, width: int, *, activation: str) -> None:
        """Make both paths, each with `width` output channels."""
        super().__init__()
        self.mix = ConvBnAct(channels, channels, 1, activation=activation)
        self.strided = ConvBnAct(channels, width, 3, 2, activation=activation)
        self.pooled = ConvBnAct(channels, width, 1, activation=activation)

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        """Return the concatenation, with H / 2 and W / 2."""
        pooled = self.pooled(nn.functional.max_pool2d(x, 2, 2))
        return torch.cat([self.strided(self.mix(x)), pooled, *laterals], dim=1)


@final
class UpTransition(nn.Module):
    """Double the resolution of the deeper map: cat[lateral, upsampled map], each with `width` channels."""

    def __init__(self, channels: int, lateral_channels: int, width: int, *, activation: str) -> None:
        """Make the 1x1 convolutions of both maps."""
        super().__init__()
        self.top = ConvBnAct(channels, width, 1, activation=activation)
        self.lateral = ConvBnAct(lateral_channels, width, 1, activation=activation)

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:
        """Return the map (B, 2 width, 2 H, 2 W)."""
        return torch.cat([self.lateral(lateral), _double(self.top(x))], dim=1)


@final
class Upsample(nn.Module):
    """The up-sampling of YOLOv3: cat[1x1 convolution with doubled resolution, laterals]."""

    def __init__(self, channels: int, width: int, *, activation: str) -> None:
        """Make the 1x1 convolution."""
        super().__init__()
        self.top = ConvBnAct(channels, width, 1, activation=activation)

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        """Return the map (B, width, 2 H, 2 W) with the laterals behind it."""
        return torch.cat([_double(self.top(x)), *laterals], dim=1)


@final
class Double(nn.Module):
    """Double the resolution by repeating pixels; laterals are concatenated behind."""

    def forward(self, x: Tensor, *laterals: Tensor) -> Tensor:
        """Return the map (B, C, 2 H, 2 W) with the laterals behind it."""
        return torch.cat([_double(x), *laterals], dim=1) if laterals else _double(x)


@final
class Concat(nn.Module):
    """The concatenation of maps of equal resolution."""

    def forward(self, *maps: Tensor) -> Tensor:
        """Return the map (B, sum of C, H, W)."""
        return torch.cat(maps, dim=1)


@final
class DarkBlock(nn.Module):
    """1x1 to `hidden` and 3x3 to `width` channels, plus the input; with `reversed`, the 3x3 comes first."""

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
        """Make both convolutions; `rep` is the plan of a re-parameterised 3x3 convolution."""
        super().__init__()
        first, second = (3, 1) if reversed else (1, 3)
        self.first = make_conv(channels, hidden, first, rep=rep if reversed else None, activation=activation)
        self.second = make_conv(hidden, width, second, rep=None if reversed else rep, activation=activation)
        self.adds = shortcut and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, width, H, W)."""
        y: Tensor = self.second(self.first(x))
        return x + y if self.adds else y


@final
class Bottlenecks(nn.Module):
    """Dark blocks of Darknet in sequence."""

    def __init__(self, row: BottleneckRow, channels: int, *, activation: str) -> None:
        """Make the dark blocks of a row whose source has `channels` channels."""
        super().__init__()
        widths = [channels] + [row.out] * (row.depth - 1)
        self.chain = nn.Sequential(
            *(
                DarkBlock(width, row.out, hidden=row.out // 2, shortcut=row.shortcut, activation=activation)
                for width in widths
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, out, H, W)."""
        y: Tensor = self.chain(x)
        return y


@final
class Csp(nn.Module):
    """Cross-stage partial block in its three forms, with 1x1 convolutions before the chain of dark blocks."""

    def __init__(self, row: CspRow, inputs: Sequence[MapShape], *, activation: str) -> None:
        """Make the block of a row whose source has the given shape."""
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
        """Return the map (B, out, H, W)."""
        y = self.a(x)
        bypass = self.b(y if self.splits_late else x)
        merged: Tensor = self.merge(torch.cat([self.behind(self.chain(y)), bypass], dim=1))
        return merged


def make_conv(
    channels: int, width: int, kernel: int, *, rep: PlannedRepConv | None = None, groups: int = 1, activation: str
) -> ConvBnAct | RepConv:
    """Make a plain convolution, or a re-parameterised one if it is planned.

    Args:
        channels: Input channels.
        width: Output channels.
        kernel: Side of the kernel of a plain convolution.
        rep: The plan of a re-parameterised convolution.
        groups: Groups of the convolution.
        activation: Name of the activation.

    Returns:
        The module.
    """
    if rep is None:
        return ConvBnAct(channels, width, kernel, groups=groups, activation=activation)
    return RepConv(channels, width, identity=rep.identity, groups=groups, activation=activation)


def _double(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _conv_bn(channels: int, width: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, make_norm(width))
