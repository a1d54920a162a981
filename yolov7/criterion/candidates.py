"""Candidates of label assignment: the cells and anchors that may become positive for an object (section 4.2).

A *candidate* is a pair of cell and anchor: the cell is near the centre of an object, and the anchor fits the shape of
the object. Candidates have a fixed order, which also breaks ties (the first candidate wins): level, kind of neighbour
(own cell, left, upper, right, lower), anchor, object. If duplicates are merged, the order is level, image, anchor, row,
column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolov7.structures import Targets
from yolov7.system.shapes import Bool, Float, Int

FINE, COARSE = 0.5, 1.0  # largest distance, in cells, from a centre to neighbouring cells that are candidates too


@dataclass(frozen=True)
class Assignment:
    """Cells with the object that each belongs to, as flat int64 tensors (p,), by ascending level.

    Attributes:
        level: Level of the cell, 0 for the finest.
        image: Index of the image in the batch.
        anchor: Index of the anchor within the level.
        row: Row of the cell in the map.
        column: Column of the cell in the map.
        target: Index of the object in the `Targets` of the batch.
    """

    level: Tensor
    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    target: Tensor

    def take(self, index: Tensor) -> Assignment:
        """Return the entries at the given positions.

        Args:
            index: Positions (k,) int64, or a mask (p,) bool.

        Returns:
            The entries in the order of `index`.
        """
        fields = (self.level, self.image, self.anchor, self.row, self.column, self.target)
        return Assignment(*(field[index] for field in fields))

    def per_level(self, num_levels: int) -> tuple[Assignment, ...]:
        """Split the entries by level.

        Args:
            num_levels: Number of levels of the head.

        Returns:
            One assignment per level, some of which may be empty.
        """
        sizes = torch.bincount(self.level, minlength=num_levels).tolist()
        fields = (self.level, self.image, self.anchor, self.row, self.column, self.target)
        return tuple(Assignment(*parts) for parts in zip(*(torch.split(field, sizes) for field in fields), strict=True))

    def __len__(self) -> int:
        """Return the number of entries."""
        return self.level.shape[0]


@dataclass(frozen=True)
class Anchors:
    """The anchors of a head.

    Attributes:
        px: Width and height (levels, anchors, 2) in pixels, finest level first.
        strides: Stride of each level in pixels.
    """

    px: Tensor
    strides: tuple[int, ...]

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Copy the anchors to a device.

        Args:
            device: The device.

        Returns:
            `px` (levels, anchors, 2) and the strides (levels,), both float32.
        """
        px = self.px.to(device=device, dtype=torch.float32)
        return px, torch.tensor(self.strides, dtype=torch.float32, device=device)

    def of(self, cells: Assignment) -> Tensor:
        """Return the anchors of cells.

        Args:
            cells: Cells of this head.

        Returns:
            Width and height (p, 2) in units of the cell size.
        """
        px, strides = self.on(cells.level.device)
        return (px / strides[:, None, None])[cells.level, cells.anchor]


def find_candidates(
    targets: Targets, *, maps: Sequence[Tensor], anchors: Anchors, threshold: float, reach: float = FINE
) -> Assignment:
    """Return the candidates of all objects, each with the object that proposes it.

    The cell of the centre of an object is a candidate, and so are the neighbouring cells within `reach`.

    Args:
        targets: The objects of the batch.
        maps: Raw maps (B, anchors, H, W, 5 + classes), of which only the shapes are used.
        anchors: Anchors and strides of the head.
        threshold: An anchor fits if the ratio of each of its sides to the side of the object, or the inverse ratio, is
            below this.
        reach: Largest distance in cells from the centre to a neighbouring cell: 0.5 (fine) gives at most 3 cells per
            object and anchor, 1.0 (coarse) at most 5.

    Returns:
        The candidates in the order that the module describes.
    """
    boxes = targets.boxes_cxcywh.float()
    anchors_px, strides = anchors.on(boxes.device)
    grid = torch.tensor([(m.shape[3], m.shape[2]) for m in maps], device=boxes.device)  # nl 2, width first
    grid_f = grid[:, None].float()
    centre, size = boxes[:, :2] * grid_f, boxes[:, 2:] * grid_f  # nl n 2, in cells
    ratio = size[:, None] / (anchors_px / strides[:, None, None])[:, :, None]  # nl na n 2
    fits = torch.maximum(ratio, 1 / ratio).amax(-1) < threshold
    kinds = _neighbours(centre, grid_f - centre, reach=reach)
    level, kind, anchor, target = (kinds[:, :, None] & fits[:, None]).nonzero(as_tuple=True)
    steps = boxes.new_tensor([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)]) * reach
    cell = (centre[level, target] - steps[kind]).long().clamp_(min=0)
    column, row = torch.minimum(cell, grid[level] - 1).unbind(-1)
    return Assignment(level, targets.image[target], anchor, row, column, target)


def _neighbours(
    from_low: Float[Tensor, "nl n 2"], from_high: Float[Tensor, "nl n 2"], *, reach: float
) -> Bool[Tensor, "nl 5 n"]:
    """Return which cells (own, left, upper, right, lower) a centre takes, from its distances to the grid borders."""
    low = (from_low % 1 < reach) & (from_low > 1)
    high = (from_high % 1 < reach) & (from_high > 1)
    own = torch.ones_like(low[..., 0])
    return torch.stack((own, low[..., 0], low[..., 1], high[..., 0], high[..., 1]), dim=1)


def distinct_cells(candidates: Assignment, *, maps: Sequence[Tensor]) -> Assignment:
    """Return every cell once, ordered by level, image, anchor, row, column.

    Args:
        candidates: Cells, some of which may occur several times.
        maps: Raw maps (B, anchors, H, W, 5 + classes), of which only the shapes are used.

    Returns:
        The first entry of each cell.
    """
    numbers, order = torch.sort(cell_numbers(candidates, maps=maps), stable=True)
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[1:] = numbers[1:] != numbers[:-1]
    return candidates.take(order[first])


def cell_numbers(cells: Assignment, *, maps: Sequence[Tensor]) -> Int[Tensor, " p"]:
    """Number the cells over all maps, counted by level, image, anchor, row, column.

    Args:
        cells: The cells to number.
        maps: Raw maps (B, anchors, H, W, 5 + classes), of which only the shapes are used.

    Returns:
        Numbers (p,) int64.
    """
    sizes = torch.tensor([m.shape[:4] for m in maps], device=cells.level.device)  # nl 4: B na H W
    starts = sizes.prod(1).cumsum(0) - sizes.prod(1)
    _, num_anchors, height, width = sizes[cells.level].unbind(1)
    plane = cells.image * num_anchors + cells.anchor
    return starts[cells.level] + (plane * height + cells.row) * width + cells.column
