"""Count models of Table 9 that are not built here, or parts of them, with the library `transformers`; without weights.

`python docs/design/zoo_counts.py` prints the table of tables.md. It needs `pip install 'yolov7-pipeline[zoo]'` and
downloads nothing: models are built from their configurations on the meta device. One multiply-accumulate operation of a
convolution or a matrix product counts as one FLOP, as in the papers of these models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

if find_spec("transformers") is None:
    sys.exit("transformers is not installed; run `pip install 'yolov7-pipeline[zoo]'`")

import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_SIZE = (800, 1280)  # height and width in pixels at which the papers of Swin and ConvNeXt count
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def millions(model: nn.Module) -> float:
    """Return the number of parameters in millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def gmacs(model: nn.Module) -> float:
    """Return the multiply-accumulate operations for one image in thousands of millions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, *_SIZE, device="meta"))
    return counter.get_total_flops() / 2e9


def detectors() -> Iterator[tuple[str, nn.Module]]:
    """Yield the detectors that can be built whole. Dilated convolutions, as in DC5, have no other parameters."""
    common: dict[str, Any] = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
    resnet101 = transformers.ResNetConfig(depths=[3, 4, 23, 3], out_features=["stage4"])
    config = transformers.DetrConfig(backbone_config=resnet101, **common)
    yield "DETR DC5-R101", transformers.DetrForObjectDetection(config)
    resnet50 = transformers.ResNetConfig(depths=[3, 4, 6, 3], out_features=_STAGES[1:])
    config = transformers.DeformableDetrConfig(backbone_config=resnet50, **common)
    yield "Deformable DETR", transformers.DeformableDetrForObjectDetection(config)


def backbones() -> Iterator[tuple[str, nn.Module]]:
    """Yield the backbones of the models with Cascade Mask R-CNN."""
    for name, width, depth, heads in (("Swin-T", 96, 6, 3), ("Swin-B", 128, 18, 4), ("Swin-L", 192, 18, 6)):
        swin = transformers.SwinConfig(
            embed_dim=width,
            depths=[2, 2, depth, 2],
            num_heads=[heads * 2**i for i in range(4)],
            out_features=_STAGES,
        )
        yield name, transformers.SwinBackbone(swin)
    for name, width in (("ConvNeXt-B", 128), ("ConvNeXt-L", 192), ("ConvNeXt-XL", 256)):
        widths = [width * 2**i for i in range(4)]
        convnext = transformers.ConvNextConfig(hidden_sizes=widths, depths=[3, 3, 27, 3], out_features=_STAGES)
        yield name, transformers.ConvNextBackbone(convnext)


if __name__ == "__main__":
    with torch.device("meta"):
        for name, model in detectors():
            print(f"| {name} | {millions(model):.1f} M | |")
        for name, model in backbones():
            print(f"| backbone {name} | {millions(model):.1f} M | {gmacs(model):.1f} G |")
