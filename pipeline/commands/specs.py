"""What the commands around specs do: tell what is re-parameterised in a model, and scale one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from yolov7.nn.blocks import ConvBnAct
from yolov7.nn.cost import spec_cost
from yolov7.nn.model import DetectionModel
from yolov7.spec.block_schema import DetectRow
from yolov7.spec.graph import ModelSpec, plan_rep_convs
from yolov7.spec.row import PlannedRepConv
from yolov7.spec.scaling import Rule, scale_spec
from yolov7.spec.spec_files import load_spec, spec_to_yaml
from yolov7.system.files import write_whole


class Planned(NamedTuple):
    """One line of a plan: a row, or a convolution inside it, what becomes of it once deployed, and why."""

    name: str
    block: str
    planned: str
    why: str


def print_plan(name: str, *, as_json: bool) -> None:
    """Prints, for every row of a spec, what re-parameterisation makes of it (the paper's section 4.1)."""
    plan = plan_lines(load_spec(name))
    if as_json:
        print(json.dumps([line._asdict() for line in plan], indent=1))
        return
    widths = [max(len(line[i]) for line in plan) for i in range(3)]
    for line in plan:
        print("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line.why]).rstrip())


def plan_lines(spec: ModelSpec) -> tuple[Planned, ...]:
    """The plan of a spec, row by row; a row's re-parameterised convolutions follow it, each as `row.position`."""
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=1)
    places = plan_rep_convs(spec)
    lines: list[Planned] = []
    for name, row in spec.rows.items():
        if isinstance(row, DetectRow):
            lines.append(Planned(name, row.block, *_plan_head(row)))
        else:
            lines += _plan_row(name, row.block, model.rows[name], places.get(name, ()))
    return tuple(lines)


def scale(name: str, *, rule: Rule, depth: float, width: float, output: Path | None) -> str:
    """The scaled spec in the form of a spec file, its cost in a comment above; written to a file if one is given."""
    spec = scale_spec(load_spec(name), rule=rule, depth=depth, width=width)
    cost = spec_cost(spec)
    factors = [f"{key} {factor:g}" for key, factor in (("depth", depth), ("width", width)) if factor != 1]
    text = (
        f"# {' '.join([spec.name, rule, *factors])}: {cost.parameters_deployed / 1e6:.2f} M parameters deployed "
        f"({cost.parameters_deployed:,}), {cost.gflops_with_bias:.1f} GFLOPs at {spec.image_size} pixels\n"
        f"{spec_to_yaml(spec)}"
    )
    if output is not None:
        write_whole(output, text.encode())
    return text


def _plan_row(name: str, block: str, module: nn.Module, places: Sequence[PlannedRepConv]) -> Iterator[Planned]:
    number = sum(isinstance(part, ConvBnAct) for part in module.modules())
    if number:
        text = f"{number} convolution{'s' * (number > 1)}"
        yield Planned(name, block, text, "batch norm folded in")
    elif not places:
        yield Planned(name, block, "-", "nothing to fold")
    for place in places:
        position = f"{name}.{place.position}" if place.position else name
        yield Planned(position, "rep_conv", "RepConv" if place.identity else "RepConvN", place.reason)


def _plan_head(row: DetectRow) -> tuple[str, str]:
    parts: Mapping[str, bool] = {
        "implicit vectors folded in": row.implicit,
        "auxiliary head dropped": row.auxiliary is not None,
    }
    done = [text for text, applies in parts.items() if applies]
    return f"{len(row.sources)} convolutions", ", ".join(done) or "nothing to fold"
