"""What all losses have in common: their parts, and the selection of the outputs that they depend on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from yolov7.criterion.assigners import HeadsAssignment
from yolov7.criterion.candidates import Assignment
from yolov7.structures import HeadMaps, Targets

SumOverRanks = Callable[[Tensor], Tensor]  # sums a tensor over the processes that share a batch


class LossParts(NamedTuple):
    """The loss of a batch and its parts, scalar float32 tensors.

    If several processes share a batch, each of them has its own addends. Summed over the processes, they are the loss
    of the whole batch.

    Attributes:
        total: The sum of the parts times the batch size, or times the share of the batch in the nominal batch for
            losses whose learning rate is stated for a mean. Differentiate this one.
        box: The part of the boxes, detached. It includes the losses of their distributions and of raw outputs.
        objectness: The part of the objectness, detached; 0 for heads without objectness.
        classification: The part of the classes, detached.
    """

    total: Tensor
    box: Tensor
    objectness: Tensor
    classification: Tensor


class Loss(ABC):
    """The loss of the raw maps of a model for the objects of a batch.

    It works on any device and computes in float32, whatever the type of the maps.
    """

    @abstractmethod
    def __call__(self, maps: HeadMaps, targets: Targets, *, sum_over_ranks: SumOverRanks | None = None) -> LossParts:
        """Return the loss of one batch. Images without objects are allowed, and so are batches without objects.

        Args:
            maps: Raw maps of the head.
            targets: The objects of the images.
            sum_over_ranks: Given if `maps` and `targets` are the share of one process in a larger batch. Means are then
                taken over the whole batch, because a mean of the means of all processes would weight matches
                differently. A process may have no images.

        Returns:
            The total to differentiate and the detached parts.
        """

    @abstractmethod
    def assign(self, maps: HeadMaps, targets: Targets) -> HeadsAssignment:
        """Return the positive cells of a batch.

        Args:
            maps: Raw maps of the head.
            targets: The objects of the images.

        Returns:
            The positives of the lead and of the auxiliary head.
        """


def select(cells: Assignment, channels: slice, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Select all outputs of some cells, and some outputs of all cells.

    Args:
        cells: The cells, by ascending level.
        channels: The outputs that are selected for all cells.
        maps: Raw maps (B, anchors, H, W, outputs), finest level first.

    Returns:
        Rows (p, outputs) of the given cells, and values (cells of all maps, channels), both float32.
    """
    rows, values = _Select.apply(cells, channels, *maps)  # type: ignore[no-untyped-call]
    return rows, values


class _Select(torch.autograd.Function):
    """See `select`. This is a single function so that the backward pass fills one buffer of the size of each map."""

    @staticmethod
    def forward(ctx: Any, cells: Assignment, channels: slice, *maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and the values."""
        levels = cells.per_level(len(maps))
        ctx.levels, ctx.channels = levels, channels
        ctx.maps = [m.detach() for m in maps]
        rows = [m[c.image, c.anchor, c.row, c.column].float() for m, c in zip(maps, levels, strict=True)]
        return torch.cat(rows), torch.cat([m[..., channels].flatten(0, 3).float() for m in maps])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of each map."""
        rows = torch.split(gradients[0], [len(cells) for cells in ctx.levels])
        values = torch.split(gradients[1], [m[..., 0].numel() for m in ctx.maps])
        spread = partial(_spread, ctx.channels)
        return None, None, *map(spread, ctx.maps, ctx.levels, rows, values)


def _spread(channels: slice, like: Tensor, cells: Assignment, rows: Tensor, values: Tensor) -> Tensor:
    """Return the gradient of a map from the gradients of the selected rows and of the values of all cells."""
    gradient = _zeros_like(like)
    gradient[..., channels] = values.view(*like.shape[:4], values.shape[1])
    numbers = ((cells.image * like.shape[1] + cells.anchor) * like.shape[2] + cells.row) * like.shape[3] + cells.column
    gradient.view(-1, like.shape[4]).index_add_(0, numbers, rows.to(like.dtype))
    return gradient


def _zeros_like(like: Tensor) -> Tensor:
    """Return contiguous zeros. On the CPU, numpy requests large zeroed pages, which takes a fifth of the time."""
    if like.device.type != "cpu" or not like.numel():
        return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    return torch.from_numpy(np.zeros(like.nbytes, np.uint8)).view(like.dtype).view(like.shape)
