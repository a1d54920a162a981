"""Parameters and FLOPs of a specification, counted on the model, which is built on the meta device for this purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from yolov7.nn.fuse import fuse_in_place
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import ModelSpec


@dataclass(frozen=True)
class Cost:
    """Cost of a model. One multiply-accumulate operation counts as two FLOPs.

    The training graph has all branches and the auxiliary head. The deployed graph is fused.

    Attributes:
        parameters: Parameters of the training graph.
        parameters_deployed: Parameters of the deployed graph.
        gflops: Operations of all convolutions of the deployed graph.
        gflops_with_bias: `gflops` and one bias addition per output element, as the paper counts most models.
        gflops_built: Operations of all convolutions of the training graph.
        gflops_built_with_bias: `gflops_built` and one bias addition per output element, with or without biases.
        gflops_unfolded: `gflops_built`, two multiply-accumulate operations per element of a batch norm, and one per
            element of a LeakyReLU and of a map that has a bias.
    """

    parameters: int
    parameters_deployed: int
    gflops: float
    gflops_with_bias: float
    gflops_built: float
    gflops_built_with_bias: float
    gflops_unfolded: float


_PRODUCTS = {nn.functional.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm}


class Operations(NamedTuple):
    """Operations of one forward pass.

    Attributes:
        macs: Multiply-accumulate operations of all convolutions, and of matrix products in blocks of users.
        outputs: Output elements of these.
        biases: Output elements of the convolutions that have a bias.
        norm_elements: Elements of all batch norms.
        leaky_elements: Elements of all LeakyReLU activations.
    """

    macs: int
    outputs: int
    biases: int
    norm_elements: int
    leaky_elements: int


def spec_cost(spec: ModelSpec, *, num_classes: int = 80, image_size: int | None = None) -> Cost:
    """Count the cost of a specification for one square image.

    Args:
        spec: The specification.
        num_classes: Number of classes.
        image_size: Side of the image in pixels; the image size of the specification by default.

    Returns:
        The cost.
    """
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=num_classes).eval()
    before = _measure(model, image_size or spec.image_size)  # not under torch.device, which would take twice as long
    with torch.device("meta"):
        deployed = fuse_in_place(model)
    return _cost(before, _measure(deployed, image_size or spec.image_size))


def model_cost(model: DetectionModel, deployed: DetectionModel, *, image_size: int) -> Cost:
    """Count the cost of a model for one square image.

    Args:
        model: The training graph on the meta device.
        deployed: The result of `fuse` for this model.
        image_size: Side of the image in pixels.

    Returns:
        The cost.
    """
    return _cost(_measure(model, image_size), _measure(deployed, image_size))


def _measure(model: DetectionModel, image_size: int) -> tuple[int, Operations]:
    images = torch.empty(1, 3, image_size, image_size, device="meta")
    return count_parameters(model), count_operations(model, images)


def _cost(training: tuple[int, Operations], deployed: tuple[int, Operations]) -> Cost:
    (parameters, before), (parameters_deployed, after) = training, deployed
    return Cost(
        parameters=parameters,
        parameters_deployed=parameters_deployed,
        gflops=2 * after.macs / 1e9,
        gflops_with_bias=2 * (after.macs + after.outputs) / 1e9,
        gflops_built=2 * before.macs / 1e9,
        gflops_built_with_bias=2 * (before.macs + before.outputs) / 1e9,
        gflops_unfolded=2 * (before.macs + 2 * before.norm_elements + before.biases + before.leaky_elements) / 1e9,
    )


def count_parameters(model: nn.Module) -> int:
    """Count parameters.

    Args:
        model: Any module.

    Returns:
        Number of elements of all parameters.
    """
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_operations(model: DetectionModel, images: Tensor) -> Operations:
    """Count the operations of one forward pass, an auxiliary head included.

    Args:
        model: The model.
        images: Images (B, 3, H, W).

    Returns:
        The operations.
    """
    with _Counter() as counter:
        model(images, auxiliary=True)
    return Operations(*(sum(column) for column in zip(*counter.counts, strict=True)))


@final
class _Counter(TorchFunctionMode):
    """Record operations; batch norms are skipped, because only shapes matter."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[Operations] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.batch_norm:
            self._add(norm_elements=args[0].numel())
            return args[0]
        output = function(*args, **(kwargs or {}))
        if function is torch.conv2d:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            kernel, bias, number = given["weight"], given.get("bias"), output.numel()
            self._add(macs=number * kernel[0].numel(), outputs=number, biases=0 if bias is None else number)
        elif function in _PRODUCTS:  # only blocks of users have them
            self._add(macs=output.numel() * args[0].shape[-1], outputs=output.numel())
        elif function is nn.functional.leaky_relu:
            self._add(leaky_elements=output.numel())
        return output

    def _add(self, **counts: int) -> None:
        self.counts.append(Operations(**dict.fromkeys(Operations._fields, 0) | counts))
