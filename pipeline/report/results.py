"""What the stages have written so far, read for the tables. Files that are missing are listed, and are no error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pipeline.artifacts.files import read_json, stage_folder
from pipeline.artifacts.reports import Benchmark, Metrics, PreparedData, ReparamReport
from yolov7.spec.graph import ModelSpec
from yolov7.system.settings_base import Settings

_Report = TypeVar("_Report", bound=Settings)


@dataclass(frozen=True)
class VariantModel:
    """What a variant is, as far as the tables need it.

    Attributes:
        spec: The resolved spec; None for an external variant.
        image_size: The training size in pixels; None if it is unknown, which only happens for an external variant.
        overrides_training: Whether the variant changes settings of `train`. Of two variants with the same graph and
            size, the one that does not fills the paper's row.
        weights: The name of the file whose weights were given; empty if the variant was trained.
        external: The name of the results file of an external variant; empty for a model that is built here.
        zoo: The name of the model whose cost was counted with a library; empty if params.yaml states the cost.
        params_m: Millions of parameters of an external variant.
        gflops: GFLOPs of an external variant.
    """

    spec: ModelSpec | None
    image_size: int | None
    overrides_training: bool = False
    weights: str = ""
    external: str = ""
    zoo: str = ""
    params_m: float | None = None
    gflops: float | None = None


@dataclass(frozen=True)
class VariantResults:
    """What the stages wrote about one variant.

    Attributes:
        model: What the variant is.
        metrics: The COCO metrics, one for each seed that was evaluated.
        reparam: The re-parameterisation reports, one for each seed that has one.
        metrics_by_seed: The COCO metrics by seed.
    """

    model: VariantModel
    metrics: tuple[Metrics, ...] = ()
    reparam: tuple[ReparamReport, ...] = ()
    metrics_by_seed: Mapping[int, Metrics] = field(default_factory=dict)


@dataclass(frozen=True)
class StageResults:
    """What the stages wrote.

    Attributes:
        seeds: The seeds of params.yaml.
        data: The prepared data; None if they are not prepared.
        benchmark: The benchmark; None if it was not run.
        variants: The results of each variant, in the order of params.yaml.
        missing: One line per missing file, with the command that makes it.
    """

    seeds: tuple[int, ...]
    data: PreparedData | None
    benchmark: Benchmark | None
    variants: Mapping[str, VariantResults]
    missing: tuple[str, ...] = ()


def read_results(variants: Mapping[str, VariantModel], seeds: Sequence[int]) -> StageResults:
    """Read what the stages wrote about all variants and seeds.

    Args:
        variants: The variants by name, in the order of params.yaml.
        seeds: The seeds of params.yaml.

    Returns:
        The results, and a list of what is missing.

    Raises:
        ArtifactError: A file is damaged.
    """
    expected = _expected_files(variants, seeds)
    return StageResults(
        seeds=tuple(seeds),
        data=_read(_prepared(), PreparedData, made_by="prepare"),
        benchmark=_read(_benchmark(), Benchmark, made_by="benchmark"),
        variants={name: _read_variant(name, model, seeds) for name, model in variants.items()},
        missing=tuple(f"{path} (`yolov7 {command}`)" for path, command in expected if not path.is_file()),
    )


def _read_variant(name: str, model: VariantModel, seeds: Sequence[int]) -> VariantResults:
    if model.external:
        seeds = seeds[:1]  # the results are the same for all seeds
    metrics = {seed: _read(_metrics(name, seed), Metrics, made_by=f"evaluate {name}") for seed in seeds}
    by_seed = {seed: one for seed, one in metrics.items() if one is not None}
    reparam = (
        []
        if model.external
        else [_read(_reparam(name, seed), ReparamReport, made_by=f"reparam {name}") for seed in seeds]
    )
    return VariantResults(
        model=model,
        metrics=tuple(by_seed.values()),
        reparam=tuple(one for one in reparam if one),
        metrics_by_seed=by_seed,
    )


def _expected_files(variants: Mapping[str, VariantModel], seeds: Sequence[int]) -> Iterator[tuple[Path, str]]:
    """Yield every file that is read, with the command that makes it."""
    yield _prepared(), "prepare"
    for name, model in variants.items():
        for seed in seeds[:1] if model.external else seeds:
            if not model.external:
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
