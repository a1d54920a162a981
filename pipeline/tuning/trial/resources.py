"""Which share of a cluster each trial gets, and how many trials run at the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.ray.placement import Node
from yolov7.errors import SettingError

_RAY_RESOLUTION = 10_000  # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class TrialResources:
    """The resources of each trial.

    Attributes:
        cpus: CPUs of a trial.
        gpus: GPUs of a trial, which may be a fraction.
        concurrent_trials: How many trials have room at the same time.
        device_threads: CPU threads for a measurement that has a device to itself.
    """

    cpus: int
    gpus: float
    concurrent_trials: int
    device_threads: int

    @property
    def device(self) -> str:
        """The name of the torch device."""
        return "cuda" if self.gpus else "cpu"

    @property
    def loader_workers(self) -> int:
        """Processes that prepare samples: none if a trial has only one CPU."""
        return min(self.cpus - 1, 8)


def choose_resources(nodes: Sequence[Node], *, trials_per_gpu: int) -> TrialResources:
    """Choose the resources of a trial, counted node by node because a trial cannot use two nodes.

    With GPUs, each GPU runs the given number of trials, and a trial gets as many CPUs as possible without reducing
    the number of trials. Without GPUs, a trial gets one CPU.

    Args:
        nodes: The nodes of the cluster.
        trials_per_gpu: How many trials share a GPU.

    Raises:
        SettingError: If no node has room for a trial.
    """
    on_gpus = any(node.gpus >= 1 for node in nodes)

    def room(cpus: int) -> int:
        by_cpus = [int(node.cpus) // cpus for node in nodes]
        by_gpus = [int(node.gpus) * trials_per_gpu for node in nodes]
        return sum(map(min, by_cpus, by_gpus)) if on_gpus else sum(by_cpus)

    concurrent = room(1)
    if not concurrent:
        listed = ", ".join(f"{node.name} {node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "none"
        raise SettingError(f"no node of the cluster has room for a trial (nodes: {listed}); add a node with a CPU")
    most_cpus = int(max(node.cpus for node in nodes))
    if not on_gpus:
        return TrialResources(cpus=1, gpus=0.0, concurrent_trials=concurrent, device_threads=most_cpus)
    cpus = next(number for number in range(most_cpus, 0, -1) if room(number) == concurrent)
    gpus = math.floor(_RAY_RESOLUTION / trials_per_gpu) / _RAY_RESOLUTION
    return TrialResources(cpus=cpus, gpus=gpus, concurrent_trials=concurrent, device_threads=cpus)
