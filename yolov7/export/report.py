"""What `export.json` says: the file, how it was verified, and against what."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Check:
    """How one engine runs the exported file, compared with torch in float32.

    Attributes:
        engine: Name of the engine.
        precision: Type in which it computes.
        output_error: Largest difference of the decoded predictions, relative to the largest box coordinate for boxes
            and absolute for probabilities; None if the file returns only detections.
        box_error_px: Largest difference of a box coordinate of matched detections, pixels.
        score_error: Largest difference of the scores of matched detections.
        detections: Number of detections that are sure enough to be compared.
        unmatched: Number of these that only one of the two found.
        AP: COCO's AP of the file with this engine; None if it was not measured.
        ms: Shortest time for one image, to the output of the file, milliseconds.
    """

    engine: str
    precision: str
    output_error: float | None
    box_error_px: float
    score_error: float
    detections: int
    unmatched: int
    AP: float | None
    ms: float


@dataclass(frozen=True)
class Tolerance:
    """The largest differences at which a check passes.

    Attributes:
        output: For `Check.output_error`.
        unmatched: Share of the detections that may be unmatched.
        AP: Largest change of AP, as a fraction.
    """

    output: float
    unmatched: float
    AP: float


@dataclass(frozen=True)
class ExportReport:
    """An exported model and its proof.

    Attributes:
        file: Name of the file to open.
        files: SHA-256 of each file by name.
        bytes: Size of all files.
        format: The format.
        model: The metadata inside the file, except for the specification.
        outputs: Names of the outputs.
        spec: Name of the specification.
        weights: Name of the weight file.
        fuse_error: Largest relative difference of the outputs that re-parameterisation made; None if the weights were
            re-parameterised before.
        float_layers: Layers outside of the head that stay in floating point in an INT8 file; None for other files.
        images: Number of images on which outputs were compared.
        data: Where these images are from.
        AP_images: Number of images on which AP was measured; 0 if it was not.
        AP: AP of the weights with torch in float32; None if it was not measured.
        torch_ms: Shortest time of the weights as given, with torch in float32, milliseconds.
        checks: One for each engine and precision on this machine; the first one is what `open_model` chooses.
        tolerances: The tolerances by the precision of the computation.
        versions: Versions of the packages.
    """

    file: str
    files: dict[str, str]
    bytes: int
    format: str
    model: dict[str, Any]
    outputs: tuple[str, ...]
    spec: str
    weights: str
    fuse_error: float | None
    float_layers: tuple[str, ...] | None
    images: int
    data: str
    AP_images: int
    AP: float | None
    torch_ms: float
    checks: tuple[Check, ...]
    tolerances: dict[str, Tolerance]
    versions: dict[str, str]


def write_proof(path: Path, report: ExportReport) -> None:
    """Write a report as JSON.

    Args:
        path: The file.
        report: The report.
    """
    path.write_text(json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
