"""The interface of detection heads, and the anchor-based head of YOLOv7 with implicit knowledge and its decoding."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from yolov7.nn.blocks import ConvBnAct
from yolov7.spec.block_schema import DetectRow
from yolov7.spec.row import MapShape
from yolov7.structures import HeadMaps
from yolov7.system.shapes import Float

MAX_SIDE = 65_504.0
"""The longest side of a box in pixels that a head with exponential sides returns: the largest number of float16."""

_PRIOR_OBJECTS = 8.0  # assumed number of objects in an image of _PRIOR_SIDE pixels before training
_PRIOR_SIDE = 640.0
_PRIOR_CLASS = 0.6


class Head(nn.Module, ABC):
    """A detection head: maps of the graph in, raw maps out, and raw maps to predictions.

    Attributes:
        anchors_px: Width and height of the anchors (levels, anchors, 2) in pixels; (levels, 0, 2) without anchors.
        strides: Stride of each level in pixels, finest first.
        num_anchors: Number of predictions per cell.
        num_box_outputs: Outputs of a prediction before those of the classes in tensors that have class outputs.
        by_class: Beginnings of the names of the tensors that have class outputs.
    """

    anchors_px: Tensor
    strides: tuple[int, ...]
    num_anchors: int
    num_box_outputs: ClassVar[int]
    by_class: ClassVar[tuple[str, ...]]

    def __init__(self, levels: Sequence[MapShape], anchors: Sequence[Sequence[float]]) -> None:
        """Keep the strides and the anchors of the levels.

        Args:
            levels: Shapes of the maps of the lead head.
            anchors: For each level, width and height of every anchor in pixels, in one flat list.
        """
        super().__init__()
        self.strides = tuple(level.stride for level in levels)
        self.num_anchors = len(anchors[0]) // 2 or 1
        # Anchors are on the CPU even if the model is built on the meta device, because they are no weights.
        anchors_px = torch.tensor(anchors, dtype=torch.float32, device="cpu").view(len(levels), len(anchors[0]) // 2, 2)
        self.register_buffer("anchors_px", anchors_px, persistent=False)

    def has_class_outputs(self, name: str) -> bool:
        """Return whether a tensor of the head has an output for every class.

        Args:
            name: The name of the tensor in the head, such as `convs.0.weight`.
        """
        return name.startswith(self.by_class)

    def by_anchor(self, name: str, tensor: Tensor) -> Tensor:
        """View a tensor that has class outputs by anchor and output.

        Args:
            name: The name of the tensor in the head, such as `convs.0.weight`.
            tensor: A weight (outputs, C, k, k), a bias (outputs,) or a scale (1, outputs, 1, 1).

        Returns:
            A view (anchors, outputs of an anchor, ...), in which `num_box_outputs` outputs precede those of the
            classes.
        """
        outputs = tensor if name.endswith((".weight", ".bias")) else tensor[0]
        return outputs.view(self.num_anchors, -1, *outputs.shape[1:])

    @abstractmethod
    def forward(self, *maps: Tensor) -> HeadMaps:
        """Compute the raw maps.

        Args:
            *maps: Maps (B, C, H, W) of the lead head, followed by those of the auxiliary head if it is wanted.

        Returns:
            Raw maps; see `HeadMaps`.
        """

    @abstractmethod
    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode raw maps.

        Args:
            maps: Raw maps of the lead head, finest level first.

        Returns:
            Predictions (B, boxes, 5 + classes): cx, cy, w, h in pixels of the input, and probabilities, in float32 at
            least. The objectness of a head that does not predict it is 1. If there is only one class, an anchor-free
            head multiplies the class probability into the objectness, because suppression takes the objectness for
            the score of an only class; the class probability is then 1.
        """


@final
class Detect(Head):
    """One 1x1 convolution per level, with optional implicit knowledge: im * (W (x + ia) + b) (section 4.3).

    The auxiliary head has an additional 3x3 convolution per level and no implicit knowledge.
    """

    num_box_outputs = 5
    by_class = ("convs.", "auxiliary_convs.", "im.")

    def __init__(
        self,
        row: DetectRow,
        levels: Sequence[MapShape],
        taps: Sequence[MapShape] = (),
        *,
        num_classes: int,
        activation: str = "silu",
    ) -> None:
        """Make the head.

        Args:
            row: The row of the head.
            levels: Shapes of the maps of the lead head.
            taps: Shapes of the maps of the auxiliary head; empty to build no auxiliary head.
            num_classes: Number of classes.
            activation: Name of the activation of the auxiliary head.
        """
        super().__init__(levels, row.anchors)
        self.scale_xy = row.scale_xy
        outputs = self.num_anchors * (5 + num_classes)
        widths = (row.auxiliary.out if row.auxiliary else None) or [level.channels for level in levels]
        assert len(taps) in (0, len(widths))
        stems = [ConvBnAct(tap.channels, widths[i], activation=activation) for i, tap in enumerate(taps)]
        self.auxiliary_stems = nn.ModuleList(stems)
        self.convs = nn.ModuleList(nn.Conv2d(level.channels, outputs, 1) for level in levels)
        self.auxiliary_convs = nn.ModuleList(nn.Conv2d(stem.conv.out_channels, outputs, 1) for stem in stems)
        implicit = levels if row.implicit else ()
        self.ia = nn.ParameterList(make_implicit(level.channels, mean=0.0) for level in implicit)
        self.im = nn.ParameterList(make_implicit(outputs, mean=1.0) for _ in implicit)
        for heads in (self.convs, self.auxiliary_convs):
            for conv, level in zip(heads, levels[: len(heads)], strict=True):
                self._init_bias(conv, level.stride, num_classes)

    def forward(self, *maps: Tensor) -> HeadMaps:
        """Compute the raw maps (B, anchors, H, W, 5 + classes); see `Head`."""
        levels = len(self.convs)
        lead = tuple(self._level(i, x) for i, x in enumerate(maps[:levels]))
        return HeadMaps(lead, tuple(self._auxiliary(i, x) for i, x in enumerate(maps[levels:])))

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode raw maps; see `Head`."""
        return decode_maps(maps, anchors_px=self.anchors_px, strides=self.strides, scale_xy=self.scale_xy)

    def _level(self, level: int, x: Tensor) -> Tensor:
        y: Tensor = self.convs[level](x + self.ia[level]) * self.im[level] if len(self.ia) else self.convs[level](x)
        return self._split(y)

    def _auxiliary(self, level: int, x: Tensor) -> Tensor:
        return self._split(self.auxiliary_convs[level](self.auxiliary_stems[level](x)))

    def _split(self, y: Tensor) -> Tensor:
        batch, outputs, height, width = y.shape  # B, anchors * (5 + classes), H, W
        split = y.reshape(batch, self.num_anchors, outputs // self.num_anchors, height, width)
        return split.permute(0, 1, 3, 4, 2).contiguous()

    @torch.no_grad()
    def _init_bias(self, conv: nn.Module, stride: int, num_classes: int) -> None:
        """Start objectness and classes near their frequencies, so that the first steps need not learn these."""
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        bias = conv.bias.view(self.num_anchors, -1)
        bias[:, 4] += math.log(_PRIOR_OBJECTS / (_PRIOR_SIDE / stride) ** 2)
        bias[:, 5:] += math.log(_PRIOR_CLASS / (num_classes - 0.99))


def decode_maps(
    maps: Sequence[Float[Tensor, "batch anchors _ _ outputs"]],
    *,
    anchors_px: Float[Tensor, "levels anchors 2"],
    strides: Sequence[int],
    scale_xy: Sequence[float] | None = None,
) -> Float[Tensor, "batch boxes outputs"]:
    """Decode raw maps.

    Args:
        maps: Raw maps (B, anchors, H, W, 5 + classes), finest level first.
        anchors_px: Width and height of the anchors (levels, anchors, 2) in pixels.
        strides: Stride of each level in pixels.
        scale_xy: Factors of the decoding of darknet's YOLOv4, one per level; None for the decoding of YOLOv7.

    Returns:
        Predictions (B, boxes, 5 + classes): cx, cy, w, h in pixels of the input, and probabilities, in float32 at
        least. Boxes are ordered by level, anchor, row and column.
    """
    scales: Sequence[float | None] = scale_xy or (None,) * len(strides)
    levels = zip(maps, anchors_px, strides, scales, strict=True)
    return torch.cat([_decode_level(raw, anchors, stride, scale) for raw, anchors, stride, scale in levels], dim=1)


def _decode_level(raw: Tensor, anchors: Tensor, stride: int, scale: float | None) -> Tensor:
    batch, num_anchors, height, width, outputs = raw.shape
    x = raw.to(torch.promote_types(raw.dtype, torch.float32))  # half precision cannot represent the grid exactly
    s = x.sigmoid()
    sides = anchors.to(s).view(1, num_anchors, 1, 1, 2)
    if scale is None:
        xy = (2.0 * s[..., :2] - 0.5 + cell_corners(s)) * stride
        wh = (2.0 * s[..., 2:4]) ** 2 * sides
    else:
        xy = (scale * (s[..., :2] - 0.5) + 0.5 + cell_corners(s)) * stride
        wh = (x[..., 2:4].exp() * sides).clamp(max=MAX_SIDE)
    return torch.cat([xy, wh, s[..., 4:]], dim=-1).view(batch, num_anchors * height * width, outputs)


def cell_corners(map_of_level: Float[Tensor, "batch anchors height width _"]) -> Float[Tensor, "height width 2"]:
    """Return the column and row of each cell of a level.

    Args:
        map_of_level: A map (B, anchors, H, W, outputs) of the level, which determines size, type and device.

    Returns:
        Column and row (H, W, 2): x and y of the upper left corner of the cell in units of the stride.
    """
    height, width = map_of_level.shape[2:4]
    rows = torch.arange(height, device=map_of_level.device, dtype=map_of_level.dtype)
    columns = torch.arange(width, device=map_of_level.device, dtype=map_of_level.dtype)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)


def make_implicit(width: int, *, mean: float) -> nn.Parameter:
    """Return a vector of implicit knowledge (section 4.3).

    Args:
        width: Number of channels.
        mean: 0 for a vector that is added, 1 for one that multiplies.

    Returns:
        The vector (1, width, 1, 1).
    """
    # Random numbers are drawn on the CPU, because on the meta device this first imports modules for seconds.
    drawn = mean + 0.02 * torch.randn(1, width, 1, 1, device="cpu")
    return nn.Parameter(drawn.to(torch.get_default_device()))
