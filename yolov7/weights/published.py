"""The table of published weights, and the folder of the user in which fetched ones are. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from yolov7.system.yaml_files import read_yaml

_CACHE_VARIABLE = "YOLOV7_CACHE"


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that someone has published.

    Attributes:
        name: Their name in the table.
        address: Where they can be downloaded.
        licence: The licence that their publisher states.
        note: What else is known about their licence and origin.
        size: The size of the file in bytes; None if it is not known.
        sha256: The SHA-256 of the file; None if none is published.
    """

    name: str
    address: str
    licence: str
    note: str
    size: int | None = None
    sha256: str | None = None

    @property
    def path(self) -> Path:
        """The weight file that fetching writes; it may be missing."""
        return cache_folder() / "weights" / f"{self.name}.safetensors"


@cache
def published_weights() -> dict[str, PublishedWeights]:
    """Return the table of published weights.

    Returns:
        The entries by their names.
    """
    content = read_yaml(Path(str(resources.files("yolov7"))) / "weights" / "published.yaml")
    return {name: PublishedWeights(name=name, **entry) for name, entry in content.items()}


def cache_folder() -> Path:
    """Return the folder for downloaded weights and accepted licences.

    Returns:
        The folder that the environment variable YOLOV7_CACHE names, or `~/.cache/yolov7-pipeline`; it may be missing.
    """
    stated = os.environ.get(_CACHE_VARIABLE)
    return Path(stated).expanduser().absolute() if stated else Path.home() / ".cache" / "yolov7-pipeline"
