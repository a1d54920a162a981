"""Anchor-free heads, with one prediction per cell: those of YOLOX, PP-YOLOE and YOLOv7-u6.

PP-YOLOE and YOLOv7-u6 predict each side of a box as a distribution over bins, whose mean is the distance between the
centre of the cell and the side (Li et al., 2020, "Generalized Focal Loss").
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from yolov7.nn.blocks import ConvBnAct
from yolov7.nn.heads import MAX_SIDE, Head, cell_corners, make_implicit
from yolov7.spec.head_rows import DflHeadRow, OneToOneHeadRow, PpyoloeHeadRow, YoloxHeadRow
from yolov7.spec.row import MapShape
from yolov7.structures import HeadMaps
from yolov7.system.shapes import Float

_PRIOR = 0.01  # probability of an object before training
_PRIOR_OBJECTS = 5.0  # assumed number of objects of an image of _PRIOR_SIDE pixels before training
_PRIOR_SIDE = 640.0


class _CellHead(Head):
    """A head with one prediction per cell."""

    num_box_outputs = 0
    by_class = ("class_convs.", "im_class.")

    def __init__(self, levels: Sequence[MapShape]) -> None:
        super().__init__(levels, [()] * len(levels))

    def forward(self, *maps: Tensor) -> HeadMaps:
        """Compute the raw maps (B, 1, H, W, outputs); see `Head`."""
        return HeadMaps(tuple(self._level(i, x) for i, x in enumerate(maps)))

    @abstractmethod
    def _level(self, level: int, x: Tensor) -> Tensor:
        """Compute the raw map of a level."""


class _DistributionHead(_CellHead):
    """A head that predicts each side of a box as a distribution over bins: (B, 1, H, W, 4 bins + classes)."""

    def __init__(self, levels: Sequence[MapShape], *, bins: int) -> None:
        super().__init__(levels)
        self.bins = bins

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode raw maps; see `Head`."""
        return _decode_distances(maps, self.strides, bins=self.bins)


@final
class YoloxHead(_CellHead):
    """The decoupled head of YOLOX: on each level a stem, then one tower for classes and one for box and objectness."""

    def __init__(self, row: YoloxHeadRow, levels: Sequence[MapShape], *, num_classes: int, activation: str) -> None:
        """Make the head.

        Args:
            row: The row of the head.
            levels: Shapes of the maps.
            num_classes: Number of classes.
            activation: Name of the activation.
        """
        super().__init__(levels)
        hidden = row.hidden
        self.stems = nn.ModuleList(ConvBnAct(level.channels, hidden, 1, activation=activation) for level in levels)
        self.class_towers = nn.ModuleList(_tower(hidden, hidden, activation=activation) for _ in levels)
        self.box_towers = nn.ModuleList(_tower(hidden, hidden, activation=activation) for _ in levels)
        self.class_convs = nn.ModuleList(nn.Conv2d(hidden, num_classes, 1) for _ in levels)
        self.box_convs = nn.ModuleList(nn.Conv2d(hidden, 4, 1) for _ in levels)
        self.objectness_convs = nn.ModuleList(nn.Conv2d(hidden, 1, 1) for _ in levels)
        for conv in (*self.class_convs, *self.objectness_convs):
            _set_bias(conv, _logit(_PRIOR))

    def _level(self, level: int, x: Tensor) -> Tensor:
        stem = self.stems[level](x)
        box, classes = self.box_towers[level](stem), self.class_towers[level](stem)
        return _join(self.box_convs[level](box), self.objectness_convs[level](box), self.class_convs[level](classes))

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode raw maps; see `Head`."""
        return torch.cat([_decode_yolox(raw, stride) for raw, stride in zip(maps, self.strides, strict=True)], dim=1)


@final
class PpyoloeHead(_DistributionHead):
    """The head of PP-YOLOE: channel attention for classes, which is added to the map, and for sides of boxes."""

    def __init__(self, row: PpyoloeHeadRow, levels: Sequence[MapShape], *, num_classes: int, activation: str) -> None:
        """Make the head.

        Args:
            row: The row of the head.
            levels: Shapes of the maps.
            num_classes: Number of classes.
            activation: Name of the activation.
        """
        super().__init__(levels, bins=row.bins)
        widths = [level.channels for level in levels]
        self.class_attentions = nn.ModuleList(_Attention(width, activation=activation) for width in widths)
        self.box_attentions = nn.ModuleList(_Attention(width, activation=activation) for width in widths)
        self.class_convs = nn.ModuleList(nn.Conv2d(width, num_classes, 3, padding=1) for width in widths)
        self.box_convs = nn.ModuleList(nn.Conv2d(width, 4 * row.bins, 3, padding=1) for width in widths)
        for convs, bias in ((self.class_convs, _logit(_PRIOR)), (self.box_convs, 1.0)):
            for conv in convs:
                nn.init.zeros_(conv.weight)  # type: ignore[arg-type]
                _set_bias(conv, bias)

    def _level(self, level: int, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        classes = self.class_attentions[level](x, mean) + x
        return _join(self.box_convs[level](self.box_attentions[level](x, mean)), self.class_convs[level](classes))


@final
class DflHead(_DistributionHead):
    """The head of YOLOv7-u6: a tower for sides and one for classes, with optional implicit knowledge in both.

    A branch computes im * (W tower(x + ia) + b).
    """

    def __init__(self, row: DflHeadRow, levels: Sequence[MapShape], *, num_classes: int, activation: str) -> None:
        """Make the head.

        Args:
            row: The row of the head.
            levels: Shapes of the maps.
            num_classes: Number of classes.
            activation: Name of the activation.
        """
        super().__init__(levels, bins=row.bins)
        widths = [level.channels for level in levels]
        sides, classes = row.tower_widths(levels)
        self.box_towers = nn.ModuleList(_tower(width, sides, activation=activation) for width in widths)
        self.class_towers = nn.ModuleList(_tower(width, classes, activation=activation) for width in widths)
        self.box_convs = nn.ModuleList(nn.Conv2d(sides, 4 * row.bins, 1) for _ in widths)
        self.class_convs = nn.ModuleList(nn.Conv2d(classes, num_classes, 1) for _ in widths)
        implicit = widths if row.implicit else []
        self.ia_box = nn.ParameterList(make_implicit(width, mean=0.0) for width in implicit)
        self.ia_class = nn.ParameterList(make_implicit(width, mean=0.0) for width in implicit)
        self.im_box = nn.ParameterList(make_implicit(4 * row.bins, mean=1.0) for _ in implicit)
        self.im_class = nn.ParameterList(make_implicit(num_classes, mean=1.0) for _ in implicit)
        for box, class_conv, level in zip(self.box_convs, self.class_convs, levels, strict=True):
            _set_bias(box, 1.0)
            _set_bias(class_conv, math.log(_PRIOR_OBJECTS / num_classes / (_PRIOR_SIDE / level.stride) ** 2))

    def _level(self, level: int, x: Tensor) -> Tensor:
        x_box, x_class = (x + self.ia_box[level], x + self.ia_class[level]) if len(self.ia_box) else (x, x)
        box = self.box_convs[level](self.box_towers[level](x_box))
        classes = self.class_convs[level](self.class_towers[level](x_class))
        if len(self.im_box):
            box, classes = box * self.im_box[level], classes * self.im_class[level]
        return _join(box, classes)


@final
class OneToOneHead(Head):
    """Two branches of the form of `DflHead`: the lead one is deployed, the auxiliary one exists only in training.

    The maps below learn from the auxiliary branch only, because the gradient of the lead branch, which learns one cell
    of each object, disturbs them (YOLOv10, section 3.1).
    """

    num_box_outputs = 0
    by_class = tuple(f"{branch}.{name}" for branch in ("lead", "auxiliary_branch") for name in DflHead.by_class)

    def __init__(
        self,
        row: OneToOneHeadRow,
        levels: Sequence[MapShape],
        taps: Sequence[MapShape],
        *,
        num_classes: int,
        activation: str,
    ) -> None:
        """Make the head.

        Args:
            row: The row of the head.
            levels: Shapes of the maps.
            taps: The same shapes again; empty to build no auxiliary branch.
            num_classes: Number of classes.
            activation: Name of the activation.
        """
        super().__init__(levels, [()] * len(levels))
        self.lead = DflHead(row.branch, levels, num_classes=num_classes, activation=activation)
        self.auxiliary_branch = (
            DflHead(row.branch, taps, num_classes=num_classes, activation=activation) if taps else None
        )

    def forward(self, *maps: Tensor) -> HeadMaps:
        """Compute the raw maps (B, 1, H, W, outputs) of the branches; see `Head`."""
        own, again = maps[: len(self.strides)], maps[len(self.strides) :]
        if self.auxiliary_branch is None or not again:
            return HeadMaps(self.lead(*own).lead)
        return HeadMaps(self.lead(*(x.detach() for x in own)).lead, self.auxiliary_branch(*again).lead)

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode raw maps; see `Head`."""
        return self.lead.decode(maps)


@final
class _Attention(nn.Module):
    """Channel attention of PP-YOLOE: conv(x * sigmoid(W mean(x) + b))."""

    def __init__(self, width: int, *, activation: str) -> None:
        super().__init__()
        self.gate = nn.Conv2d(width, width, 1)
        self.conv = ConvBnAct(width, width, 1, activation=activation)
        # Random numbers are drawn on the CPU, because on the meta device this first imports modules for seconds.
        drawn = 0.001 * torch.randn(self.gate.weight.shape, device="cpu")
        self.gate.weight = nn.Parameter(drawn.to(self.gate.weight.device))
        _set_bias(self.gate, 0.0)

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        y: Tensor = self.conv(x * self.gate(mean).sigmoid())
        return y


def decode_bins(logits: Float[Tensor, "*n sides bins"]) -> Float[Tensor, "*n sides"]:
    """Return the mean of distributions over bins.

    Args:
        logits: Logits of the bins 0, 1, 2, ... on the last axis.

    Returns:
        Means in units of a bin, in the type of the logits.
    """
    bins = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return logits.softmax(dim=-1) @ bins


def _decode_distances(maps: Sequence[Tensor], strides: Sequence[int], *, bins: int) -> Tensor:
    decoded = []
    for raw, stride in zip(maps, strides, strict=True):
        batch, _, height, width, outputs = raw.shape
        x = raw.to(torch.promote_types(raw.dtype, torch.float32))  # half precision cannot represent the grid exactly
        distances = decode_bins(x[..., : 4 * bins].reshape(batch, 1, height, width, 4, bins))
        before, behind = distances[..., :2], distances[..., 2:]  # left and top, right and bottom
        xy = (cell_corners(x) + 0.5 + (behind - before) / 2) * stride
        scores = _scores(torch.ones_like(xy[..., :1]), x[..., 4 * bins :].sigmoid())
        rows = torch.cat([xy, (before + behind) * stride, scores], dim=-1)
        decoded.append(rows.view(batch, height * width, 5 + outputs - 4 * bins))
    return torch.cat(decoded, dim=1)


def _decode_yolox(raw: Tensor, stride: int) -> Tensor:
    batch, _, height, width, outputs = raw.shape
    x = raw.to(torch.promote_types(raw.dtype, torch.float32))  # half precision cannot represent the grid exactly
    xy = (x[..., :2] + cell_corners(x)) * stride
    wh = x[..., 2:4].clamp(max=math.log(MAX_SIDE / stride)).exp() * stride
    scores = _scores(x[..., 4:5].sigmoid(), x[..., 5:].sigmoid())
    return torch.cat([xy, wh, scores], dim=-1).view(batch, height * width, outputs)


def _scores(objectness: Tensor, classes: Tensor) -> Tensor:
    """Join objectness and class probabilities. An only class is multiplied into the objectness, which is its score."""
    if classes.shape[-1] == 1:
        return torch.cat([objectness * classes, torch.ones_like(classes)], dim=-1)
    return torch.cat([objectness, classes], dim=-1)


def _tower(channels: int, width: int, *, activation: str) -> nn.Sequential:
    return nn.Sequential(
        ConvBnAct(channels, width, 3, activation=activation), ConvBnAct(width, width, 3, activation=activation)
    )


def _join(*outputs: Tensor) -> Tensor:
    """Join outputs (B, C, H, W) to a raw map (B, 1, H, W, outputs)."""
    return torch.cat(outputs, dim=1).permute(0, 2, 3, 1)[:, None].contiguous()


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


@torch.no_grad()
def _set_bias(conv: nn.Module, value: float) -> None:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    conv.bias.fill_(value)
