"""Pixels as other implementations feed them to their models, and models that take those of this library instead."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from yolov7.nn.blocks import ConvBnAct
from yolov7.nn.model import DetectionModel

_COLOURS = 3


class Pixels(NamedTuple):
    """The form of pixels: (x - mean) / deviation for each colour, where x is between 0 and 1.

    Attributes:
        text: A description for messages.
        is_bgr: Whether the first channel is blue instead of red.
        mean: Mean of red, green and blue.
        deviation: Deviation of red, green and blue.
    """

    text: str
    is_bgr: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)


YOLOX_PIXELS = Pixels("BGR in 0..255", is_bgr=True, deviation=(1 / 255,) * 3)
PPYOLOE_PIXELS = Pixels("normalised RGB", mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))


@torch.no_grad()
def take_rgb(model: DetectionModel, pixels: Pixels) -> None:
    """Change the first convolution of a model so that the model takes RGB images in 0..1, as this library gives them.

    The result is equal to the original, except along the border of the image if the mean is not 0: the first
    convolution pads with the mean there, and with black afterwards.

    Args:
        model: The model before re-parameterisation, which is changed.
        pixels: The pixels that it was trained with.
    """
    first = next(module for module in model.rows.modules() if isinstance(module, ConvBnAct))
    conv, norm = first.conv, first.bn
    weight = conv.weight.double()
    by_colour = weight.view(len(weight), -1, _COLOURS, *conv.kernel_size)  # `reorg` has four groups of three colours
    if pixels.is_bgr:
        by_colour = by_colour.flip(2)
    scaled = by_colour / torch.tensor(pixels.deviation, dtype=torch.float64).view(_COLOURS, 1, 1)
    shift = (scaled * torch.tensor(pixels.mean, dtype=torch.float64).view(_COLOURS, 1, 1)).flatten(1).sum(1)
    assert norm.running_mean is not None
    conv.weight = nn.Parameter(scaled.reshape(weight.shape).to(conv.weight.dtype))
    norm.running_mean = (norm.running_mean.double() + shift).to(norm.running_mean.dtype)
