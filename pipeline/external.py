"""Variants of which only results or costs are known: systems that are not built here. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.params import ExternalSettings, ZooName
from yolov7.system.files import is_file, sha256_of

ZOO_LIBRARY = "transformers"
"""What builds the models of `zoo`."""


@dataclass(frozen=True)
class ExternalVariant:
    """The results or the cost of a system that is not built here.

    Attributes:
        name: Its key in params.yaml.
        predictions: The absolute path of its COCO results file; None if only its cost is known.
        predictions_hash: SHA-256 of that file; `missing` if there is no such file; empty if none is named.
        params: Millions of parameters, as params.yaml states them.
        gflops: GFLOPs, as params.yaml states them.
        image_size: Side of the images in pixels, as params.yaml states it.
        zoo: The model whose parameters and FLOPs are counted; None if params.yaml states them.
    """

    name: str
    predictions: Path | None
    predictions_hash: str
    params: float | None
    gflops: float | None
    image_size: int | None
    zoo: ZooName | None = None

    @property
    def source(self) -> str:
        """The name of the results file, else that of the model whose cost is counted."""
        return self.predictions.name if self.predictions else f"zoo: {self.zoo}"


def has_zoo_library() -> bool:
    """Return whether the library that builds the models of `zoo` is installed."""
    return find_spec(ZOO_LIBRARY) is not None


def require_zoo_library(variant: ExternalVariant) -> None:
    """Raise unless the cost of a variant is stated, or can be counted.

    Args:
        variant: An external variant.

    Raises:
        ModuleNotFoundError: If its cost is counted with a library that is not installed.
    """
    if variant.zoo is not None and not has_zoo_library():
        raise ModuleNotFoundError(f"No module named {ZOO_LIBRARY!r}", name=ZOO_LIBRARY)


def resolve_external(name: str, settings: ExternalSettings) -> ExternalVariant:
    """Find the results file of an external variant.

    Args:
        name: Its key in params.yaml.
        settings: What params.yaml states.

    Returns:
        The resolved variant.
    """
    path = None if settings.predictions is None else Path(settings.predictions).expanduser().resolve()
    digest = "" if path is None else sha256_of(path) if is_file(path) else "missing"
    return ExternalVariant(name, path, digest, settings.params, settings.gflops, settings.image_size, settings.zoo)


def external_inputs(variant: ExternalVariant) -> dict[str, Any]:
    """Return what decides the results of an external variant, apart from the data and the code, as plain values.

    Args:
        variant: The resolved variant.

    Returns:
        The hash of the predictions, and what params.yaml states about the system.
    """
    zoo = {} if variant.zoo is None else {"zoo": variant.zoo}
    return zoo | {
        "predictions": variant.predictions_hash,
        "params": variant.params,
        "gflops": variant.gflops,
        "image_size": variant.image_size,
    }


def external_fingerprint(variant: ExternalVariant, *, seed: int, content_hash: str) -> str:
    """Return what identifies the results of an external variant on some data.

    Args:
        variant: The resolved variant.
        seed: The seed in whose folder they are written.
        content_hash: Hash of the prepared data.

    Returns:
        Twelve hexadecimal digits.
    """
    parts = (*external_inputs(variant).values(), seed, content_hash)
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]
