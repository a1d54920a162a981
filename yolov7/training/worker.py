"""The place of a process in a run, and what the processes of a run tell each other."""

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
    """One process of a run; with more than one, the process group is set up already."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    loader_workers: int = 0
    processes_on_machine: int = 1  # that train at the same time, this one included; they share the machine's memory
    sync_batch_norm: bool = False  # statistics over all workers' images

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is raised on any worker; all workers get the same answer."""
        if self.world_size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.float32, device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def sum_of(self, values: Tensor) -> Tensor:
        """The sum over all workers; all get the same."""
        if self.world_size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Puts the mean over all workers into each tensor."""
        for tensor in tensors:
            tensor.copy_(self.sum_of(tensor) / self.world_size)

    def follow_lead(self, tensors: Iterable[Tensor]) -> None:
        """Puts the leading worker's values into each tensor."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Value) -> list[Value]:
        """What each worker has, by rank; all get the same."""
        if self.world_size == 1:
            return [value]
        values: list[Value | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def wait_for_all(self) -> None:
        """Returns when every worker is here."""
        if self.world_size > 1:
            dist.barrier()
