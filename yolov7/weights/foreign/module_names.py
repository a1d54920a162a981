"""The names that YOLOX and PP-YOLOE give to the tensors of a model, derived from its spec. Imports no torch.

Both name modules by their place in the network, which the name of a row of our specs says as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from yolov7.errors import SpecError
from yolov7.spec.graph import ModelSpec

_Rules = tuple[tuple[str, str], ...]  # patterns for the beginning of a name, and their replacements


class Scheme(NamedTuple):
    """How an implementation names modules.

    Attributes:
        rows: Its names by the names of our rows.
        blocks: For each of our blocks, rules for the names within a row.
        head: Rules for the names within the head.
        endings: Its endings of names by ours; an empty one if it has no such tensor.
        reverses_levels: Whether it numbers the levels of its head from the coarsest one.
    """

    rows: Mapping[str, str]
    blocks: Mapping[str, _Rules]
    head: _Rules
    endings: Mapping[str, str] = {}
    reverses_levels: bool = False


_CONV: _Rules = ((r"conv\.", ""),)
YOLOX = Scheme(
    rows={
        "s1": "backbone.backbone.stem.conv",
        **{f"d{i}": f"backbone.backbone.dark{i}.0" for i in (2, 3, 4, 5)},
        **{f"p{i}": f"backbone.backbone.dark{i}.1" for i in (2, 3, 4)},
        "c5": "backbone.backbone.dark5.1",
        "p5": "backbone.backbone.dark5.2",
        "n5": "backbone.lateral_conv0",
        "f4": "backbone.C3_p4",
        "n4": "backbone.reduce_conv1",
        "n3": "backbone.C3_p3",
        "e4": "backbone.bu_conv2",
        "m4": "backbone.C3_n3",
        "e5": "backbone.bu_conv1",
        "m5": "backbone.C3_n4",
    },
    blocks={
        "conv": _CONV,
        "csp_a": (
            (r"a\.", "conv1."),
            (r"b\.", "conv2."),
            (r"merge\.", "conv3."),
            (r"chain\.(\d+)\.first\.", r"m.\1.conv1."),
            (r"chain\.(\d+)\.second\.", r"m.\1.conv2."),
        ),
        "spp": ((r"reduce\.", "conv1."), (r"merge\.", "conv2.")),
    },
    head=(
        (r"stems\.", "head.stems."),
        (r"class_towers\.", "head.cls_convs."),
        (r"box_towers\.", "head.reg_convs."),
        (r"class_convs\.", "head.cls_preds."),
        (r"box_convs\.", "head.reg_preds."),
        (r"objectness_convs\.", "head.obj_preds."),
    ),
)
_PPYOLOE_SPLIT: _Rules = ((r"bypass\.", "conv1."), (r"reduce\.", "conv2."), (r"merge\.", "conv3."))


def _ppyoloe_chain(place: str) -> _Rules:
    return (
        (r"chain\.(\d+)\.first\.", rf"{place}.\1.conv1."),
        (r"chain\.(\d+)\.second\.dense\.0\.", rf"{place}.\1.conv2.conv1.conv."),
        (r"chain\.(\d+)\.second\.dense\.1\.", rf"{place}.\1.conv2.conv1.bn."),
        (r"chain\.(\d+)\.second\.pointwise\.0\.", rf"{place}.\1.conv2.conv2.conv."),
        (r"chain\.(\d+)\.second\.pointwise\.1\.", rf"{place}.\1.conv2.conv2.bn."),
    )


PPYOLOE = Scheme(
    rows={
        **{f"s{i}": f"backbone.stem.conv{i}" for i in (1, 2, 3)},
        **{f"d{i + 2}": f"backbone.stages.{i}.conv_down" for i in range(4)},
        **{f"p{i + 2}": f"backbone.stages.{i}" for i in range(4)},
        "n5": "neck.fpn_stages.0.0",
        "u4": "neck.fpn_routes.0",
        "n4": "neck.fpn_stages.1.0",
        "u3": "neck.fpn_routes.1",
        "n3": "neck.fpn_stages.2.0",
        "e4": "neck.pan_routes.1",
        "m4": "neck.pan_stages.1.0",
        "e5": "neck.pan_routes.0",
        "m5": "neck.pan_stages.0.0",
    },
    blocks={
        "conv": _CONV,
        "upsample": ((r"top\.", ""),),
        "csp_rep_res": (*_PPYOLOE_SPLIT, *_ppyoloe_chain("blocks"), (r"attention\.conv\.", "attn.fc.")),
        "csp_rep": (*_PPYOLOE_SPLIT, *_ppyoloe_chain("convs"), (r"spp\.", "convs.spp.conv.")),
    },
    head=(
        (r"class_attentions\.(\d+)\.gate\.", r"yolo_head.stem_cls.\1.fc."),
        (r"class_attentions\.(\d+)\.conv\.", r"yolo_head.stem_cls.\1.conv."),
        (r"box_attentions\.(\d+)\.gate\.", r"yolo_head.stem_reg.\1.fc."),
        (r"box_attentions\.(\d+)\.conv\.", r"yolo_head.stem_reg.\1.conv."),
        (r"class_convs\.", "yolo_head.pred_cls."),
        (r"box_convs\.", "yolo_head.pred_reg."),
    ),
    endings={".running_mean": "._mean", ".running_var": "._variance", ".num_batches_tracked": ""},
    reverses_levels=True,
)


def names_in(scheme: Scheme, spec: ModelSpec, own_names: Iterable[str]) -> dict[str, str]:
    """Derive the names that an implementation gives to the tensors of a model.

    Args:
        scheme: How the implementation names modules.
        spec: The spec of the model.
        own_names: The names of the model's tensors in this library.

    Returns:
        The names by ours, without the tensors that the implementation does not have.

    Raises:
        SpecError: The spec has a row that the implementation does not have.
    """
    names = {own: _name_in(scheme, spec, own) for own in own_names}
    return {own: name for own, name in names.items() if name}


def _name_in(scheme: Scheme, spec: ModelSpec, own: str) -> str:
    for ending, theirs in scheme.endings.items():
        if own.endswith(ending):
            stem = _name_in(scheme._replace(endings={}), spec, own)
            return stem.removesuffix(ending) + theirs if theirs else ""
    part, _, rest = own.partition(".")
    if part == "head":
        if scheme.reverses_levels:
            rest = re.sub(r"\d+", lambda level: str(len(spec.head.sources) - 1 - int(level[0])), rest, count=1)
        return _rename(rest, scheme.head, spec)
    row, _, rest = rest.partition(".")
    if row not in scheme.rows:
        raise SpecError(f"row {row!r} of spec {spec.name!r} has no counterpart in the implementation of this model")
    return f"{scheme.rows[row]}.{_rename(rest, scheme.blocks.get(spec.rows[row].block, ()), spec)}"


def _rename(name: str, rules: _Rules, spec: ModelSpec) -> str:
    for pattern, replacement in rules:
        if found := re.match(pattern, name):
            return found.expand(replacement) + name[found.end() :]
    raise SpecError(f"{name} of spec {spec.name!r} has no counterpart in the implementation of this model")
