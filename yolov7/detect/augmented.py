"""Test-time augmentation: an engine that looks at each image in several sizes, once mirrored.

The scales and the mirrored view are those of the reference implementation. It pads a smaller view to a multiple of the
stride; here every view is padded to the size of the model, because an exported model may accept no other size.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from yolov7.data.augment.letterbox import FILL
from yolov7.inference.engine import Engine

_VIEWS = ((1.0, False), (0.83, True), (0.67, False))  # scale, whether left and right are exchanged


@final
class AugmentedEngine:
    """Run an engine on three views of each image and return the predictions of all of them.

    Non-maximum suppression then merges the predictions of the three views.
    """

    def __init__(self, engine: Engine) -> None:
        """Use an engine for each view of an image.

        Args:
            engine: What runs the model.
        """
        self.engine = engine

    @property
    def needs_suppression(self) -> bool:
        """Whether several predictions may be of one object: always, because each view may have one."""
        return True

    @torch.inference_mode()
    def decode(self, images: Tensor) -> Tensor:
        """Compute the decoded predictions of a batch.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.

        Returns:
            Predictions (B, 3 * boxes, 5 + classes): cx, cy, w, h in pixels of `images`, objectness and class
            probabilities.
        """
        found = []
        for scale, mirrored in _VIEWS:
            predictions = self.engine.decode(_view(images, scale=scale, mirrored=mirrored)).float()
            boxes = predictions[..., :4] / scale
            if mirrored:
                boxes = torch.cat((images.shape[3] - boxes[..., :1], boxes[..., 1:]), dim=-1)
            found.append(torch.cat((boxes, predictions[..., 4:]), dim=-1))
        return torch.cat(found, dim=1)


def _view(images: Tensor, *, scale: float, mirrored: bool) -> Tensor:
    """Return images of the same size whose content is mirrored, then shrunk into the upper left corner."""
    view = images.flip(3) if mirrored else images
    if scale == 1.0:
        return view
    height, width = images.shape[2:]
    size = (round(height * scale), round(width * scale))
    smaller = interpolate(view.float(), size=size, mode="bilinear", align_corners=False).round().to(torch.uint8)
    return pad(smaller, (0, width - size[1], 0, height - size[0]), value=FILL)
