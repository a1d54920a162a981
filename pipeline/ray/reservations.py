"""Reserve room for workers in a cluster that others use too, with Ray's placement groups.

Ray does not report what is free on each node. A placement group is the documented way to find out: it waits until
there is room, a cluster that grows on demand grows for it, and Ray removes it when the process that asked for it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, final

from pipeline.params import RaySettings
from pipeline.ray.errors import ClusterError
from pipeline.ray.placement import WorkerResources

LOOK_SECONDS = 5.0  # between two looks at what is missing
_SETTLE_SECONDS = 2.0  # within which Ray grants all further reservations for which there is room now


@final
class Reservations:
    """Room for the fewest workers, reserved as a whole, and for further workers, reserved one by one.

    The room is given back before the training starts, because Ray Train reserves it for its own workers. If another
    job is faster, the training waits again.
    """

    def __init__(self, settings: RaySettings, resources: WorkerResources) -> None:
        """Reserve nothing yet.

        Args:
            settings: How many workers are wanted, and how they are placed.
            resources: What each worker needs on one node.
        """
        self._settings, self._bundle = settings, resources.as_dict()
        self._groups: list[Any] = []

    def wait_for_room(self, on_tick: Callable[[bool], None], *, tick_seconds: float) -> int:
        """Wait until there is room for the fewest workers.

        Args:
            on_tick: Called repeatedly, with whether there is room now. It ends the wait by raising.
            tick_seconds: The time between two calls.

        Returns:
            For how many workers there is room now. The room is free again when this returns.
        """
        settings = self._settings
        self._request(settings.fewest_workers)
        while not self._granted():
            on_tick(False)
            time.sleep(tick_seconds)
        self.request_more(settings.most_workers - settings.fewest_workers)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (granted := self._granted()) < len(self._groups) and time.monotonic() < deadline:
            on_tick(True)
            time.sleep(tick_seconds)
        self._release()
        return settings.fewest_workers + granted - 1

    def request_more(self, workers: int) -> None:
        """Reserve room for further workers, one by one, as soon as there is some.

        Args:
            workers: Their number.
        """
        for _ in range(workers):
            self._request(1)

    def has_room(self) -> bool:
        """Return whether any of the reservations was granted."""
        return self._granted() > 0

    def _release(self) -> None:
        from ray.util import remove_placement_group

        while self._groups:
            remove_placement_group(self._groups.pop())

    def _request(self, workers: int) -> None:
        from ray.util import placement_group

        self._groups.append(placement_group([self._bundle] * workers, strategy=self._settings.placement))

    def _granted(self) -> int:
        from ray.util import placement_group_table

        return sum(placement_group_table(group).get("state") == "CREATED" for group in self._groups)


@final
class Patience:
    """A limit to how long something may be missing; Ray itself would wait without a message and without a limit."""

    def __init__(self, find_lack: Callable[[], str | None], *, seconds: float, say: Callable[[str], None]) -> None:
        """Begin with nothing missing.

        Args:
            find_lack: Returns what is missing, or None.
            seconds: How long something may be missing.
            say: Receives a message about what is missing at once.
        """
        self._find_lack, self._seconds, self._say = find_lack, seconds, say
        self._looked, self._missing_since = time.monotonic(), 0.0

    def look(self) -> None:
        """Find out what is missing, if the last look was more than a few seconds ago.

        Raises:
            ClusterError: If something is missing for too long.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        lack = self._find_lack()
        if lack is None:
            self._missing_since = 0.0
        elif not self._missing_since:
            self._missing_since = now
            self._say(f"waits up to {self._seconds:g} s (ray.start_timeout): {lack}")
        elif now - self._missing_since > self._seconds:
            raise ClusterError(f"{lack}; training waited {self._seconds:g} s (ray.start_timeout)")
