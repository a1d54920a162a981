"""What runs a detection model: images of a batch in, decoded predictions out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from yolov7.nn.model import DetectionModel
from yolov7.system.precision import autocast


class Engine(Protocol):
    """Runs one detection model on one device. `yolov7.engines` has those that run exported files."""

    @property
    def needs_suppression(self) -> bool:
        """Whether several predictions may be of one object."""
        ...

    def decode(self, images: Tensor) -> Tensor:
        """Compute the decoded predictions of a batch.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.

        Returns:
            Predictions (B, boxes, 5 + classes): cx, cy, w, h in pixels, objectness and class probabilities.
        """
        ...


class ModelEngine:
    """Runs a model with torch, without compiling it."""

    def __init__(self, model: DetectionModel, dtype: torch.dtype) -> None:
        """Keep the model.

        Args:
            model: The model in evaluation mode.
            dtype: Floating-point type of the forward pass.
        """
        self.model = model
        self.dtype = dtype

    @property
    def needs_suppression(self) -> bool:
        """Whether several predictions may be of one object."""
        return self.model.spec.head.needs_suppression

    @torch.inference_mode()
    def decode(self, images: Tensor) -> Tensor:
        """Compute the decoded predictions of a batch.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.

        Returns:
            Predictions (B, boxes, 5 + classes) on the model's device: cx, cy, w, h in pixels, objectness and class
            probabilities.
        """
        device = next(self.model.parameters()).device
        scaled = images.to(device, non_blocking=True).float() / 255
        with autocast(self.dtype, device):
            maps = self.model(scaled)
        return self.model.decode(maps)
