"""One process of a training run, and the communication between the processes of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class Worker:
    """One process of a run. If there are several, the default process group must have been initialised before.

    Attributes:
        device: The device that this process trains on.
        rank: The number of this process.
        world_size: The number of processes.
        loader_workers: How many processes prepare samples for this one; 0 means that it prepares them itself.
        processes_on_machine: How many processes of this machine train, this one included, in this run and in others.
        sync_batch_norm: Whether the statistics of batch norm are computed over the images of all processes.
        follows_load: Whether a run on the CPU may use fewer threads than torch is set to, if other processes are busy
            when it begins.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    loader_workers: int = 0
    processes_on_machine: int = 1
    sync_batch_norm: bool = False
    follows_load: bool = False

    @property
    def is_lead(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.rank == 0

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Combine flags over all processes.

        Args:
            flags: Any number of flags, the same number in every process.

        Returns:
            For each flag whether it is set in at least one process; the same in every process.
        """
        if self.world_size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.float32, device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def sum_over_workers(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes.

        Args:
            values: A tensor of the same shape in every process; it is not changed.

        Returns:
            The sum, the same in every process.
        """
        if self.world_size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def average_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their mean over all processes.

        Args:
            tensors: Tensors of the same shapes, in the same order, in every process.
        """
        for tensor in tensors:
            tensor.copy_(self.sum_over_workers(tensor) / self.world_size)

    def broadcast_from_lead(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the leading process.

        Args:
            tensors: Tensors of the same shapes, in the same order, in every process.
        """
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Value) -> list[Value]:
        """Collect a value from every process.

        Args:
            value: A value that can be pickled.

        Returns:
            The values by rank, the same list in every process.
        """
        if self.world_size == 1:
            return [value]
        values: list[Value | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def wait_for_all(self) -> None:
        """Wait until every process has called this method."""
        if self.world_size > 1:
            dist.barrier()
