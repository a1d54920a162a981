"""The module that is exported: uint8 images in, decoded predictions or detections out."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor, nn

from yolov7.export.suppression import suppress_in_graph
from yolov7.nn.model import DetectionModel
from yolov7.settings import NmsSettings


@final
class ExportedGraph(nn.Module):
    """A model with the scaling of its input and the decoding of its output, and with the suppression on request."""

    def __init__(self, model: DetectionModel, *, dtype: torch.dtype, nms: NmsSettings | None, num_boxes: int | None):
        """Copy the model.

        Args:
            model: The re-parameterised model in evaluation mode, on the CPU.
            dtype: Type of the weights and of the forward pass; the outputs are decoded in float32.
            nms: Settings of the suppression; None to return the decoded predictions.
            num_boxes: Number of predictions for an image; None if it depends on the size of the image.
        """
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)
        self.model.anchors_px = model.anchors_px.clone()  # bfloat16 cannot represent all anchors
        self._dtype = dtype
        self._nms = nms
        self._num_boxes = num_boxes

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the outputs.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB.

        Returns:
            Decoded predictions (B, boxes, 5 + classes), or what `suppress_in_graph` returns.
        """
        decoded = self.model.decode(self.model((images.float() / 255).to(self._dtype)))
        if self._nms is None:
            return decoded
        suppresses = self.model.spec.head.needs_suppression
        return suppress_in_graph(decoded, settings=self._nms, num_boxes=self._num_boxes, suppresses=suppresses)


def count_boxes(model: DetectionModel, image_size: int) -> int:
    """Return the number of predictions for one image.

    Args:
        model: The model.
        image_size: Side of the square image, pixels.

    Returns:
        The number of predictions over all levels and cells.
    """
    return sum(model.head.num_anchors * (image_size // stride) ** 2 for stride in model.strides)
