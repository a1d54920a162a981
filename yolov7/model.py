"""The detection model: a spec's rows as modules, run in one loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from yolov7.blocks import ConvTransition, Elan, MaxPool, MpTransition, RepConv, Sppcspc, SppTiny, UpTransition
from yolov7.errors import SpecError
from yolov7.graph import (
    IMAGE,
    ConvRow,
    DetectRow,
    ElanRow,
    MaxPoolRow,
    ModelSpec,
    MpRow,
    RepConvRow,
    Row,
    Shape,
    SppRow,
    UpRow,
    infer_shapes,
    is_concatenated,
    own_width,
)
from yolov7.heads import Detect, decode_maps
from yolov7.structures import HeadMaps


class _Step(NamedTuple):
    """One turn of the loop: a row, the maps it takes, and those that no later row needs."""

    name: str
    sources: tuple[str, ...]
    done: tuple[str, ...]


@final
class DetectionModel(nn.Module):
    """The model of a spec. `strides` in pixels, `anchors_px` (levels, anchors, 2) in pixels, both finest level first.

    `fused` tells whether it is a training graph or what `reparam.fuse` made of it.
    """

    anchors_px: Tensor

    def __init__(self, spec: ModelSpec, *, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise SpecError(f"num_classes={num_classes} of spec {spec.name!r} must be at least 1")
        shapes = infer_shapes(spec)
        levels = [shapes[source] for source in spec.head.sources]
        self.spec = spec
        self.num_classes = num_classes
        self.fused = False
        self.strides = tuple(level.stride for level in levels)
        self.rows = nn.ModuleDict(_build_rows(spec, shapes))
        self.head = Detect.from_row(
            spec.head, [level.channels for level in levels], self.strides, num_classes=num_classes
        )
        # on the CPU even while the model is built on the meta device: they are the spec's, not weights
        anchors = torch.tensor(spec.head.anchors, dtype=torch.float32, device="cpu").view(len(levels), -1, 2)
        self.register_buffer("anchors_px", anchors, persistent=False)
        self._steps = _plan(spec)

    def forward(self, images: Tensor) -> HeadMaps:
        """Images (B, 3, H, W) in 0..1, sides multiples of the largest stride -> raw maps; the same in either mode."""
        maps = {IMAGE: images}
        for step in self._steps:
            inputs = [maps[source] for source in step.sources]
            for name in step.done:
                del maps[name]
            maps[step.name] = self.rows[step.name](*inputs)
        heads: HeadMaps = self.head(*(maps[source] for source in self.spec.head.sources))
        return heads

    def decode(self, maps: HeadMaps) -> Tensor:
        """Raw maps -> (B, N, 5 + classes): cx, cy, w, h in input pixels, then probabilities."""
        return decode_maps(maps.lead, anchors_px=self.anchors_px, strides=self.strides)


def _build_rows(spec: ModelSpec, shapes: dict[str, Shape]) -> dict[str, nn.Module]:
    rows: dict[str, nn.Module] = {}
    for name, row in spec.rows.items():
        if hasattr(nn.ModuleDict, name):
            raise SpecError(f"{name}: torch needs this name for itself; choose another one for the row")
        if not isinstance(row, DetectRow):
            inputs = [shapes[source] for source in row.sources]
            in_sum = is_concatenated(spec, name)
            rows[name] = build_row(row, inputs, activation=spec.activation, is_concatenated=in_sum)
    return rows


def build_row(row: Row, inputs: Sequence[Shape], *, activation: str, is_concatenated: bool = False) -> nn.Module:
    """The module of a row other than the head, for sources of these shapes.

    `is_concatenated`: its output goes into a concatenation or addition, where a RepConv must have no identity branch.
    """
    channels = inputs[0].channels
    match row:
        case ConvRow():
            width = own_width(row, out=row.out, inputs=inputs)
            return ConvTransition(channels, width, row.kernel, row.stride, activation=activation)
        case MaxPoolRow():
            return MaxPool()
        case MpRow():
            width = own_width(row, out=row.out, inputs=inputs) // row.num_parts
            return MpTransition(channels, width, activation=activation)
        case UpRow():
            return UpTransition(channels, inputs[1].channels, row.out // row.num_parts, activation=activation)
        case ElanRow():
            return Elan.from_row(row, channels, activation=activation)
        case SppRow():
            spp = Sppcspc if row.block == "sppcspc" else SppTiny
            return spp(channels, row.out, activation=activation)
        case RepConvRow():
            identity = channels == row.out and row.stride == 1 and not is_concatenated
            return RepConv(channels, row.out, row.stride, identity=identity, activation=activation)
        case DetectRow():
            raise AssertionError("the head is built by the model")


def _plan(spec: ModelSpec) -> tuple[_Step, ...]:
    last_use = {source: name for name, row in spec.rows.items() for source in row.sources}
    return tuple(
        _Step(name, row.sources, tuple(source for source in dict.fromkeys(row.sources) if last_use[source] == name))
        for name, row in spec.rows.items()
        if name != spec.head_name
    )
