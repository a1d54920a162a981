"""Efficient layer aggregation (ELAN), and its extension E-ELAN side by side or grouped (section 3.1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import final

import torch
from torch import Tensor, nn

from yolov7.nn.blocks import ConvBnAct, make_conv
from yolov7.spec.block_schema import ElanRow
from yolov7.spec.row import MapShape


@final
class Elan(nn.Module):
    """Two 1x1 convolutions, a chain of 3x3 behind the second, cat[last, ..., first, b, a], 1x1: B C H W -> B out H W.

    With several groups, this is the grouped form of E-ELAN: every convolution behind the first two is a group
    convolution, the maps are shuffled so that those of each group are together, and the groups are added at the end.
    """

    def __init__(self, row: ElanRow, inputs: Sequence[MapShape], *, groups: int = 1, activation: str) -> None:
        """Make the block of a row, with as many groups in each convolution."""
        super().__init__()
        channels, hidden, inner = inputs[0].channels, groups * row.hidden, groups * row.inner
        self.every, self.groups = row.every, groups
        self.a = ConvBnAct(channels, hidden, 1, activation=activation)
        self.b = ConvBnAct(channels, hidden, 1, activation=activation)
        planned = {conv.position: conv for conv in row.planned_rep_convs(inputs, feeds="")}
        self.chain = nn.ModuleList(
            make_conv(inner if i > 1 else hidden, inner, 3, rep=planned.get(i), groups=groups, activation=activation)
            for i in range(1, row.num_convs + 1)
        )
        taken = 2 * hidden + row.num_convs // row.every * inner
        self.merge = ConvBnAct(taken, groups * row.out, 1, groups=groups, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, out, H, W)."""
        return self._run(x) if self.groups == 1 else add(self.branches(x))

    def branches(self, x: Tensor) -> Sequence[Tensor]:
        """Return the maps of the groups before they are added.

        Args:
            x: Map (B, C, H, W).

        Returns:
            One map (B, out, H, W) per group.
        """
        return self._run(x).chunk(self.groups, dim=1)

    def _run(self, x: Tensor) -> Tensor:
        y = self.b(x)
        taken = [self.a(x), y]
        for i, conv in enumerate(self.chain, start=1):
            y = conv(y)
            if i % self.every == 0:
                taken.append(y)
        merged: Tensor = self.merge(shuffle(taken[::-1], groups=self.groups))
        return merged


@final
class EElan(nn.Module):
    """E-ELAN as in the released models: the sum of independent ELANs of one form, side by side."""

    def __init__(self, row: ElanRow, inputs: Sequence[MapShape], *, activation: str) -> None:
        """Make `row.cardinality` ELANs."""
        super().__init__()
        self.elans = nn.ModuleList(Elan(row, inputs, activation=activation) for _ in range(row.cardinality))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, out, H, W)."""
        return add(self.branches(x))

    def branches(self, x: Tensor) -> Sequence[Tensor]:
        """Return the maps of the ELANs before they are added.

        Args:
            x: Map (B, C, H, W).

        Returns:
            One map (B, out, H, W) per ELAN.
        """
        return [elan(x) for elan in self.elans]


def make_elan(row: ElanRow, inputs: Sequence[MapShape], *, activation: str) -> Elan | EElan:
    """Make the module of a row in the form that the row names.

    Args:
        row: The row.
        inputs: Shapes of the maps of its sources.
        activation: Name of the activation.

    Returns:
        The module.
    """
    if row.cardinality > 1 and not row.grouped:
        return EElan(row, inputs, activation=activation)
    return Elan(row, inputs, groups=row.cardinality, activation=activation)


def add(maps: Sequence[Tensor]) -> Tensor:
    """Add maps.

    Args:
        maps: Maps of equal shape.

    Returns:
        Their sum.
    """
    return reduce(torch.add, maps)


def shuffle(maps: Sequence[Tensor], *, groups: int) -> Tensor:
    """Concatenate maps group by group: the first group of every map, then the second group of every map, and so on.

    Args:
        maps: Maps (B, C, H, W); their channels are multiples of `groups`.
        groups: Number of groups.

    Returns:
        The concatenation (B, sum of C, H, W).
    """
    if groups == 1:
        return torch.cat(list(maps), dim=1)
    return torch.cat([y.view(len(y), groups, -1, *y.shape[2:]) for y in maps], dim=2).flatten(1, 2)
