"""The detection model: the rows of a specification as modules, which one loop runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

from torch import Tensor, nn

from yolov7.errors import SpecError
from yolov7.nn.anchor_free_heads import DflHead, OneToOneHead, PpyoloeHead, YoloxHead
from yolov7.nn.blocks import (
    Bottlenecks,
    Concat,
    ConvTransition,
    Csp,
    Double,
    DownC,
    MaxPool,
    MpTransition,
    Reorg,
    RepConv,
    Upsample,
    UpTransition,
)
from yolov7.nn.csp_blocks import CspRep, CspTiny
from yolov7.nn.elan import EElan, Elan, add, make_elan
from yolov7.nn.heads import Detect, Head
from yolov7.nn.plugin_blocks import build_plugin
from yolov7.nn.pooling import Spp, Sppcspc, SppTiny
from yolov7.spec.block_schema import (
    BottleneckRow,
    ConcatRow,
    ConvRow,
    CspRepRow,
    CspRow,
    CspTinyRow,
    DetectRow,
    DflHeadRow,
    DoubleRow,
    DownRow,
    ElanRow,
    HeadRow,
    MaxPoolRow,
    OneToOneHeadRow,
    PluginRow,
    PpyoloeHeadRow,
    ReorgRow,
    RepConvRow,
    Row,
    SppRow,
    UpRow,
    UpsampleRow,
    YoloxHeadRow,
)
from yolov7.spec.graph import IMAGE, ModelSpec, find_destination, infer_shapes, row_of
from yolov7.spec.row import MapShape, own_width
from yolov7.structures import HeadMaps

_WITHOUT_WEIGHTS: dict[str, type[nn.Module]] = {
    "maxpool": MaxPool,
    "reorg": Reorg,
    "double": Double,
    "concat": Concat,
}


class _Step(NamedTuple):
    """One iteration of the loop: a row, the maps that it takes, and the maps that no later row needs.

    `branches` are the names of its branches that other rows take before it adds them.
    """

    name: str
    sources: tuple[str, ...]
    done: tuple[str, ...]
    branches: tuple[str, ...]


@final
class DetectionModel(nn.Module):
    """The model of a specification.

    Attributes:
        spec: The specification.
        num_classes: Number of classes.
        fused: Whether `fuse` made it; otherwise it is a training graph.
        rows: The modules of the rows by name.
        head: The detection head.
    """

    def __init__(self, spec: ModelSpec, *, num_classes: int) -> None:
        """Build the model with random weights.

        Args:
            spec: The specification.
            num_classes: Number of classes, at least 1.

        Raises:
            SpecError: If the number of classes, the name of a row or a block of the user cannot be used.
            SettingError: If a block of the user may not be imported, or cannot be.
        """
        super().__init__()
        if num_classes < 1:
            raise SpecError(f"num_classes={num_classes} of spec {spec.name!r} must be at least 1")
        shapes = infer_shapes(spec)
        levels, taps = ([shapes[source] for source in part] for part in (spec.head.sources, spec.head.taps))
        self.spec = spec
        self.num_classes = num_classes
        self.fused = False
        self.rows = nn.ModuleDict(_build_rows(spec, shapes))
        self.head = build_head(spec.head, levels, taps, num_classes=num_classes, activation=spec.activation)
        self._set_norms()
        self._lead_steps = _plan(spec, wanted=spec.head.sources)
        self._all_steps = _plan(spec, wanted=spec.head.all_sources)

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each level in pixels, finest first."""
        return self.head.strides

    @property
    def anchors_px(self) -> Tensor:
        """Width and height of the anchors (levels, anchors, 2) in pixels; (levels, 0, 2) if the head has no anchors."""
        return self.head.anchors_px

    @anchors_px.setter
    def anchors_px(self, anchors_px: Tensor) -> None:
        self.head.anchors_px = anchors_px

    def _set_norms(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = self.spec.norm_eps, self.spec.norm_momentum

    def forward(self, images: Tensor, *, auxiliary: bool = False) -> HeadMaps:
        """Compute the raw maps of the heads.

        Args:
            images: Images (B, 3, H, W) in 0..1; their sides are multiples of the largest stride.
            auxiliary: Whether to compute the maps of the auxiliary head outside of training mode too.

        Returns:
            Raw maps of each level; see `HeadMaps`.
        """
        heads: HeadMaps = self.head(*self.head_inputs(images, auxiliary=auxiliary))
        return heads

    def head_inputs(self, images: Tensor, *, auxiliary: bool = False) -> tuple[Tensor, ...]:
        """Compute the maps that enter the head.

        Args:
            images: See `forward`.
            auxiliary: See `forward`.

        Returns:
            Maps (B, C, H, W) of each level of the lead head, finest first, and then those of the auxiliary head.
        """
        everything = auxiliary or self.training
        maps = {IMAGE: images}
        for step in self._all_steps if everything else self._lead_steps:
            inputs = [maps[source] for source in step.sources]
            for name in step.done:
                del maps[name]
            self._run(step, inputs, maps)
        wanted = self.spec.head.all_sources if everything else self.spec.head.sources
        return tuple(maps[source] for source in wanted)

    def _run(self, step: _Step, inputs: Sequence[Tensor], maps: dict[str, Tensor]) -> None:
        """Add the map of the row, and the maps of its branches that other rows take."""
        row = self.rows[step.name]
        if not step.branches:
            maps[step.name] = row(*inputs)
            return
        assert isinstance(row, Elan | EElan)
        branches = row.branches(*inputs)
        maps |= {name: branches[_branch_index(name)] for name in step.branches}
        maps[step.name] = add(branches)

    def decode(self, maps: HeadMaps) -> Tensor:
        """Decode the raw maps of the lead head.

        Args:
            maps: Raw maps.

        Returns:
            Predictions (B, boxes, 5 + classes): cx, cy, w, h in pixels of the input, and probabilities. The objectness
            of a head that does not predict it is 1.
        """
        return self.head.decode(maps.lead)


def build_head(
    row: HeadRow, levels: Sequence[MapShape], taps: Sequence[MapShape] = (), *, num_classes: int, activation: str
) -> Head:
    """Build the module of a detection head.

    Args:
        row: The row of the head.
        levels: Shapes of the maps of the lead head.
        taps: Shapes of the maps of the auxiliary head; empty to build no auxiliary head.
        num_classes: Number of classes.
        activation: Name of the activation if the row names none.

    Returns:
        The module.
    """
    activation = row.activation or activation
    match row:
        case DetectRow():
            return Detect(row, levels, taps, num_classes=num_classes, activation=activation)
        case YoloxHeadRow():
            return YoloxHead(row, levels, num_classes=num_classes, activation=activation)
        case PpyoloeHeadRow():
            return PpyoloeHead(row, levels, num_classes=num_classes, activation=activation)
        case DflHeadRow():
            return DflHead(row, levels, num_classes=num_classes, activation=activation)
        case OneToOneHeadRow():
            return OneToOneHead(row, levels, taps, num_classes=num_classes, activation=activation)
        case _:
            raise AssertionError(f"{row.block} has no module")


def _build_rows(spec: ModelSpec, shapes: dict[str, MapShape]) -> dict[str, nn.Module]:
    rows: dict[str, nn.Module] = {}
    for name, row in spec.rows.items():
        if hasattr(nn.ModuleDict, name):
            raise SpecError(f"{name}: this name is reserved by torch; rename the row")
        if not isinstance(row, HeadRow):
            inputs = [shapes[source] for source in row.sources]
            feeds = find_destination(spec, name, shapes=shapes)
            rows[name] = build_row(row, inputs, activation=spec.activation, feeds=feeds)
    return rows


def build_row(row: Row, inputs: Sequence[MapShape], *, activation: str, feeds: str = "") -> nn.Module:
    """Build the module of a row other than the head.

    Args:
        row: The row.
        inputs: Shapes of the maps of its sources.
        activation: Name of the activation of a row that names none.
        feeds: The concatenation or addition that the output enters unchanged; a RepConv then has no identity branch.

    Returns:
        The module.
    """
    channels = inputs[0].channels
    activation = row.activation or activation
    match row:
        case MaxPoolRow() | ReorgRow() | DoubleRow() | ConcatRow():
            return _WITHOUT_WEIGHTS[row.block]()
        case ConvRow() | DownRow() | UpRow() | UpsampleRow():
            return _build_transition(row, inputs, activation=activation)
        case ElanRow():
            return make_elan(row, inputs, activation=activation)
        case CspRow() | CspRepRow() | CspTinyRow():
            return _build_csp(row, inputs, activation=activation)
        case BottleneckRow():
            return Bottlenecks(row, channels, activation=activation)
        case SppRow():
            return _build_spp(row, channels, activation=activation)
        case RepConvRow():
            (planned,) = row.planned_rep_convs(inputs, feeds=feeds)
            return RepConv(channels, row.out, row.stride, identity=planned.identity, activation=activation)
        case PluginRow():
            return build_plugin(row, inputs)
        case HeadRow():
            raise AssertionError("the head is built by the model")


def _build_csp(row: CspRow | CspRepRow | CspTinyRow, inputs: Sequence[MapShape], *, activation: str) -> nn.Module:
    match row:
        case CspRow():
            return Csp(row, inputs, activation=activation)
        case CspRepRow():
            return CspRep(row, inputs, activation=activation)
        case CspTinyRow():
            return CspTiny(row, inputs[0].channels, activation=activation)


def _build_spp(row: SppRow, channels: int, *, activation: str) -> nn.Module:
    if row.block == "spp":
        return Spp(channels, row.out, widest_first=row.widest_first, activation=activation)
    spp = Sppcspc if row.block == "sppcspc" else SppTiny
    return spp(channels, row.out, activation=activation)


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
    """Return the steps that compute the wanted maps; a map is dropped after its last use."""
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
