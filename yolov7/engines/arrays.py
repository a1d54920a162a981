"""Conversion between the tensors of an engine and the arrays of an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolov7.engines.metadata import ExportMetadata, Layout
from yolov7.errors import SettingError


def to_array(images: Tensor, layout: Layout) -> NDArray[np.uint8]:
    """Return images as an exported file takes them.

    Args:
        images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.
        layout: Order of the channels and axes.

    Returns:
        The contiguous array (B, 3, H, W) or (B, H, W, 3). NumPy reorders bytes 20 times as fast as torch.
    """
    array: NDArray[np.uint8] = images.cpu().numpy()
    match layout:
        case "rgb_nchw":
            arranged = array
        case "rgb_nhwc":
            arranged = array.transpose(0, 2, 3, 1)
        case "bgr_nhwc":
            arranged = array[:, ::-1].transpose(0, 2, 3, 1)
    return np.ascontiguousarray(arranged)


def check_size(images: Tensor, metadata: ExportMetadata) -> None:
    """Raise SettingError if an exported file does not take images of this size.

    Args:
        images: Letterboxed images (B, 3, H, W).
        metadata: What the file says about itself.

    Raises:
        SettingError: If the height or width is not possible.
    """
    height, width = images.shape[-2:]
    side, stride = metadata.image_size, max(metadata.strides)
    if metadata.fixed_size and (height, width) != (side, side):
        raise SettingError(
            f"images of {width} x {height} pixels: the exported model takes only {side} x {side}; use "
            f"image_size={side}, or export the model with a dynamic size"
        )
    if height % stride or width % stride:
        raise SettingError(f"images of {width} x {height} pixels: sides must be multiples of {stride}")


def to_decoded(outputs: Sequence[Tensor], metadata: ExportMetadata) -> Tensor:
    """Return the outputs of an exported file as decoded predictions.

    If the file contains the suppression, every detection becomes a prediction: its score is the objectness, and its
    class has the probability 1. Suppressing these predictions again, with the same or a higher confidence, returns the
    detections of the file.

    Args:
        outputs: `decoded` (B, boxes, 5 + classes), or `num` (B,), `boxes` (B, K, 4) as corners, `scores` (B, K) and
            `labels` (B, K).
        metadata: What the file says about itself.

    Returns:
        Predictions (B, boxes, 5 + classes) float32: cx, cy, w, h in pixels, objectness and class probabilities.
    """
    if metadata.nms is None:
        return outputs[0].float()
    num, boxes, scores, labels = outputs
    low, high = boxes[..., :2].float(), boxes[..., 2:].float()
    is_found = torch.arange(scores.shape[1], device=scores.device) < num[:, None]
    classes = torch.nn.functional.one_hot(labels.long(), len(metadata.class_names)).float()
    objectness = torch.where(is_found, scores.float(), 0.0)[..., None]
    return torch.cat(((low + high) / 2, high - low, objectness, classes), dim=-1)


def to_tensors(arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
    """Return copies of arrays, whose memory an engine may use again.

    Args:
        arrays: The outputs of an engine.

    Returns:
        Tensors of the same values.
    """
    return [torch.from_numpy(np.array(array)) for array in arrays]
