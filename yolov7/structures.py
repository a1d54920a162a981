"""Frozen values that the parts of the detector exchange. Their shapes, units and frames are defined here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The n ground-truth boxes of a batch, for all of its images.

    Attributes:
        image: Index of the image in the batch (n,) int64.
        label: Number of the class (n,) int64.
        boxes_cxcywh: Boxes (n, 4) float32, relative to the width and height of the images of the batch (0..1).
    """

    image: Tensor
    label: Tensor
    boxes_cxcywh: Tensor

    def to(self, device: object) -> Targets:
        """Copy the targets to a device.

        Args:
            device: The device.

        Returns:
            The copy.
        """
        move = {"device": device, "non_blocking": True}
        return Targets(self.image.to(**move), self.label.to(**move), self.boxes_cxcywh.to(**move))  # type: ignore[call-overload]

    def __len__(self) -> int:
        """Return the number of boxes."""
        return self.image.shape[0]


@dataclass(frozen=True)
class Batch:
    """Images of one size with their targets.

    Attributes:
        images: Images (B, 3, H, W) uint8 RGB.
        targets: The objects of the images.
        index: Position of each image in the index of the split.
    """

    images: Tensor
    targets: Targets
    index: tuple[int, ...]


class HeadMaps(NamedTuple):
    """The raw outputs of a model: one map (B, anchors, H, W, outputs) per level, finest level first.

    The last axis contains x, y, w, h, objectness and the classes, all before the sigmoid. If the head predicts sides as
    distributions, it contains the logits of the bins of the left, top, right and bottom side, and then the classes.
    The number of anchors of an anchor-free head is 1.

    Attributes:
        lead: Maps of the lead head.
        auxiliary: Maps of the auxiliary head; empty if there is none.
    """

    lead: tuple[Tensor, ...]
    auxiliary: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Detections:
    """The n detections of one image, by descending score.

    Attributes:
        boxes_xyxy: Corners (n, 4) float32 in pixels.
        scores: Scores (n,) float32 in 0..1.
        labels: Numbers of the classes (n,) int64.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of detections."""
        return self.scores.shape[0]
