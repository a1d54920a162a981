"""What the page shows of each variant beyond the summary: curves by epoch, precision and recall, confusion, errors.

Files that are missing leave their part of the page empty.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.artifacts.files import read_json, stage_folder
from pipeline.artifacts.reports import ReparamReport
from pipeline.report.health import HealthReport
from pipeline.report.results import StageResults
from yolov7.data.index import ImageIndex, load_index
from yolov7.evaluation.errors import ErrorReport

Curve = Sequence[tuple[float, float]]
Confusion = Mapping[tuple[str, str], int]
LOSSES = ("box", "objectness", "classification")


@dataclass(frozen=True)
class VariantDetails:
    """The details of one variant. Except for the curves by epoch, they are those of the first seed that has them.

    Attributes:
        curves: Pairs of epoch and value by figure (`AP`, `loss`, `lr`), one curve for each seed.
        precision: Pairs of recall and precision at IoU 0.5 by class name; `all` is the mean over the classes.
        confusion: The number of objects by true and by predicted class.
        errors: The analysis of errors; None if it is missing.
        proof: The proof of re-parameterisation; None if it is missing.
        seed: The seed of `errors`; None if there are none.
    """

    curves: Mapping[str, Sequence[Curve]] = field(default_factory=dict)
    precision: Mapping[str, Curve] = field(default_factory=dict)
    confusion: Confusion = field(default_factory=dict)
    errors: ErrorReport | None = None
    proof: ReparamReport | None = None
    seed: int | None = None


@dataclass(frozen=True)
class ExperimentDetails:
    """The details of all variants and of the data.

    Attributes:
        variants: The details of each variant, in the order of params.yaml.
        health: The health of the data; None if they are not prepared.
        split: The index of the split that was evaluated; None if nothing was evaluated.
    """

    variants: Mapping[str, VariantDetails]
    health: HealthReport | None
    split: ImageIndex | None


def read_details(results: StageResults) -> ExperimentDetails:
    """Read the details of all variants.

    Args:
        results: What the stages wrote.

    Returns:
        The details.

    Raises:
        ArtifactError: A file is damaged.
    """
    variants = {
        name: _read_variant(name, results.seeds, is_external=bool(one.model.external))
        for name, one in results.variants.items()
    }
    splits = {one.errors.split for one in variants.values() if one.errors is not None}
    files = [path for path in (stage_folder("prepare") / f"{split}.npz" for split in sorted(splits)) if path.is_file()]
    health = stage_folder("prepare") / "health.json"
    return ExperimentDetails(
        variants=variants,
        health=read_json(health, HealthReport, made_by="prepare") if health.is_file() else None,
        split=load_index(files[0]) if files else None,
    )


def _read_variant(name: str, seeds: Sequence[int], *, is_external: bool) -> VariantDetails:
    evaluated = [seed for seed in seeds if (_evaluated(name, seed) / "errors.json").is_file()]
    proved = [path for seed in seeds if (path := stage_folder("reparam", name, seed) / "reparam.json").is_file()]
    seed = evaluated[0] if evaluated else None
    folder = _evaluated(name, seeds[0] if seed is None else seed)
    return VariantDetails(
        curves=_read_curves(name, seeds),
        precision=_read_precision(folder / "precision_recall.csv"),
        confusion=Counter((line["actual"], line["predicted"]) for line in _lines(folder / "confusion.csv")),
        errors=None if seed is None else read_json(folder / "errors.json", ErrorReport, made_by=f"evaluate {name}"),
        proof=read_json(proved[0], ReparamReport, made_by=f"reparam {name}") if proved and not is_external else None,
        seed=seed,
    )


def _evaluated(name: str, seed: int) -> Path:
    return stage_folder("evaluate", name, seed)


def _read_curves(name: str, seeds: Sequence[int]) -> dict[str, list[Curve]]:
    curves: dict[str, list[Curve]] = {"AP": [], "loss": [], "lr": []}
    for seed in seeds:
        lines = list(_lines(stage_folder("train", name, seed) / "curve.csv"))
        for figure, points in curves.items():
            parts = LOSSES if figure == "loss" else (figure,)
            measured = [line for line in lines if all(line.get(part) for part in parts)]
            curve = [(float(line["epoch"]), sum(float(line[part]) for part in parts)) for line in measured]
            if curve:
                points.append(curve)
    return curves


def _read_precision(path: Path) -> dict[str, Curve]:
    lines = list(_lines(path))
    names = [name for name in lines[0] if name != "recall"] if lines else []
    curves = {name: [(float(line["recall"]), float(line[name])) for line in lines if line[name]] for name in names}
    return {name: curve for name, curve in curves.items() if curve}


def _lines(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
