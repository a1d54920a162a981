"""The commands about specs: list them, show what re-parameterisation does to one, and scale one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from yolov7.errors import counted
from yolov7.nn.blocks import ConvBnAct
from yolov7.nn.cost import spec_cost
from yolov7.nn.heads import Head
from yolov7.nn.model import DetectionModel
from yolov7.spec.block_schema import DetectRow, DflHeadRow, HeadRow, OneToOneHeadRow
from yolov7.spec.graph import ModelSpec, infer_shapes, plan_rep_convs
from yolov7.spec.row import PlannedRepConv
from yolov7.spec.scaling import Rule, scale_spec
from yolov7.spec.spec_files import list_specs, load_spec, spec_to_yaml
from yolov7.system.files import write_whole

_MODELS_NOTE = """\
Figures of the deployed model with 80 classes at `size` pixels. GFLOPs: 2 x (multiply-accumulate + one bias addition per
output element) of all convolutions. The paper rounds this figure at 640 px before it scales it to other sizes, and some
of its rows count another graph: `yolov7 tables --check` lists the paper's figures and how each one is counted."""


class PlanLine(NamedTuple):
    """What re-parameterisation does to one row of a spec, or to one convolution in it.

    Attributes:
        name: The row, or the row and the position of the convolution in it.
        block: The kind of block.
        planned: What the row consists of after re-parameterisation.
        why: The reason.
    """

    name: str
    block: str
    planned: str
    why: str


def list_models(*, as_json: bool) -> None:
    """Print every spec with its cost.

    Args:
        as_json: Print JSON with exact figures instead of a table.
    """
    rows = map(_model_row, list_specs())
    if as_json:
        print(json.dumps(list(rows), indent=1))
        return
    print(f"{'name':<16}{'parameters':>12}{'GFLOPs':>9}{'size':>6}  strides")
    for row in rows:
        strides = " ".join(str(stride) for stride in row["strides"])
        print(f"{row['name']:<16}{row['params']:>12,}{row['gflops']:>9.1f}{row['size']:>6}  {strides}")
    print(_MODELS_NOTE)


def print_plan(name: str, *, as_json: bool) -> None:
    """Print what re-parameterisation does to each row of a spec (section 4.1 of the paper).

    Args:
        name: A name from `list_specs`, or the path of a spec file.
        as_json: Print JSON instead of a table.

    Raises:
        SpecError: There is no such spec, or it is invalid.
    """
    plan = plan_lines(load_spec(name))
    if as_json:
        print(json.dumps([line._asdict() for line in plan], indent=1))
        return
    widths = [max(len(line[i]) for line in plan) for i in range(3)]
    for line in plan:
        print("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line.why]).rstrip())


def plan_lines(spec: ModelSpec) -> tuple[PlanLine, ...]:
    """Return what re-parameterisation does to each row of a spec.

    Args:
        spec: The resolved spec.

    Returns:
        The rows in order. A row's re-parameterised convolutions follow it, each as `row.position`.
    """
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=1)
    places = plan_rep_convs(spec)
    lines: list[PlanLine] = []
    for name, row in spec.rows.items():
        if isinstance(row, HeadRow):
            lines.append(_plan_head(name, row, model.head))
        else:
            lines += _plan_row(name, row.block, model.rows[name], places.get(name, ()))
    return tuple(lines)


def scale(name: str, *, rule: Rule, depth: float, width: float, output: Path | None) -> str:
    """Scale a spec.

    Args:
        name: A name from `list_specs`, or the path of a spec file.
        rule: Which factors apply.
        depth: Factor on the depth of computational blocks.
        width: Factor on every width.
        output: The file to which the scaled spec is written, too; None writes no file.

    Returns:
        The text of the scaled spec file, with its cost in a comment on the first line.

    Raises:
        SpecError: There is no such spec, or it cannot be scaled in this way.
    """
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


def _model_row(name: str) -> dict[str, Any]:
    spec = load_spec(name)
    cost, shapes = spec_cost(spec), infer_shapes(spec)
    return {
        "name": name,
        "params": cost.parameters_deployed,
        "params_training": cost.parameters,
        "gflops": round(cost.gflops_with_bias, 4),
        "size": spec.image_size,
        "strides": [shapes[source].stride for source in spec.head.sources],
    }


def _plan_row(name: str, block: str, module: nn.Module, places: Sequence[PlannedRepConv]) -> Iterator[PlanLine]:
    number = sum(isinstance(part, ConvBnAct) for part in module.modules())
    if number:
        yield PlanLine(name, block, counted(number, "convolution"), "batch norm folded in")
    elif not places:
        yield PlanLine(name, block, "-", "nothing to fold")
    for place in places:
        position = f"{name}.{place.position}" if place.position else name
        yield PlanLine(position, "rep_conv", "RepConv" if place.identity else "RepConvN", place.reason)


def _plan_head(name: str, row: HeadRow, module: Head) -> PlanLine:
    norms = row.anchor_free and any(isinstance(part, ConvBnAct) for part in module.modules())
    folded = ["batch norm folded in"] if norms else []
    if isinstance(row, DetectRow | DflHeadRow | OneToOneHeadRow) and row.implicit:
        folded.append("implicit vectors folded in" if isinstance(row, DetectRow) else "implicit factors folded in")
    dropped = ["auxiliary head dropped"] if row.taps else []
    number = sum(isinstance(part, nn.Conv2d) for part in module.modules()) if row.anchor_free else len(row.sources)
    why = ", ".join(folded + dropped) or "nothing to fold"
    return PlanLine(name, row.block, counted(number, "convolution"), why)
