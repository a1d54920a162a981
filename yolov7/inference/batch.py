"""From a batch of letterboxed images to detections in pixels of the original images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from yolov7.data.augment.letterbox import Letterbox
from yolov7.inference.engine import Engine
from yolov7.inference.nms import non_max_suppression
from yolov7.settings import NmsSettings
from yolov7.structures import Detections


@torch.inference_mode()
def detect_batch(
    engine: Engine,
    images: Tensor,
    geometry: Sequence[Letterbox],
    *,
    nms: NmsSettings,
) -> list[Detections]:
    """Detect objects in a batch.

    Args:
        engine: What runs the model.
        images: Letterboxed images (B, 3, S, S) uint8 RGB.
        geometry: How each image was letterboxed.
        nms: Thresholds and limits.

    Returns:
        The detections of each image, in pixels of the original and clipped to it, on the CPU.
    """
    suppressed = non_max_suppression(engine.decode(images), settings=nms, suppresses=engine.needs_suppression)
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
