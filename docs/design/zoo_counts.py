"""Count models of Table 9 that are not built here, or parts of them, with the library `transformers`; without weights.

`python docs/design/zoo_counts.py` prints the table of tables.md. It takes about two minutes on one core, needs
`pip install 'yolov7-pipeline[zoo]'`, and downloads nothing: models are built from their configurations. One
multiply-accumulate operation of a convolution or a matrix product counts as one FLOP, as in the papers of these models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

try:
    import transformers
except ImportError:
    sys.exit("transformers is not installed; run `pip install 'yolov7-pipeline[zoo]'`")

_DETR_SIZE = (800, 1066)  # height and width of the most frequent images of COCO, whose shorter side becomes 800 px
_RCNN_SIZE = (800, 1280)  # at which the papers of Swin and ConvNeXt count
_RESNET50, _RESNET101 = [3, 4, 6, 3], [3, 4, 23, 3]
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


class Counts(NamedTuple):
    """What was counted.

    Attributes:
        name: The model or the part of it.
        params_m: Parameters in millions.
        gmacs: Multiply-accumulate operations in thousands of millions.
        size: Height and width of the image in pixels.
    """

    name: str
    params_m: float
    gmacs: float
    size: tuple[int, int]


def count(name: str, model: nn.Module, size: tuple[int, int], *, device: str) -> Counts:
    """Count one model.

    Args:
        name: Its name.
        model: The model.
        size: Height and width of the image in pixels.
        device: `cpu`, or `meta` for models that need no values.

    Returns:
        The counts.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, *size, device=device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Counts(name, parameters / 1e6, counter.get_total_flops() / 2e9, size)


def detectors() -> Iterator[Counts]:
    """Yield the detectors that can be built whole."""
    common: dict[str, Any] = {
        "use_timm_backbone": False,
        "backbone": None,
        "use_pretrained_backbone": False,
        "attn_implementation": "eager",
    }
    resnet = transformers.ResNetConfig(depths=_RESNET101, out_features=["stage4"])
    detr = transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=resnet, **common))
    for name, module in detr.named_modules():  # DC5: the last stage keeps the resolution; dilation costs nothing
        if "stages.3.layers.0" in name and isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    yield count("DETR-DC5-R101", detr, _DETR_SIZE, device="cpu")
    resnet = transformers.ResNetConfig(depths=_RESNET50, out_features=_STAGES[1:])
    config = transformers.DeformableDetrConfig(backbone_config=resnet, **common)
    yield count("Deformable DETR", transformers.DeformableDetrForObjectDetection(config), _DETR_SIZE, device="cpu")


def backbones() -> Iterator[Counts]:
    """Yield the backbones of the models with Cascade Mask R-CNN."""
    with torch.device("meta"):
        for name, width, depth, heads in (
            ("Swin-T", 96, 6, 3),
            ("Swin-B", 128, 18, 4),
            ("Swin-L", 192, 18, 6),
        ):
            swin = transformers.SwinConfig(
                embed_dim=width,
                depths=[2, 2, depth, 2],
                num_heads=[heads * 2**i for i in range(4)],
                out_features=_STAGES,
            )
            yield count(name, transformers.SwinBackbone(swin), _RCNN_SIZE, device="meta")
        for name, width in (("ConvNeXt-B", 128), ("ConvNeXt-L", 192), ("ConvNeXt-XL", 256)):
            convnext = transformers.ConvNextConfig(
                hidden_sizes=[width * 2**i for i in range(4)], depths=[3, 3, 27, 3], out_features=_STAGES
            )
            yield count(name, transformers.ConvNextBackbone(convnext), _RCNN_SIZE, device="meta")


if __name__ == "__main__":
    print("| model or backbone | parameters | FLOPs | image |")
    print("|---|---:|---:|---:|")
    for one in (*detectors(), *backbones()):
        print(f"| {one.name} | {one.params_m:.1f} M | {one.gmacs:.1f} G | {one.size[0]} x {one.size[1]} |")
