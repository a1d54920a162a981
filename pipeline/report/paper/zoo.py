"""Models of Table 9 that are not built here, or parts of them, counted with the library `transformers`.

Models are built from their configurations with tensors that have no values, so no weights are downloaded. One
multiply-accumulate operation of a convolution or a matrix product counts as one FLOP, as in the papers of these models.
Deformable attention samples maps bilinearly, which is not counted. `python -m pipeline.report.paper.zoo` prints all
counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, get_args

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.external import ZOO_LIBRARY, has_zoo_library
from pipeline.params import ZooName
from pipeline.report.paper.counting import Counted

_LEVELS = ["stage1", "stage2", "stage3", "stage4"]
_RESNET = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
_WITHOUT_DOWNLOAD: Mapping[str, Any] = {
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
    "attn_implementation": "eager",  # the counter knows its products
}


@dataclass(frozen=True)
class ZooModel:
    """A model of Table 9, or its backbone, that the library can build.

    Attributes:
        row: The model as the paper names it.
        label: What is built.
        build: Builds it; the argument is the library.
        size: Height and width in pixels at which it is counted.
        is_whole: Whether it is the model of the row; otherwise it is the backbone.
    """

    row: str
    label: str
    build: Callable[[Any], nn.Module]
    size: tuple[int, int]
    is_whole: bool = False


def zoo_models() -> Mapping[str, ZooModel]:
    """Return what can be counted.

    Returns:
        The models by name. The names of whole models are those of external variants that fill the rows.
    """
    photo = (800, 1066)  # an image of 640 x 480 pixels, COCO's most frequent size, as DETR resizes it
    paper = (800, 1280)  # the size at which the papers of Swin and ConvNeXt count
    whole = {
        "detr-dc5-r101": ZooModel("DETR DC5-R101 [5]", "DETR, DC5, ResNet-101", _detr, photo, is_whole=True),
        "deformable-detr": ZooModel(
            "Deformable DETR [100]", "Deformable DETR, ResNet-50", _deformable_detr, photo, is_whole=True
        ),
    }
    assert set(whole) == set(get_args(ZooName))
    return whole | {
        "resnet-101": ZooModel("F-RCNN-R101-FPN+ [5]", "ResNet-101", lambda lib: _resnet(lib, 101), photo),
        "swin-t": ZooModel("Dual-Swin-T (C-M-RCNN) [47]", "Swin-T", lambda lib: _swin(lib, 96, 6, 3), paper),
        "swin-b": ZooModel("Swin-B (C-M-RCNN) [52]", "Swin-B", lambda lib: _swin(lib, 128, 18, 4), paper),
        "swin-l": ZooModel("Swin-L (C-M-RCNN) [52]", "Swin-L", lambda lib: _swin(lib, 192, 18, 6), paper),
        "convnext-b": ZooModel("ConvNeXt-B (C-M-RCNN) [53]", "ConvNeXt-B", lambda lib: _convnext(lib, 128), paper),
        "convnext-l": ZooModel("ConvNeXt-L (C-M-RCNN) [53]", "ConvNeXt-L", lambda lib: _convnext(lib, 192), paper),
        "convnext-xl": ZooModel("ConvNeXt-XL (C-M-RCNN) [53]", "ConvNeXt-XL", lambda lib: _convnext(lib, 256), paper),
    }


@cache
def count_zoo(name: str) -> Counted:
    """Count a model.

    Args:
        name: A key of `zoo_models`.

    Returns:
        Its parameters, and its multiply-accumulate operations for one image.

    Raises:
        ModuleNotFoundError: If the library is not installed.
    """
    library = import_module(ZOO_LIBRARY)
    chosen = zoo_models()[name]
    # Detectors look at values of masks, which tensors on the meta device do not have; ConvNeXt is built from values.
    without_values: AbstractContextManager[Any] = FakeTensorMode() if chosen.is_whole else torch.device("meta")
    with without_values, torch.no_grad():
        model = chosen.build(library).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *chosen.size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Counted(params_m=parameters / 1e6, gflops=counter.get_total_flops() / 2e9)


def zoo_note(name: str) -> str:
    """Say how a model is counted.

    Args:
        name: A key of `zoo_models`.

    Returns:
        A note for a cell of a table.
    """
    chosen = zoo_models()[name]
    height, width = chosen.size
    return f"{chosen.label} of {ZOO_LIBRARY}, one FLOP per multiply-accumulate operation at {height} x {width}"


def _detr(library: Any) -> nn.Module:
    backbone = library.ResNetConfig(depths=_RESNET[101], out_features=_LEVELS[3:])
    model: nn.Module = library.DetrForObjectDetection(library.DetrConfig(backbone_config=backbone, **_WITHOUT_DOWNLOAD))
    for module in model.modules():  # DC5: no stride in the last stage; its dilation does not change the cost
        if isinstance(module, nn.Conv2d) and (module.in_channels, module.out_channels) in ((512, 512), (1024, 2048)):
            module.stride = (1, 1)
    return model


def _deformable_detr(library: Any) -> nn.Module:
    backbone = library.ResNetConfig(depths=_RESNET[50], out_features=_LEVELS[1:])
    config = library.DeformableDetrConfig(backbone_config=backbone, **_WITHOUT_DOWNLOAD)
    model: nn.Module = library.DeformableDetrForObjectDetection(config)
    return model


def _resnet(library: Any, depth: int) -> nn.Module:
    model: nn.Module = library.ResNetBackbone(library.ResNetConfig(depths=_RESNET[depth], out_features=_LEVELS))
    return model


def _swin(library: Any, width: int, depth: int, heads: int) -> nn.Module:
    config = library.SwinConfig(
        embed_dim=width,
        depths=[2, 2, depth, 2],
        num_heads=[heads * 2**i for i in range(4)],
        out_features=_LEVELS,
    )
    model: nn.Module = library.SwinBackbone(config)
    return model


def _convnext(library: Any, width: int) -> nn.Module:
    widths = [width * 2**i for i in range(4)]
    config = library.ConvNextConfig(hidden_sizes=widths, depths=[3, 3, 27, 3], out_features=_LEVELS)
    model: nn.Module = library.ConvNextBackbone(config)
    return model


def _print_counts() -> None:
    for name, one in zoo_models().items():
        counted = count_zoo(name)
        height, width = one.size
        kind = one.label if one.is_whole else f"backbone {one.label}"
        print(f"| {kind} | {counted.params_m:.1f} M | {counted.gflops:.1f} G | {height} x {width} | {one.row} |")


if __name__ == "__main__":
    if not has_zoo_library():
        raise SystemExit(f"{ZOO_LIBRARY} is not installed; run `pip install 'yolov7-pipeline[zoo]'`")
    _print_counts()
