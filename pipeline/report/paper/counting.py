"""Which spec each row of the paper is, and its #Param and FLOPs in the paper's way of counting.

models.csv maps rows to specs; countings.csv describes the conventions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast

import torch
from torch import nn

from pipeline.report.paper.printed import read_csv
from yolov7.nn.blocks import RepConv
from yolov7.nn.cost import Cost, count_operations, count_parameters, spec_cost
from yolov7.nn.fuse import fuse_rep_conv
from yolov7.nn.model import DetectionModel
from yolov7.spec.block_schema import CspRepRow, PpyoloeHeadRow
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.spec.scaling import Rule, scale_spec
from yolov7.spec.spec_files import load_spec

COCO_CLASSES = 80
SIDE = 640  # pixels; the paper counts all rows at this size and scales the result to the row's size
_POOLED = 5**2 + 9**2 + 13**2  # values that the poolings of a pyramid compare for each of its elements
Convention = Literal[
    "deployed", "deployed x4", "training x4", "unfolded", "built", "mixed x4", "convolutions", "merged"
]


@dataclass(frozen=True)
class PaperModel:
    """The spec of a row of the paper, and how the paper counted it.

    Attributes:
        spec: The name of the spec before scaling.
        rule: The scaling rule; empty if the spec is not scaled.
        factor: The factor on depth or width; empty if the spec is not scaled.
        counting: The convention.
        note: A remark on the row.
    """

    spec: str
    rule: str
    factor: str
    counting: Convention
    note: str

    @property
    def label(self) -> str:
        """The name of the spec, with the scaling rule and factor."""
        return " ".join(part for part in (self.spec, self.rule, self.factor) if part)

    def build_spec(self) -> ModelSpec:
        """Build the resolved spec.

        Returns:
            The spec after scaling.

        Raises:
            SpecError: There is no spec of this name.
        """
        return _build(self.spec, self.rule, self.factor)

    def cost(self) -> Cost:
        """Return the cost at 640 pixels with COCO's 80 classes.

        Returns:
            Parameters and FLOPs.
        """
        return _cost(self.spec, self.rule, self.factor)


@dataclass(frozen=True)
class Counted:
    """The figures of a row.

    Attributes:
        params_m: Parameters in millions.
        gflops: GFLOPs at the row's size.
    """

    params_m: float
    gflops: float


def paper_models() -> Mapping[tuple[str, int], PaperModel]:
    """Return the rows of the paper that have a spec.

    Returns:
        The models by row name and image size in pixels.
    """
    return {
        (line["model"], int(size)): PaperModel(
            line["spec"], line["rule"], line["factor"], cast(Convention, line["counting"]), line["note"]
        )
        for line in read_csv("models")
        for size in line["sizes"].split()
    }


def conventions() -> Mapping[Convention, str]:
    """Return the meaning of each convention.

    Returns:
        One or two sentences by convention.
    """
    return {cast(Convention, line["counting"]): line["text"] for line in read_csv("countings")}


def count_as_paper(model: PaperModel, size: int) -> Counted:
    """Count a row in the paper's way.

    Args:
        model: The spec and the convention.
        size: The row's image size in pixels.

    Returns:
        The figures.
    """
    cost = model.cost()
    match model.counting:
        case "deployed" | "deployed x4":
            return count_deployed(model, size)
        case "training x4":
            return Counted(cost.parameters / 1e6, rescaled(cost.gflops_built_with_bias, size))
        case "unfolded":
            return Counted(cost.parameters_deployed / 1e6, rescaled(cost.gflops_unfolded, size))
        case "built":
            return Counted(cost.parameters / 1e6, rescaled(cost.gflops_unfolded, size))
        case "mixed x4":
            return Counted(cost.parameters / 1e6, rescaled(cost.gflops_with_bias, size))
        case "convolutions":
            return Counted(cost.parameters / 1e6, cost.gflops_built * (size / SIDE) ** 2)
        case "merged":
            return _count_merged(model.spec, size)


def count_deployed(model: PaperModel, size: int) -> Counted:
    """Count the deployed graph of a row, even if the paper counts another graph.

    Args:
        model: The spec.
        size: The row's image size in pixels.

    Returns:
        The figures.
    """
    cost = model.cost()
    return Counted(cost.parameters_deployed / 1e6, rescaled(cost.gflops_with_bias, size))


def deployed_note(model: PaperModel, size: int) -> str:
    """Return a remark for rows that the paper counts on the training graph.

    Args:
        model: The spec and the convention.
        size: The row's image size in pixels.

    Returns:
        The figures of the deployed graph as text; empty for all other rows.
    """
    if model.counting != "training x4":
        return ""
    counted, plain = count_deployed(model, size), model.cost().gflops * (size / SIDE) ** 2
    return (
        f"counted on its training graph; deployed: {counted.params_m:.1f} M, {counted.gflops:.1f} G "
        f"({plain:.1f} G without bias additions)"
    )


def rescaled(gflops: float, size: int) -> float:
    """Scale GFLOPs from 640 pixels to another size as the paper does: round first, then multiply.

    Args:
        gflops: GFLOPs at 640 pixels.
        size: The image size in pixels.

    Returns:
        GFLOPs at that size.
    """
    return gflops if size == SIDE else round(gflops, 1) * (size / SIDE) ** 2


@cache
def _count_merged(name: str, size: int) -> Counted:
    """Count PP-YOLOE as PaddleDetection does: branches merged, batch norms kept, operations by PaddleSlim's rules."""
    spec = load_spec(name)
    assert isinstance(spec.head, PpyoloeHeadRow)
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=COCO_CLASSES).eval()
        _merge_branches(model)
        operations = count_operations(model, torch.empty(1, 3, size, size))
    shapes = infer_shapes(spec)
    points = sum((size // shapes[source].stride) ** 2 for source in spec.head.sources)
    others = points * (4 * spec.head.bins + COCO_CLASSES)  # expectations of the distances, and sigmoids of the classes
    for row in spec.rows.values():
        if isinstance(row, CspRepRow) and row.spp:
            inputs = [shapes[source] for source in row.sources]
            others += _POOLED * row.hidden(inputs) * (size // inputs[0].stride) ** 2
    total = operations.macs + operations.norm_elements + others
    return Counted((count_parameters(model) + spec.head.bins) / 1e6, 2 * total / 1e9)


@torch.no_grad()
def _merge_branches(parent: nn.Module) -> None:
    """Replace each RepConv by one convolution, and leave all other batch norms."""
    for name, child in parent.named_children():
        if isinstance(child, RepConv):
            setattr(parent, name, fuse_rep_conv(child))
        else:
            _merge_branches(child)


@cache
def _build(name: str, rule: str, factor: str) -> ModelSpec:
    spec = load_spec(name)
    if not rule:
        return spec
    given = {"width" if rule == "width" else "depth": float(factor)}
    return scale_spec(spec, rule=cast(Rule, rule), **given)


@cache
def _cost(name: str, rule: str, factor: str) -> Cost:
    return spec_cost(_build(name, rule, factor), num_classes=COCO_CLASSES, image_size=SIDE)
