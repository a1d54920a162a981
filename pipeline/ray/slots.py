"""Divide the nodes among trainings that run at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from pipeline.params import RaySettings
from pipeline.ray.cluster import connect, nodes_alive
from pipeline.ray.environment import cluster_address
from pipeline.ray.placement import Node, WorkerResources, choose_resources, room, this_machine
from yolov7.system.threads import usable_cpus


@dataclass(frozen=True)
class Slot:
    """The CPUs and GPUs of one worker.

    Attributes:
        node: The number of the node.
        cpus: Number of CPUs.
        gpus: The numbers of the GPUs on that node.
        gpu_share: The share of each of these GPUs.
    """

    node: int
    cpus: int
    gpus: tuple[int, ...]
    gpu_share: float


@final
class FreeRoom:
    """The CPUs and GPUs of nodes that no training of this command uses."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Begin with nodes that are not used."""
        self._cpus = [node.cpus for node in nodes]
        self._gpus = [[1.0] * int(node.gpus) for node in nodes]

    def take(self, settings: RaySettings) -> tuple[Slot, ...] | None:
        """Take the room of all workers of a training.

        Args:
            settings: From `divide`, with numbers in the place of `auto`.

        Returns:
            One slot for each worker; None if there is no room, and then nothing is taken.
        """
        assert settings.cpus_per_worker != "auto"
        assert settings.gpus_per_worker != "auto"
        taken: list[Slot] = []
        for _ in range(settings.fewest_workers):
            slots = (self._find(i, settings.cpus_per_worker, settings.gpus_per_worker) for i in range(len(self._cpus)))
            slot = next((slot for slot in slots if slot is not None), None)
            if slot is None:
                self.give_back(taken)
                return None
            self._add(slot, -1)
            taken.append(slot)
        return tuple(taken)

    def give_back(self, slots: Sequence[Slot]) -> None:
        """Give back what `take` returned."""
        for slot in slots:
            self._add(slot, 1)

    def _find(self, node: int, cpus: int, gpus: float) -> Slot | None:
        share = min(gpus, 1.0)
        free = [number for number, left in enumerate(self._gpus[node]) if left >= share - 1e-6] if gpus else []
        wanted = round(gpus / share) if gpus else 0
        if self._cpus[node] < cpus or len(free) < wanted:
            return None
        return Slot(node, cpus, tuple(free[:wanted]), share)

    def _add(self, slot: Slot, sign: int) -> None:
        self._cpus[slot.node] += sign * slot.cpus
        for number in slot.gpus:
            self._gpus[slot.node][number] += sign * slot.gpu_share


def divide(settings: RaySettings, nodes: Sequence[Node], *, trainings: int) -> RaySettings:
    """Return the settings with which each of several trainings runs at the same time as the others.

    Args:
        settings: Where the training would run if it were alone.
        nodes: The nodes.
        trainings: The number of trainings that should run at the same time, if there is room for so many.

    Returns:
        The settings with the fewest workers, and with numbers in the place of `auto`: the GPUs as for a training that
        is alone, and an equal share of the CPUs.
    """
    workers, gpus = settings.fewest_workers, choose_resources(settings, nodes).gpus
    least = WorkerResources(1 if settings.cpus_per_worker == "auto" else settings.cpus_per_worker, gpus)
    at_once = max(1, min(trainings, room(nodes, least) // workers))
    together = settings.model_copy(update={"workers": workers * at_once, "gpus_per_worker": gpus})
    cpus = choose_resources(together, nodes).cpus
    return settings.model_copy(update={"workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": gpus})


def find_nodes(settings: RaySettings) -> list[Node]:
    """Return the nodes of the cluster that RAY_ADDRESS names; without this variable, this machine only.

    Args:
        settings: With which the cluster is joined.

    Raises:
        ClusterError: If the cluster cannot be reached.
    """
    if cluster_address() is not None:
        with connect(settings):
            return nodes_alive()
    return [this_machine(usable_cpus())]
