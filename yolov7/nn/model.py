"""The detection model: a spec's rows as modules, run in one loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from yolov7.errors import SpecError
from yolov7.nn.blocks import (
    Bottlenecks,
    ConvTransition,
    Csp,
    DownC,
    MaxPool,
    MpTransition,
    Reorg,
    RepConv,
    Spp,
    Sppcspc,
    SppTiny,
    Upsample,
    UpTransition,
)
from yolov7.nn.elan import EElan, Elan, add, make_elan
from yolov7.nn.heads import Detect, decode_maps
from yolov7.spec.block_schema import (
    BottleneckRow,
    ConvRow,
    CspRow,
    DetectRow,
    DownRow,
    ElanRow,
    MaxPoolRow,
    ReorgRow,
    RepConvRow,
    Row,
    SppRow,
    UpRow,
    UpsampleRow,
)
from yolov7.spec.graph import IMAGE, ModelSpec, find_destination, infer_shapes, row_of
from yolov7.spec.row import MapShape, own_width
from yolov7.structures import HeadMaps


class _Step(NamedTuple):
    """One turn of the loop: a row, the maps it takes, and those that no later row needs.

    `branches`: the names of its branches that are taken before it adds them up.
    """

    name: str
    sources: tuple[str, ...]
    done: tuple[str, ...]
    branches: tuple[str, ...]


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
        levels, taps = ([shapes[source] for source in part] for part in (spec.head.sources, spec.head.taps))
        self.spec = spec
        self.num_classes = num_classes
        self.fused = False
        self.strides = tuple(level.stride for level in levels)
        self.rows = nn.ModuleDict(_build_rows(spec, shapes))
        self.head = Detect(spec.head, levels, taps, num_classes=num_classes, activation=spec.activation)
        # on the CPU even while the model is built on the meta device: they are the spec's, not weights
        anchors = torch.tensor(spec.head.anchors, dtype=torch.float32, device="cpu").view(len(levels), -1, 2)
        self.register_buffer("anchors_px", anchors, persistent=False)
        self._lead_steps = _plan(spec, wanted=spec.head.sources)
        self._all_steps = _plan(spec, wanted=spec.head.all_sources)

    def forward(self, images: Tensor, *, auxiliary: bool = False) -> HeadMaps:
        """Images (B, 3, H, W) in 0..1, sides multiples of the largest stride -> raw maps.

        The auxiliary head's maps are computed in training mode, otherwise only if they are asked for.
        """
        everything = auxiliary or self.training
        maps = {IMAGE: images}
        for step in self._all_steps if everything else self._lead_steps:
            inputs = [maps[source] for source in step.sources]
            for name in step.done:
                del maps[name]
            self._run(step, inputs, maps)
        wanted = self.spec.head.all_sources if everything else self.spec.head.sources
        heads: HeadMaps = self.head(*(maps[source] for source in wanted))
        return heads

    def _run(self, step: _Step, inputs: Sequence[Tensor], maps: dict[str, Tensor]) -> None:
        """Adds the row's map, and those of its branches that are wanted alone."""
        row = self.rows[step.name]
        if not step.branches:
            maps[step.name] = row(*inputs)
            return
        assert isinstance(row, Elan | EElan)
        branches = row.branches(*inputs)
        maps |= {name: branches[_branch_index(name)] for name in step.branches}
        maps[step.name] = add(branches)

    def decode(self, maps: HeadMaps) -> Tensor:
        """Raw maps -> (B, N, 5 + classes): cx, cy, w, h in input pixels, then probabilities."""
        return decode_maps(maps.lead, anchors_px=self.anchors_px, strides=self.strides)


def _build_rows(spec: ModelSpec, shapes: dict[str, MapShape]) -> dict[str, nn.Module]:
    rows: dict[str, nn.Module] = {}
    for name, row in spec.rows.items():
        if hasattr(nn.ModuleDict, name):
            raise SpecError(f"{name}: torch needs this name for itself; choose another one for the row")
        if not isinstance(row, DetectRow):
            inputs = [shapes[source] for source in row.sources]
            feeds = find_destination(spec, name, shapes=shapes)
            rows[name] = build_row(row, inputs, activation=spec.activation, feeds=feeds)
    return rows


def build_row(row: Row, inputs: Sequence[MapShape], *, activation: str, feeds: str = "") -> nn.Module:
    """Build the module of a row other than the head.

    Args:
        row: The row.
        inputs: Shapes of the maps of its sources.
        activation: Name of the activation.
        feeds: The concatenation or addition that the output enters unchanged; a RepConv then has no identity branch.

    Returns:
        The module.
    """
    channels = inputs[0].channels
    match row:
        case MaxPoolRow():
            return MaxPool()
        case ReorgRow():
            return Reorg()
        case ConvRow() | DownRow() | UpRow() | UpsampleRow():
            return _build_transition(row, inputs, activation=activation)
        case ElanRow():
            return make_elan(row, inputs, activation=activation)
        case CspRow():
            return Csp(row, inputs, activation=activation)
        case BottleneckRow():
            return Bottlenecks(row, channels, activation=activation)
        case SppRow():
            spp = {"sppcspc": Sppcspc, "spp_tiny": SppTiny, "spp": Spp}[row.block]
            return spp(channels, row.out, activation=activation)
        case RepConvRow():
            (planned,) = row.planned_rep_convs(inputs, feeds=feeds)
            return RepConv(channels, row.out, row.stride, identity=planned.identity, activation=activation)
        case DetectRow():
            raise AssertionError("the head is built by the model")


def _build_transition(
    row: ConvRow | DownRow | UpRow | UpsampleRow, inputs: Sequence[MapShape], *, activation: str
) -> nn.Module:
    channels = inputs[0].channels
    width = own_width(row, out=row.out, inputs=inputs) // row.num_parts
    match row:
        case ConvRow():
            return ConvTransition(channels, width, row.kernel, row.stride, activation=activation)
        case DownRow():
            down = MpTransition if row.block == "mp" else DownC
            return down(channels, width, activation=activation)
        case UpRow():
            return UpTransition(channels, inputs[1].channels, width, activation=activation)
        case UpsampleRow():
            return Upsample(channels, width, activation=activation)


def _plan(spec: ModelSpec, *, wanted: Sequence[str]) -> tuple[_Step, ...]:
    """The loop's turns that lead to the wanted maps; a map is dropped with its last use."""
    users = {name: row.sources for name, row in spec.rows.items()} | {spec.head_name: tuple(wanted)}
    last_use = {source: name for name, sources in users.items() for source in sources}
    return tuple(
        _Step(
            name=name,
            sources=sources,
            done=tuple(source for source in dict.fromkeys(sources) if last_use[source] == name),
            branches=tuple(source for source in last_use if source != name and row_of(source) == name),
        )
        for name, sources in users.items()
        if name != spec.head_name
    )


def _branch_index(name: str) -> int:
    return int(name.partition(".")[2]) - 1
