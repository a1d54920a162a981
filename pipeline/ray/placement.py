"""Count how many workers fit on the nodes of a cluster. A worker cannot be spread over two nodes."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.params import RaySettings
from yolov7.errors import SettingError
from yolov7.settings import TrainSettings


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        name: The host name.
        cpus: All CPUs that the node offers to Ray, used or not.
        gpus: All GPUs that the node offers to Ray, used or not.
    """

    name: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class WorkerResources:
    """What each worker gets.

    Attributes:
        cpus: Number of CPUs.
        gpus: Number of GPUs; may be a fraction.
    """

    cpus: int
    gpus: float = 0.0

    def __str__(self) -> str:
        """Return the resources as messages name them."""
        return f"{self.cpus} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")

    def as_dict(self) -> dict[str, float]:
        """Return the resources under the names that Ray gives them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def room(nodes: Sequence[Node], resources: WorkerResources) -> int:
    """Return how many workers fit on the nodes.

    Args:
        nodes: The nodes of the cluster.
        resources: What each worker needs on one node.

    Returns:
        The sum over the nodes.
    """
    return sum(_room_on(node, resources) for node in nodes)


def choose_resources(settings: RaySettings, nodes: Sequence[Node]) -> WorkerResources:
    """Return what each worker gets: what the settings say, and for `auto` what suits the nodes.

    `auto` gives each worker one GPU if there are enough for the fewest workers. It gives each worker the most CPUs
    with which as many workers fit as with one CPU each. If the nodes differ in size, that is less than the CPUs of the
    cluster divided by the number of workers.

    Args:
        settings: Where training runs.
        nodes: The nodes of the cluster.

    Returns:
        The resources of one worker.
    """
    gpus = settings.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if sum(int(node.gpus) for node in nodes) >= settings.fewest_workers else 0.0
    if settings.cpus_per_worker != "auto":
        return WorkerResources(settings.cpus_per_worker, gpus)
    workers = min(settings.most_workers, max(settings.fewest_workers, room(nodes, WorkerResources(1, gpus))))
    most = int(max((node.cpus for node in nodes), default=1))
    fitting = (cpus for cpus in range(most, 1, -1) if room(nodes, WorkerResources(cpus, gpus)) >= workers)
    return WorkerResources(next(fitting, 1), gpus)


def lack_of_room(settings: RaySettings, nodes: Sequence[Node], resources: WorkerResources) -> str | None:
    """Return a message if not even the fewest workers fit on the nodes, else None.

    Args:
        settings: Where training runs.
        nodes: The nodes of the cluster.
        resources: What each worker needs on one node.

    Returns:
        What was asked for, what the nodes offer, and the remedy.
    """
    found = room(nodes, resources)
    if found >= settings.fewest_workers:
        return None
    offers = ", ".join(f"{node.name} with {WorkerResources(int(node.cpus), node.gpus)}" for node in nodes) or "none"
    return (
        f"there is room for {found} of {settings.fewest_workers} workers with {resources} each (ray.workers, "
        f"ray.cpus_per_worker, ray.gpus_per_worker); the nodes are: {offers}. Ask for less, or add nodes"
    )


def this_machine(cpus: int) -> Node:
    """Return this machine as a node with all of its GPUs.

    Args:
        cpus: The CPUs that may be used.

    Returns:
        The node.
    """
    import torch

    return Node(socket.gethostname(), cpus=cpus, gpus=torch.cuda.device_count())


def check_batch_norm(settings: TrainSettings, resources: WorkerResources) -> None:
    """Check that the workers can share their batch norm statistics.

    Args:
        settings: The settings of the training.
        resources: What each worker gets.

    Raises:
        SettingError: If they should, but have no GPU.
    """
    if settings.sync_batch_norm and not resources.gpus:
        raise SettingError(
            f"train.sync_batch_norm=true needs GPUs, because torch synchronises batch norm only there, but each worker "
            f"gets {resources}; use train.sync_batch_norm: false"
        )


def _room_on(node: Node, resources: WorkerResources) -> int:
    by_cpus = int(node.cpus // resources.cpus)
    return min(by_cpus, int(node.gpus // resources.gpus)) if resources.gpus else by_cpus
