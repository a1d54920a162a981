"""What the stages have left so far, gathered for the tables; what is missing is told, not an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.artifacts.files import Benchmark, Metrics, PreparedData, ReparamReport, read_json, stage_folder
from pipeline.experiment import Experiment
from yolov7.settings import Settings
from yolov7.spec.graph import ModelSpec

_Report = TypeVar("_Report", bound=Settings)


@dataclass(frozen=True)
class Results:
    """What the stages left of one variant, one of each for every seed that has it."""

    spec: ModelSpec
    image_size: int
    metrics: tuple[Metrics, ...]
    reparam: tuple[ReparamReport, ...]


@dataclass(frozen=True)
class Evidence:
    """All that the tables are made of. `missing`: what is not there yet, and the command that makes it."""

    experiment: Experiment
    data: PreparedData | None
    benchmark: Benchmark | None
    variants: Mapping[str, Results]
    missing: tuple[str, ...] = ()


def gather(experiment: Experiment) -> Evidence:
    """Reads the artifacts of all variants and seeds; ArtifactError names one that is damaged."""
    return Evidence(
        experiment=experiment,
        data=_read(_prepared(), PreparedData, made_by="prepare"),
        benchmark=_read(_benchmark(), Benchmark, made_by="benchmark"),
        variants={name: _gather_variant(experiment, name) for name in experiment.variants},
        missing=tuple(f"{path} (`yolov7 {command}`)" for path, command in _expected(experiment) if not path.is_file()),
    )


def _gather_variant(experiment: Experiment, name: str) -> Results:
    metrics = [_read(_metrics(name, seed), Metrics, made_by=f"evaluate {name}") for seed in experiment.seeds]
    reparam = [_read(_reparam(name, seed), ReparamReport, made_by=f"reparam {name}") for seed in experiment.seeds]
    return Results(
        spec=experiment.variant(name).spec,
        image_size=experiment.variant(name).train.image_size,
        metrics=tuple(one for one in metrics if one),
        reparam=tuple(one for one in reparam if one),
    )


def _expected(experiment: Experiment) -> Iterator[tuple[Path, str]]:
    """Every file that is gathered, with the command that makes it."""
    yield _prepared(), "prepare"
    for name in experiment.variants:
        for seed in experiment.seeds:
            yield _reparam(name, seed), f"reparam {name} --seed {seed}"
            yield _metrics(name, seed), f"evaluate {name} --seed {seed}"
    yield _benchmark(), "benchmark"


def _read(path: Path, kind: type[_Report], *, made_by: str) -> _Report | None:
    return read_json(path, kind, made_by=made_by) if path.is_file() else None


def _prepared() -> Path:
    return stage_folder("prepare") / "dataset.json"


def _benchmark() -> Path:
    return stage_folder("benchmark") / "benchmark.json"


def _metrics(name: str, seed: int) -> Path:
    return stage_folder("evaluate", name, seed) / "metrics.json"


def _reparam(name: str, seed: int) -> Path:
    return stage_folder("reparam", name, seed) / "reparam.json"
