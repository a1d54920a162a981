"""The runs that the figures of the page come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RunLink:
    """The MLflow run of one variant and seed.

    Attributes:
        run_id: Its id.
        address: The address of its page, without secrets.
        commit: The git commit that it was trained with; empty if it is unknown.
    """

    run_id: str
    address: str
    commit: str


Runs = Mapping[tuple[str, int], RunLink]  # by variant and seed
