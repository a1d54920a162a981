"""SimOTA, the label assignment of YOLOX (Ge et al., 2021, section 2.1), batched over the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from yolov7.boxes import cxcywh_to_xyxy
from yolov7.criterion.assigners import MAX_K, Assigner
from yolov7.criterion.candidates import Assignment
from yolov7.criterion.grid import Grid
from yolov7.criterion.matching import (
    ByImage,
    ObjectBoxes,
    Predictions,
    chunks_of_images,
    class_costs,
    match_cheapest,
)
from yolov7.structures import Targets

SimOtaRule = Literal["r25", "r15"]

_MAX_LOG_SIDE = 20.0  # keeps the area of a predicted box finite in float32


class SimOtaAssigner(Assigner):
    """Give every object its cheapest cells by the predictions of a head with one box and objectness per cell.

    Each object takes k cells, where k is the sum of its ten largest IoUs. A cell that several objects take goes to the
    object of the image for which its cost is lowest. Cells that are not near the centre of an object are its last
    choice: the original adds a large number to their cost; here they are sorted behind all others, so that their costs
    keep their precision.
    """

    def __init__(self, strides: tuple[int, ...], *, rule: SimOtaRule = "r25") -> None:
        """Set the parameters.

        Args:
            strides: Stride of each level in pixels.
            rule: `r25`, of the published weights: a cell is a candidate if its centre is in the box of an object or
                within 2.5 strides of its centre, and a first choice of an object if both hold. `r15`, of later
                versions: a cell is a candidate, and a first choice, within 1.5 strides of the centre.
        """
        self._strides = strides
        self._rule = rule

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], targets: Targets) -> Assignment:
        """Return the positives of a batch; see `Assigner`. The maps have one prediction per cell."""
        grid, num_images = Grid.of(maps, self._strides), maps[0].shape[0]
        objects = ObjectBoxes(grid.boxes_px(targets), targets.label)
        by_object = ByImage.group(targets.image, num_images=num_images)
        images = [targets.image[:0]]
        cells, owners = list(images), list(images)
        for chunk in chunks_of_images([len(grid)] * num_images, by_object.sizes):
            target, is_object = by_object.padded(chunk)
            candidate, is_first_choice = self._regions(grid, objects.boxes_xyxy[target], is_object)
            place, cell = candidate.any(1).nonzero(as_tuple=True)
            if not len(cell):
                continue
            image = torch.tensor(chunk, device=cell.device)[place]
            predictions = _predict(grid, maps, image, cell)
            index, exists = ByImage.group(place, num_images=len(chunk)).padded(range(len(chunk)))
            last = ~is_first_choice.gather(2, cell[index][:, None].expand(-1, target.shape[1], -1))
            chosen, owner = match_cheapest(
                predictions, objects, (index, exists), (target, is_object), MAX_K, is_last_choice=last
            )
            images.append(image[chosen])
            cells.append(cell[chosen])
            owners.append(owner)
        return grid.assignment(torch.cat(images), torch.cat(cells), torch.cat(owners))

    def _regions(self, grid: Grid, boxes_xyxy: Float[Tensor, "b g 4"], is_object: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidates and the first choices (b, g, N) of each object."""
        flat = boxes_xyxy.flatten(0, 1)
        shape = (*is_object.shape, len(grid))
        near = grid.near((flat[:, :2] + flat[:, 2:]) / 2, radius=2.5 if self._rule == "r25" else 1.5).view(shape)
        near &= is_object[..., None]
        if self._rule == "r15":
            return near, near
        inside = grid.inside(flat).view(shape) & is_object[..., None]
        return near | inside, near & inside


def decode_yolox(raw: Float[Tensor, "p 4"], corner: Float[Tensor, "p 2"], stride: Float[Tensor, " p"]) -> Tensor:
    """Decode raw boxes.

    Args:
        raw: Raw x, y, w, h (p, 4).
        corner: Column and row of the cells (p, 2).
        stride: Stride of the cells (p,) in pixels.

    Returns:
        Boxes cx, cy, w, h (p, 4) in pixels.
    """
    size = raw[:, 2:].clamp(max=_MAX_LOG_SIDE).exp()
    return torch.cat((raw[:, :2] + corner, size), dim=1) * stride[:, None]


def _predict(grid: Grid, maps: Sequence[Tensor], image: Tensor, cell: Tensor) -> Predictions:
    rows = grid.take(maps, image, cell, slice(None))
    corner = torch.stack((grid.column[cell], grid.row[cell]), dim=1)
    boxes = decode_yolox(rows[:, :4], corner, grid.stride[cell])
    negatives, switch = class_costs(rows[:, 5:], rows[:, 4])
    return Predictions(cxcywh_to_xyxy(boxes), negatives, switch)
