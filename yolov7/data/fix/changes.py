"""Counters and new files of a cleaned copy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Changes:
    """The changes of a split.

    Attributes:
        wanted: The ids of the checks whose findings are corrected.
        counts: The number of changes by the id of the check.
    """

    wanted: frozenset[str]
    counts: Counter[str]

    def apply(self, check: str) -> bool:
        """Count a change if it is wanted.

        Args:
            check: The id of the check.

        Returns:
            Whether the change has to be made.
        """
        if check in self.wanted:
            self.counts[check] += 1
        return check in self.wanted
