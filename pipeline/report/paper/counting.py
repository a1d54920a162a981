"""Which spec a row of the paper is, and its #Param and FLOPs counted as the paper counts them.

The mapping and the conventions are data: `models.csv` and `countings.csv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast

from pipeline.report.paper.printed import read_csv
from yolov7.nn.cost import Cost, spec_cost
from yolov7.spec.graph import ModelSpec
from yolov7.spec.scaling import Rule, scale_spec
from yolov7.spec.spec_files import load_spec

COCO_CLASSES = 80
SIDE = 640  # pixels; the size at which the paper counts, whatever a row's own
Convention = Literal["deployed", "deployed x4", "training x4", "unfolded"]


@dataclass(frozen=True)
class PaperModel:
    """Which spec a row of the paper is, and how the paper counted it. `factor`: of the depth, or the width."""

    spec: str
    rule: str
    factor: str
    counting: Convention
    note: str

    @property
    def label(self) -> str:
        """The spec's name, and what it was scaled by."""
        return " ".join(part for part in (self.spec, self.rule, self.factor) if part)

    def build_spec(self) -> ModelSpec:
        """The resolved spec; SpecError where there is none of this name."""
        return _build(self.spec, self.rule, self.factor)

    def cost(self) -> Cost:
        """At 640 pixels with COCO's classes."""
        return _cost(self.spec, self.rule, self.factor)


@dataclass(frozen=True)
class Counted:
    """Parameters in millions, and GFLOPs at the row's size."""

    params_m: float
    gflops: float


def paper_models() -> Mapping[tuple[str, int], PaperModel]:
    """By a row's name and image size."""
    return {
        (line["model"], int(size)): PaperModel(
            line["spec"], line["rule"], line["factor"], cast(Convention, line["counting"]), line["note"]
        )
        for line in read_csv("models")
        for size in line["sizes"].split()
    }


def conventions() -> Mapping[Convention, str]:
    """What each convention of `models.csv` means, in a sentence or two."""
    return {cast(Convention, line["counting"]): line["text"] for line in read_csv("countings")}


def count_as_paper(model: PaperModel, size: int) -> Counted:
    """The figures that the paper's convention for this row gives at this size."""
    cost = model.cost()
    match model.counting:
        case "deployed" | "deployed x4":
            return count_deployed(model, size)
        case "training x4":
            return Counted(cost.parameters / 1e6, rescaled(cost.gflops_built_with_bias, size))
        case "unfolded":
            return Counted(cost.parameters_deployed / 1e6, rescaled(cost.gflops_unfolded, size))


def count_deployed(model: PaperModel, size: int) -> Counted:
    """The figures of the deployed graph, by the rule for rows of this size, whatever the row's own convention."""
    cost = model.cost()
    return Counted(cost.parameters_deployed / 1e6, rescaled(cost.gflops_with_bias, size))


def deployed_note(model: PaperModel, size: int) -> str:
    """What belongs beside figures of a training graph; empty where the row counts the deployed one."""
    if model.counting != "training x4":
        return ""
    counted, plain = count_deployed(model, size), model.cost().gflops * (size / SIDE) ** 2
    return (
        f"counted on its training graph; deployed: {counted.params_m:.1f} M, {counted.gflops:.1f} G "
        f"({plain:.1f} G without bias additions)"
    )


def rescaled(gflops: float, size: int) -> float:
    """The figure at 640 pixels, brought to another size: rounded to what is printed before it is multiplied."""
    return gflops if size == SIDE else round(gflops, 1) * (size / SIDE) ** 2


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
