"""The cells of a head with one prediction per cell, and label assignment that needs their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolov7.boxes import cxcywh_to_xyxy
from yolov7.criterion.candidates import Assignment
from yolov7.structures import Targets
from yolov7.system.shapes import Bool, Float, Int


def boxes_in_pixels(targets: Targets, *, size: Sequence[int], stride: int) -> Float[Tensor, "n 4"]:
    """Return the corners of objects.

    Args:
        targets: The objects.
        size: Height and width of a map of the images.
        stride: Stride of this map in pixels.

    Returns:
        Boxes xyxy (n, 4) float32 in pixels.
    """
    height, width = size
    scale = torch.tensor((width, height) * 2, dtype=torch.float32, device=targets.boxes_cxcywh.device) * stride
    return cxcywh_to_xyxy(targets.boxes_cxcywh.float() * scale)


@dataclass(frozen=True)
class Grid:
    """All cells of one image, ordered by level (finest first), row and column.

    Attributes:
        sizes: Height and width of each map.
        strides: Stride of each level in pixels.
        level: Level of each cell (N,) int64.
        row: Row of each cell in its map (N,) int64.
        column: Column of each cell in its map (N,) int64.
        stride: Stride of each cell in pixels (N,) float32.
        centre: Centre x, y of each cell in pixels (N, 2) float32.
    """

    sizes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    level: Tensor
    row: Tensor
    column: Tensor
    stride: Tensor
    centre: Tensor

    @staticmethod
    def of(maps: Sequence[Tensor], strides: Sequence[int]) -> Grid:
        """Return the cells of raw maps.

        Args:
            maps: Raw maps (B, 1, H, W, outputs), finest level first; only their shapes and device are used.
            strides: Stride of each level in pixels.

        Returns:
            The cells on the device of the maps.
        """
        device = maps[0].device
        sizes = tuple((m.shape[2], m.shape[3]) for m in maps)
        places = [torch.ones(size, dtype=torch.bool, device=device).nonzero() for size in sizes]
        counts = torch.tensor([height * width for height, width in sizes], device=device)
        level = torch.arange(len(sizes), device=device).repeat_interleave(counts)
        row, column = torch.cat(places).unbind(1)
        stride = torch.tensor(strides, dtype=torch.float32, device=device)[level]
        centre = (torch.stack((column, row), dim=1) + 0.5) * stride[:, None]
        return Grid(sizes, tuple(strides), level, row, column, stride, centre)

    def __len__(self) -> int:
        """Return the number of cells of one image."""
        return self.level.shape[0]

    def boxes_px(self, targets: Targets) -> Float[Tensor, "n 4"]:
        """Return the corners of objects; see `boxes_in_pixels`."""
        return boxes_in_pixels(targets, size=self.sizes[0], stride=self.strides[0])

    def widened(self, boxes_xyxy: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        """Return boxes whose sides are at least two strides of the finest level, so that they contain four cells of it.

        Args:
            boxes_xyxy: Corners (n, 4) in pixels.

        Returns:
            Corners (n, 4) in pixels. A side that is widened keeps its centre, except near the border of the image.
        """
        height, width = (side * self.strides[0] for side in self.sizes[0])
        low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
        half = 1.001 * self.strides[0]  # beyond centres of cells that are exactly one stride away
        centre = (low + high) / 2
        limit = centre.new_tensor((width, height))
        inner = torch.minimum(centre.clamp(min=half), limit - half)
        is_small = high - low < 2 * half
        return torch.cat((torch.where(is_small, inner - half, low), torch.where(is_small, inner + half, high)), dim=1)

    def between(self, low: Float[Tensor, "n 2"], high: Float[Tensor, "n 2"], *, levels: slice) -> Bool[Tensor, "n m"]:
        """Return which centres are strictly inside rectangles.

        Args:
            low: Smallest x, y (n, 2) in pixels.
            high: Largest x, y (n, 2) in pixels.
            levels: The levels to compare.

        Returns:
            A mask (n, cells of these levels).
        """
        masks = []
        for (height, width), stride in zip(self.sizes[levels], self.strides[levels], strict=True):
            x = (torch.arange(width, dtype=low.dtype, device=low.device) + 0.5) * stride
            y = (torch.arange(height, dtype=low.dtype, device=low.device) + 0.5) * stride
            in_column = (x > low[:, :1]) & (x < high[:, :1])
            in_row = (y > low[:, 1:]) & (y < high[:, 1:])
            masks.append((in_row[:, :, None] & in_column[:, None]).flatten(1))
        return torch.cat(masks, dim=1)

    def inside(self, boxes_xyxy: Float[Tensor, "n 4"]) -> Bool[Tensor, "n m"]:
        """Return which centres are strictly inside boxes.

        Args:
            boxes_xyxy: Corners (n, 4) in pixels.

        Returns:
            A mask (n, cells).
        """
        return self.between(boxes_xyxy[:, :2], boxes_xyxy[:, 2:], levels=slice(None))

    def pairs_inside(self, boxes_xyxy: Float[Tensor, "n 4"]) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """Return all pairs of a box and a cell whose centre is strictly inside it.

        The cells of a level that are inside a box are a rectangle of rows and columns. The pairs are therefore listed
        without comparing every box with every cell.

        Args:
            boxes_xyxy: Corners (n, 4) in pixels.

        Returns:
            The index of the box and the cell of each pair, ordered by box and cell.
        """
        device, rectangles, start = boxes_xyxy.device, [], 0
        for (height, width), stride in zip(self.sizes, self.strides, strict=True):
            row, rows = _span(boxes_xyxy[:, 1], boxes_xyxy[:, 3], count=height, stride=stride)
            column, columns = _span(boxes_xyxy[:, 0], boxes_xyxy[:, 2], count=width, stride=stride)
            first = start + row * width + column
            rectangles.append(torch.stack((first, columns, rows * columns, torch.full_like(first, width)), dim=1))
            start += height * width
        first, columns, counts, widths = torch.stack(rectangles, dim=1).flatten(0, 1).unbind(1)  # n levels
        rectangle = torch.arange(len(counts), device=device).repeat_interleave(counts)
        place = torch.arange(len(rectangle), device=device) - (counts.cumsum(0) - counts)[rectangle]
        row = place.div(columns[rectangle], rounding_mode="floor")
        cell = first[rectangle] + place + row * (widths - columns)[rectangle]
        return rectangle // len(self.sizes), cell

    def near(self, centres: Float[Tensor, "n 2"], *, radius: float) -> Bool[Tensor, "n m"]:
        """Return which centres of cells are strictly inside squares around points.

        Args:
            centres: Points x, y (n, 2) in pixels.
            radius: Half the side of the squares in strides of the level of the cell.

        Returns:
            A mask (n, cells).
        """
        masks = [
            self.between(centres - radius * stride, centres + radius * stride, levels=slice(level, level + 1))
            for level, stride in enumerate(self.strides)
        ]
        return torch.cat(masks, dim=1)

    def assignment(self, image: Int[Tensor, " p"], cell: Int[Tensor, " p"], target: Int[Tensor, " p"]) -> Assignment:
        """Describe positive cells by ascending level; cells of one level keep their order.

        Args:
            image: Index of the image of each cell in the batch.
            cell: Position of the cell among those of its image.
            target: Index of the object of each cell.

        Returns:
            The cells.
        """
        order = torch.argsort(self.level[cell], stable=True)
        image, cell, target = image[order], cell[order], target[order]
        return Assignment(self.level[cell], image, torch.zeros_like(image), self.row[cell], self.column[cell], target)

    def take(
        self, maps: Sequence[Tensor], image: Int[Tensor, " p"], cell: Int[Tensor, " p"], channels: slice | Tensor
    ) -> Tensor:
        """Return outputs of some cells.

        Args:
            maps: Raw maps (B, 1, H, W, outputs), finest level first.
            image: Index of the image of each cell in the batch.
            cell: Position of the cell among those of its image.
            channels: The outputs of every cell, or one output (p,) int64 for each.

        Returns:
            Values (p, outputs) or (p,) in float32.
        """
        places, values, start = [], [], 0
        for m in maps:
            size, outputs = m.shape[2] * m.shape[3], m.shape[4]
            here = ((cell >= start) & (cell < start + size)).nonzero()[:, 0]
            row = image[here] * size + cell[here] - start
            if isinstance(channels, Tensor):
                found = m.flatten().index_select(0, row * outputs + channels[here])
            else:
                found = m.flatten(0, 3)[:, channels].index_select(0, row)
            values.append(found.float())
            places.append(here)
            start += size
        result = torch.empty((len(cell), *values[0].shape[1:]), dtype=torch.float32, device=cell.device)
        for here, found in zip(places, values, strict=True):
            result.index_copy_(0, here, found)
        return result


def _span(
    low: Float[Tensor, " n"], high: Float[Tensor, " n"], *, count: int, stride: int
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the first of the rows (or columns) with centres strictly between two coordinates, and their number."""
    centre = (torch.arange(count, dtype=low.dtype, device=low.device) + 0.5) * stride
    first = (centre <= low[:, None]).sum(1)
    return first, ((centre < high[:, None]).sum(1) - first).clamp(min=0)
