"""From a batch of letterboxed images to detections in pixels of the original images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from yolov7.data.augment.letterbox import Letterbox
from yolov7.inference.nms import non_max_suppression
from yolov7.nn.model import DetectionModel
from yolov7.settings import NmsSettings
from yolov7.structures import Detections
from yolov7.system.precision import autocast


@torch.inference_mode()
def detect_batch(
    model: DetectionModel,
    images: Tensor,
    geometry: Sequence[Letterbox],
    *,
    nms: NmsSettings,
    dtype: torch.dtype,
) -> list[Detections]:
    """Detect objects in a batch.

    Args:
        model: The model in evaluation mode.
        images: Letterboxed images (B, 3, S, S) uint8 RGB.
        geometry: How each image was letterboxed.
        nms: Thresholds and limits.
        dtype: Floating-point type of the forward pass.

    Returns:
        The detections of each image, in pixels of the original and clipped to it, on the CPU.
    """
    device = next(model.parameters()).device
    scaled = images.to(device, non_blocking=True).float() / 255
    with autocast(dtype, device):
        maps = model(scaled)
    suppressed = non_max_suppression(model.decode(maps), settings=nms)
    return [to_original(found, way) for found, way in zip(suppressed, geometry, strict=True)]


def to_original(detections: Detections, geometry: Letterbox) -> Detections:
    """Map detections of a letterboxed image to the original image.

    Args:
        detections: Detections in pixels of the letterboxed image.
        geometry: How the image was letterboxed.

    Returns:
        Detections in pixels of the original image, clipped to it, on the CPU.
    """
    boxes = geometry.to_original(detections.boxes_xyxy.float().cpu().numpy())
    return Detections(torch.from_numpy(boxes), detections.scores.cpu(), detections.labels.cpu())
