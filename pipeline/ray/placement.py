"""Where workers have room: counted node by node, for a worker cannot be spread over two of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from pipeline.params import RaySettings

LOOK_SECONDS = 5.0  # between two looks at a cluster's nodes


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, with all that it lends out."""

    name: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Share:
    """What a worker gets."""

    cpus: int
    gpus: float = 0.0

    def __str__(self) -> str:
        return f"{self.cpus} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")

    def resources(self) -> dict[str, float]:
        """As Ray calls them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def room(nodes: Sequence[Node], share: Share) -> int:
    """How many workers find their share, each on one node."""
    return sum(_room_on(node, share) for node in nodes)


def choose_share(settings: RaySettings, nodes: Sequence[Node]) -> Share:
    """What the settings say, and for `auto` what suits the nodes.

    A GPU each where there is one for each of the fewest workers; and the most CPUs with which no fewer workers have
    room than with one. On nodes of different size that is less than the cluster's CPUs divided by the workers.
    """
    gpus = settings.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if sum(int(node.gpus) for node in nodes) >= settings.fewest_workers else 0.0
    if settings.cpus_per_worker != "auto":
        return Share(settings.cpus_per_worker, gpus)
    workers = min(settings.most_workers, max(settings.fewest_workers, room(nodes, Share(1, gpus))))
    most = int(max((node.cpus for node in nodes), default=1))
    fitting = (cpus for cpus in range(most, 1, -1) if room(nodes, Share(cpus, gpus)) >= workers)
    return Share(next(fitting, 1), gpus)


def lack_of_room(settings: RaySettings, nodes: Sequence[Node], share: Share) -> str | None:
    """What to tell where not even the fewest workers have room; None where they have."""
    found = room(nodes, share)
    if found >= settings.fewest_workers:
        return None
    there = ", ".join(f"{node.name} {Share(int(node.cpus), node.gpus)}" for node in nodes) or "no node"
    return (
        f"there is room for {found} of {settings.fewest_workers} workers with {share} each (train.workers, "
        f"train.cpus_per_worker, train.gpus_per_worker); there are: {there}. Ask for less, or add nodes"
    )


@final
class Lookout:
    """Watches that there is room for the fewest workers: Ray itself would wait in silence, and for ever.

    What `lack` says to be missing is told at once; a ValueError when it is still missing `patience` seconds later.
    """

    def __init__(self, lack: Callable[[], str | None], *, patience: float, say: Callable[[str], None]) -> None:
        self._lack, self._patience, self._say = lack, patience, say
        self._looked, self._lacking_since = time.monotonic(), 0.0  # at first, workers may be on their way

    def look(self) -> None:
        """To be called often."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        lack = self._lack()
        if lack is None:
            self._lacking_since = 0.0
        elif not self._lacking_since:
            self._lacking_since = now
            self._say(f"waits up to {self._patience:g} s (train.start_timeout): {lack}")
        elif now - self._lacking_since > self._patience:
            raise ValueError(f"{lack}; {self._patience:g} s (train.start_timeout) were in vain")


def _room_on(node: Node, share: Share) -> int:
    by_cpus = int(node.cpus // share.cpus)
    return min(by_cpus, int(node.gpus // share.gpus)) if share.gpus else by_cpus
