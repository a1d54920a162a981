"""Parameters and FLOPs of a spec, counted on the model itself, which is built on the meta device for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolov7.model import DetectionModel
from yolov7.reparam import fuse
from yolov7.spec import ModelSpec


@dataclass(frozen=True)
class Cost:
    """`gflops`: 2 x multiply-accumulate of all convolutions of the deployed graph; `gflops_built`: of the training one.

    `gflops_with_bias` counts one bias addition for every output element too, as the paper does.
    """

    parameters: int
    parameters_deployed: int
    gflops: float
    gflops_with_bias: float
    gflops_built: float


def spec_cost(spec: ModelSpec, *, num_classes: int = 80, image_size: int | None = None) -> Cost:
    """The cost for one square image, by default of the spec's own size in pixels."""
    side = image_size or spec.image_size
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=num_classes).eval()
        deployed = fuse(model)
        images = torch.empty(1, 3, side, side)
    macs, additions = count_convolutions(deployed, images)
    return Cost(
        parameters=count_parameters(model),
        parameters_deployed=count_parameters(deployed),
        gflops=2 * macs / 1e9,
        gflops_with_bias=2 * (macs + additions) / 1e9,
        gflops_built=2 * count_convolutions(model, images)[0] / 1e9,
    )


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_convolutions(model: DetectionModel, images: Tensor) -> tuple[int, int]:
    """Multiply-accumulates and output elements of all convolutions in one forward."""
    counts: list[tuple[int, int]] = []

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        counts.append((output.numel() * module.weight[0].numel(), output.numel()))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(macs for macs, _ in counts), sum(outputs for _, outputs in counts)
