"""The place of a process in a run, and what the processes of a run tell each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Worker:
    """One process of a run; with more than one, the process group is set up already."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    loader_workers: int = 0

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

    def wait_for_all(self) -> None:
        """Returns when every worker is here."""
        if self.world_size > 1:
            dist.barrier()
