"""Frozen values that pass between the parts of the detector; shapes, units and frames are stated once, here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The ground-truth boxes of a batch, flattened over its images; n boxes.

    `image`: (n,) int64, the index of the image in the batch. `label`: (n,) int64.
    `boxes_cxcywh`: (n, 4) float32, normalised: 0-1 over the width and height of the batch's images.
    """

    image: Tensor
    label: Tensor
    boxes_cxcywh: Tensor

    def to(self, device: object) -> Targets:
        """The same targets on another device."""
        move = {"device": device, "non_blocking": True}
        return Targets(self.image.to(**move), self.label.to(**move), self.boxes_cxcywh.to(**move))  # type: ignore[call-overload]

    def __len__(self) -> int:
        return self.image.shape[0]


@dataclass(frozen=True)
class Batch:
    """Images of one size with their targets.

    `images`: (B, 3, H, W) uint8, RGB. `index`: the position of each image in the split's index.
    """

    images: Tensor
    targets: Targets
    index: tuple[int, ...]


class HeadMaps(NamedTuple):
    """The raw outputs of a detection head: one map (B, anchors, H, W, 5 + classes) a level, finest stride first.

    The last axis holds x, y, w, h, objectness and the classes, all before the sigmoid.
    `auxiliary` is empty for a model without an auxiliary head.
    """

    lead: tuple[Tensor, ...]
    auxiliary: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Detections:
    """The detections of one image, by descending score; n of them.

    `boxes_xyxy`: (n, 4) float32, pixels. `scores`: (n,) float32. `labels`: (n,) int64.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.scores.shape[0]
