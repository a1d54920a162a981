"""Parameters and FLOPs of a spec, counted on the model itself, which is built on the meta device for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import ModelSpec


@dataclass(frozen=True)
class Cost:
    """`gflops`: 2 x multiply-accumulate of all convolutions of the deployed graph; `gflops_built`: of the training one.

    The training graph has all branches and the auxiliary head. `..._with_bias` count one bias addition for every
    output element too, as the paper does, whether or not the graph has biases. `gflops_unfolded` counts the training
    graph with 2 multiply-accumulates for every element of a batch norm, and one for every bias that it has.
    """

    parameters: int
    parameters_deployed: int
    gflops: float
    gflops_with_bias: float
    gflops_built: float
    gflops_built_with_bias: float
    gflops_unfolded: float


class Operations(NamedTuple):
    """Of one forward: multiply-accumulates of all convolutions, their output elements, those that get a bias, and the
    elements of all batch norms.
    """

    macs: int
    outputs: int
    biases: int
    norm_elements: int


def spec_cost(spec: ModelSpec, *, num_classes: int = 80, image_size: int | None = None) -> Cost:
    """The cost for one square image, by default of the spec's own size in pixels."""
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=num_classes).eval()
        return model_cost(model, fuse(model), image_size=image_size or spec.image_size)


def model_cost(model: DetectionModel, deployed: DetectionModel, *, image_size: int) -> Cost:
    """The cost of a model on the meta device and of what `fuse` made of it, for one square image."""
    images = torch.empty(1, 3, image_size, image_size, device="meta")
    before, after = count_operations(model, images), count_operations(deployed, images)
    return Cost(
        parameters=count_parameters(model),
        parameters_deployed=count_parameters(deployed),
        gflops=2 * after.macs / 1e9,
        gflops_with_bias=2 * (after.macs + after.outputs) / 1e9,
        gflops_built=2 * before.macs / 1e9,
        gflops_built_with_bias=2 * (before.macs + before.outputs) / 1e9,
        gflops_unfolded=2 * (before.macs + 2 * before.norm_elements + before.biases) / 1e9,
    )


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_operations(model: DetectionModel, images: Tensor) -> Operations:
    """What one forward computes, the auxiliary head included if there is one."""
    with _Counter() as counter:
        model(images, auxiliary=True)
    return Operations(*(sum(column) for column in zip(*counter.counts, strict=True)))


@final
class _Counter(TorchFunctionMode):
    """Notes what convolutions and batch norms compute; the latter are left out, as shapes are all that matters."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[Operations] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.batch_norm:
            self.counts.append(Operations(0, 0, 0, args[0].numel()))
            return args[0]
        output = function(*args, **(kwargs or {}))
        if function is torch.conv2d:
            kernel, bias = args[1], args[2]
            number = output.numel()
            self.counts.append(Operations(number * kernel[0].numel(), number, 0 if bias is None else number, 0))
        return output
