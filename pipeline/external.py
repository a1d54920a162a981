"""Variants of which only results are known: systems that are not built here. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.params import ExternalSettings
from yolov7.system.files import is_file, sha256_of


@dataclass(frozen=True)
class ExternalVariant:
    """The results of a system that is not built here.

    Attributes:
        name: Its key in params.yaml.
        predictions: The absolute path of its COCO results file.
        predictions_hash: SHA-256 of that file; `missing` if there is no such file.
        params: Millions of parameters, as params.yaml states them.
        gflops: GFLOPs, as params.yaml states them.
        image_size: Side of the images in pixels, as params.yaml states it.
    """

    name: str
    predictions: Path
    predictions_hash: str
    params: float | None
    gflops: float | None
    image_size: int | None


def resolve_external(name: str, settings: ExternalSettings) -> ExternalVariant:
    """Find the results file of an external variant.

    Args:
        name: Its key in params.yaml.
        settings: What params.yaml states.

    Returns:
        The resolved variant.
    """
    path = Path(settings.predictions).expanduser().resolve()
    digest = sha256_of(path) if is_file(path) else "missing"
    return ExternalVariant(name, path, digest, settings.params, settings.gflops, settings.image_size)


def external_inputs(variant: ExternalVariant) -> dict[str, Any]:
    """Return what decides the results of an external variant, apart from the data and the code, as plain values.

    Args:
        variant: The resolved variant.

    Returns:
        The hash of the predictions, and what params.yaml states about the system.
    """
    return {
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
