"""The reference implementation's names for the tensors of a model, derived from its spec. Imports no torch.

The reference numbers a flat list of layers. A row of a spec corresponds to one or several of them. Layers without
weights (concatenation, pooling, upsampling, addition) have numbers, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from yolov7.errors import SpecError
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
    PluginRow,
    ReorgRow,
    RepConvRow,
    Row,
    SppRow,
    UpRow,
    UpsampleRow,
)
from yolov7.spec.graph import ModelSpec

Layer = dict[str, str]  # the modules of a row, in the reference's order, and their names within its layer

_BARE: Layer = {}  # a layer without weights
_BRANCHES = {"identity": "rbr_identity", "dense": "rbr_dense", "pointwise": "rbr_1x1"}  # of a RepConv, not fused


class ReferenceNames(NamedTuple):
    """The names of a model's tensors.

    Attributes:
        weights: The reference's names, in its order, with the names in this library.
        head: The prefix of the names in the reference's detection layer.
    """

    weights: dict[str, str]
    head: str


def reference_names(spec: ModelSpec, own_names: Iterable[str]) -> ReferenceNames:
    """Derive the reference's names for the tensors of a model.

    Args:
        spec: The spec of the model.
        own_names: The names of the model's tensors in this library.

    Returns:
        Both names of each tensor.

    Raises:
        SpecError: The model has a module that the reference does not have.
    """
    own = list(own_names)
    weights: dict[str, str] = {}
    layers = _all_layers(spec)
    for number, layer in enumerate(layers):
        for module, place in layer.items():
            prefix = f"model.{number}.{place}".rstrip(".")
            weights |= {prefix + _translate(suffix): module + suffix for suffix in _suffixes(own, module)}
    left = sorted(set(own) - set(weights.values()))
    if left:
        raise SpecError(f"{left[0]} of spec {spec.name!r} has no counterpart in the reference implementation")
    return ReferenceNames(weights, head=f"model.{len(layers) - 1}.")


def _all_layers(spec: ModelSpec) -> list[Layer]:
    layers: list[Layer] = []
    for name, row in spec.rows.items():
        path = "head" if isinstance(row, HeadRow) else f"rows.{name}"
        layers += [
            {f"{path}.{module}".rstrip("."): place for module, place in layer.items()} for layer in _layers_of(row)
        ]
    return layers


def _layers_of(row: Row) -> list[Layer]:
    """Return the layers of a row; an empty name stands for the row itself, or for the layer itself."""
    match row:
        case ReorgRow() | MaxPoolRow() | ConcatRow():
            return [_BARE]
        case RepConvRow():
            return [{**_BRANCHES, "conv": "rbr_reparam"}]
        case ConvRow() | DownRow() | UpRow() | UpsampleRow() | DoubleRow():
            return _transition(row)
        case ElanRow():
            return _elan(row)
        case CspRow():
            return [_csp(row)]
        case BottleneckRow():
            return [_bottlenecks(row)]
        case SppRow():
            return _spp(row)
        case DetectRow() | DflHeadRow():
            return _head(row) if isinstance(row, DetectRow) else [_dfl_head(row)]
        case CspRepRow() | CspTinyRow() | PluginRow() | HeadRow():
            raise SpecError(f"the block {row.block!r} has no counterpart in the reference implementation")


def _transition(row: ConvRow | DownRow | UpRow | UpsampleRow | DoubleRow) -> list[Layer]:
    joined = [_BARE] if len(row.sources) > 1 else []
    match row.block:
        case "conv":
            return [{"conv": ""}, *joined]
        case "mp":  # its own two maps are always concatenated
            return [_BARE, {"pooled": ""}, {"reduce": ""}, {"strided": ""}, _BARE]
        case "down_c":
            return [_numbered("mix", "strided", "pooled"), *joined]
        case "up":
            return [{"top": ""}, _BARE, {"lateral": ""}, *joined]
        case "upsample":
            return [{"top": ""}, _BARE, *joined]
        case "double":
            return [_BARE, *joined]


def _elan(row: ElanRow) -> list[Layer]:
    """Return the layers of one ELAN after the other, each but the first followed by an addition."""
    if row.grouped:
        raise SpecError(
            "E-ELAN as group convolutions has no counterpart in the reference; convert it to branches first"
        )
    branches = [""] if row.cardinality == 1 else [f"elans.{i}." for i in range(row.cardinality)]
    modules = ["a", "b", *(f"chain.{i}" for i in range(row.num_convs)), "merge"]
    layers: list[Layer] = []
    for branch in branches:
        *convs, merge = ({f"{branch}{module}": ""} for module in modules)
        layers += [*convs, _BARE, merge, *([_BARE] if layers else [])]
    return layers


def _csp(row: CspRow) -> Layer:
    behind = ["behind"] if row.block == "csp_c" else []
    return _numbered("a", "b", *behind, "merge") | _dark_blocks("m.", depth=row.depth)


def _bottlenecks(row: BottleneckRow) -> Layer:
    """Return the layer of one block, whose modules it names, or of several blocks, which it numbers."""
    return _dark_blocks("", depth=row.depth) if row.depth > 1 else {"chain.0.first": "cv1", "chain.0.second": "cv2"}


def _dark_blocks(prefix: str, *, depth: int) -> Layer:
    ways = (("first", "cv1"), ("second", "cv2"))
    return {f"chain.{i}.{module}": f"{prefix}{i}.{place}" for i in range(depth) for module, place in ways}


def _spp(row: SppRow) -> list[Layer]:
    match row.block:
        case "sppcspc":
            return [_numbered("reduce", "bypass", "dense", "squeeze", "pooled", "refine", "merge")]
        case "spp":
            return [_numbered("reduce", "merge")]
        case "spp_tiny":  # three pools and two concatenations
            return [{"bypass": ""}, {"reduce": ""}, *[_BARE] * 4, {"pooled": ""}, _BARE, {"merge": ""}]


def _head(row: DetectRow) -> list[Layer]:
    """Return the auxiliary head's 3x3 convolutions, then one layer with the outputs of both heads."""
    levels, taps = range(len(row.sources)), range(len(row.taps))
    outputs = {f"convs.{i}": f"m.{i}" for i in levels} | {f"auxiliary_convs.{i}": f"m2.{i}" for i in taps}
    implicit = {f"{name}.{i}": f"{name}.{i}.implicit" for name in ("ia", "im") for i in levels}
    return [*({f"auxiliary_stems.{i}": ""} for i in taps), outputs | implicit]


def _dfl_head(row: DflHeadRow) -> Layer:
    """Return the layer of the head of YOLOv7-u6, whose constant `dfl` has no counterpart here."""
    levels, branches = range(len(row.sources)), {"cv2": "box", "cv3": "class"}
    parts = ("{}_towers.{}.0", "{}_towers.{}.1", "{}_convs.{}")
    convolutions = {
        part.format(own, i): f"{name}.{i}.{place}"
        for name, own in branches.items()
        for i in levels
        for place, part in enumerate(parts)
    }
    implicit = {
        f"{kind}_{own}.{i}": f"{kind}{name[2:]}.{i}.implicit"
        for kind in ("ia", "im")
        for name, own in branches.items()
        for i in levels
    }
    return convolutions | (implicit if row.implicit else {})


def _numbered(*modules: str) -> Layer:
    return {module: f"cv{i}" for i, module in enumerate(modules, start=1)}


def _suffixes(names: Iterable[str], module: str) -> list[str]:
    """Return the names of a module's tensors without the module's own; an empty text if the module is a tensor."""
    return [name[len(module) :] for name in names if name == module or name.startswith(f"{module}.")]


def _translate(suffix: str) -> str:
    for own, reference in _BRANCHES.items():
        if suffix.startswith(f".{own}."):
            return f".{reference}{suffix[len(own) + 1 :]}"
    return suffix
