"""The schema of params.yaml: what to compare, on which data, and how; imports no torch.

Settings of the detector itself come from `yolov7.settings`; a variant overrides them key by key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from yolov7.errors import SpecError, one_line, shown, suggest
from yolov7.recipes import expand_recipe, merge
from yolov7.settings import (
    COCO_ENGINE,
    COCO_NMS,
    CocoEngine,
    NmsSettings,
    NonNegative,
    Positive,
    Precision,
    Probability,
    Settings,
    TrainSettings,
)
from yolov7.spec.graph import infer_shapes
from yolov7.spec.scaling import Rule
from yolov7.spec.spec_files import ModelSpec, resolve_spec
from yolov7.system.files import is_file
from yolov7.system.yaml_files import read_yaml

PARAMS_FILE = "params.yaml"
MAX_SEED = 2**32 - 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class SyntheticSettings(Settings):
    """The data set that the project draws by itself."""

    train_images: int = Field(640, ge=1)
    val_images: int = Field(160, ge=1)
    image_size: int = Field(192, ge=64, le=2048, description="side, pixels")
    seed: int = Field(0, ge=0, le=MAX_SEED)
    shuffle_labels: bool = Field(False, description="a control: train on labels that mean nothing")


class FlawSettings(Settings):
    """What becomes of flaws in the data; all are counted and listed in the health report.

    Flawed boxes, the second of two images with one id, and unreadable images are left out, unless that is fatal.
    """

    fatal: tuple[Literal["boxes", "outlines", "ids", "sizes", "leaks"], ...] = Field(
        (), description="groups of flaws (yolov7/data/flaws.py) of which a single one ends prepare"
    )
    max_unreadable: Probability = Field(0.01, description="share of a split's images above which prepare ends")


class DataSettings(Settings):
    """Where the images are.

    COCO: `train`, `val` and `test` name json files under `path`; VOC: split lists under ImageSets/Main.
    """

    format: Literal["synthetic", "coco", "voc"] = "synthetic"
    path: str = Field("yolov7/data", description="the data set's folder; what the synthetic data depend on is its code")
    train: str = "train"
    val: str | None = Field("val", description="measured while training; null: not at all")
    test: str | None = Field(None, description="measured once, by evaluate; null: evaluate uses val")
    flaws: FlawSettings = FlawSettings()
    synthetic: SyntheticSettings = SyntheticSettings()

    @model_validator(mode="after")
    def _check_splits(self) -> DataSettings:
        if self.format == "synthetic" and self.test is not None:
            raise ValueError(f"test={self.test!r}: the synthetic data have no test split; leave it out")
        return self


class ScaleSettings(Settings):
    """Scaling of a spec (section 3.2 of the paper): a factor on the depth of its blocks, one on its widths, or both."""

    rule: Rule = "compound"
    depth: Positive | dict[str, Positive] = Field(
        1.0, description="factor on the pairs of convolutions in computational blocks, or in those of the rows named"
    )
    width: Positive = Field(1.0, description="factor on every width; `compound` derives it from depth")


class Variant(Settings):
    """One model of the comparison and how its training differs from `train`."""

    spec: str = Field(description="a name from `yolov7 models`, or the path of a spec file")
    swap: dict[str, dict[str, Any]] = Field(default_factory=dict, description="rows that differ, key by key")
    scale: ScaleSettings | None = None
    auxiliary: bool | None = Field(None, description="with an auxiliary head or without; null: as the spec has it")
    train: dict[str, Any] = Field(default_factory=dict, description="Overrides of `train`, with the same nesting.")
    ray: dict[str, Any] = Field(default_factory=dict, description="Overrides of `ray`.")

    def build_spec(self) -> ModelSpec:
        """The resolved spec, in this order: swap, scale, auxiliary; SpecError where it cannot be had."""
        changes = self.model_dump(include={"swap", "scale", "auxiliary"}, exclude_none=True)
        return resolve_spec({"base": self.spec, **changes}, name=Path(self.spec).stem)


class ReparamSettings(Settings):
    """Largest error that the re-parameterised model may show, relative to the scale of its outputs."""

    images: int = Field(16, ge=1)
    tolerance_float32: Positive = 1e-4
    tolerance_float64: Positive = 1e-9


class EvaluateSettings(Settings):
    """COCO evaluation; the defaults are the reference's."""

    batch_size: int = Field(16, ge=1)
    nms: NmsSettings = COCO_NMS
    engine: CocoEngine = Field(COCO_ENGINE, description="the library that counts; pycocotools: COCO's own, slower")
    tolerance_ap: Positive = Field(1e-3, description="largest change of AP by re-parameterisation")
    examples: int = Field(12, ge=1, le=100, description="images drawn with their detections")
    example_confidence: Probability = 0.35


class BenchmarkSettings(Settings):
    """Latency and FPS; all variants in interleaved rounds, so that their rows compare."""

    rounds: int = Field(15, ge=3)
    seconds_per_round: Positive = Field(0.3, description="for each model, in each round")
    warmup_seconds: NonNegative = 0.5
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1)
    precisions: tuple[Precision, ...] = Field(("auto",), min_length=1)
    compile: bool = Field(False, description="measure torch.compile too")


_Workers = Annotated[int, Field(ge=1)]


class RaySettings(Settings):
    """Where training runs; nothing here affects the result.

    The environment variable RAY_ADDRESS names a cluster to join. Without it, a cluster is started on this machine.
    """

    workers: _Workers | tuple[_Workers, _Workers] = Field(
        1, description="a number, or [fewest, most]: at any time as many as there is room for"
    )
    placement: Literal["PACK", "SPREAD"] = Field("PACK", description="of workers: on few nodes, or on many")
    cpus_per_worker: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    gpus_per_worker: NonNegative | Literal["auto"] = Field("auto", description="auto: one where there are GPUs")
    sync_batch_norm: bool = Field(False, description="statistics over all workers' images; on GPUs alone")
    storage: Annotated[str, Field(pattern=r"^s3://[^/]+(/.*)?$")] | None = Field(
        None, description="s3://bucket/folder: where each run that is not finished has a copy, for another machine"
    )
    max_failures: int = Field(2, ge=0, description="restarts from the last checkpoint")
    start_timeout: Positive = Field(45.0, description="seconds to wait for room for the fewest workers")
    resize_seconds: Positive = Field(60.0, description="between two looks whether there is room for more workers")

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError(f"{shown(list(workers))} must be the fewest workers, then the most")
        return workers

    @property
    def fewest_workers(self) -> int:
        """That it can go on with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """That it takes."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


TuneRule = Literal["compound", "width", "depth", "free"]


class TuneSettings(Settings):
    """Which models `yolov7 tune` may train, and for how long; the options of the command take precedence."""

    budget: str = Field(
        "30m", description="30m, 8h (wall-clock time), 40trials, or 2e18flop (training compute: 3 x forward x images)"
    )
    base: str | None = Field(None, description="the variant or spec to scale; null: the first variant")
    rules: tuple[TuneRule, ...] = Field(("compound", "width", "depth"), min_length=1)
    max_gflops: Positive | None = Field(None, description="largest GFLOPs of the deployed model")
    max_params: Positive | None = Field(None, description="most parameters of the deployed model, in millions")
    max_latency_ms: Positive | None = Field(None, description="latency of the deployed model at batch 1 on this device")
    image_sizes: tuple[Annotated[int, Field(ge=32)], ...] = Field((), description="to choose from; empty: the base's")
    auxiliary: bool = Field(False, description="train each model also with the other choice of an auxiliary head")
    trials: int = Field(16, ge=1, description="trials that should fit; epochs per trial are reduced until they do")
    epochs: int | None = Field(None, ge=1, description="epochs per trial, fixed; null: at most train.epochs")
    strata: int = Field(4, ge=1, le=20, description="ranges of GFLOPs that are searched in turn")
    candidates: int = Field(16, ge=2, le=1000, description="models drawn for each rule, whose cost is counted")
    sampler: Literal["kriging", "random"] = Field(
        "kriging", description="chooses the models of a range after one of each rule: a Gaussian process, or chance"
    )
    halving: float = Field(2.0, ge=1.0, description="1/halving of the trials at a rung continue (ASHA); 1: all of them")
    warm_start: bool = Field(False, description="start with the fitting weights of the most similar finished trial")
    trials_per_gpu: int = Field(1, ge=1, le=100, description="trials that share a GPU")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of the search and of every training")

    @field_validator("rules", "image_sizes")
    @classmethod
    def _check_different(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"{shown(list(values))} must be different; name each once")
        return values


class TrackingSettings(Settings):
    """MLflow; MLFLOW_TRACKING_URI names a server, without it a SQLite file in the project serves."""

    experiment: str = "yolov7"
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] | None = Field(
        "yolov7", description="the registered model: each deployed detector is a version, the best is the champion"
    )


class Params(Settings):
    """The whole of params.yaml."""

    data: DataSettings = DataSettings()
    seeds: tuple[int, ...] = (0,)
    variants: dict[str, Variant] = Field(min_length=1)
    train: TrainSettings = TrainSettings()
    ray: RaySettings = RaySettings()
    reparam: ReparamSettings = ReparamSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    tracking: TrackingSettings = TrackingSettings()
    tune: TuneSettings = TuneSettings()

    @field_validator("variants")
    @classmethod
    def _check_names(cls, variants: dict[str, Variant]) -> dict[str, Variant]:
        for name in variants:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the variant name {shown(name)} becomes a folder: use letters, digits, '_', '-' and '.'"
                )
        return variants

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > MAX_SEED:
            raise ValueError(f"seeds={shown(list(seeds))} must be different numbers from 0 to {MAX_SEED}, at least one")
        return seeds

    @model_validator(mode="after")
    def _check_whole(self) -> Params:
        if self.data.val is None and self.data.test is None:  # told here, not after hours of training
            raise ValueError("data.val and data.test are both null, but evaluate needs one of them; name a split")
        for name, variant in self.variants.items():
            _check_size(name, _build(name, variant), self.train_settings(name).image_size)
        return self

    def variant(self, name: str) -> Variant:
        """The variant of that name."""
        if name not in self.variants:
            raise ValueError(f"variant {name!r} is not in {PARAMS_FILE}; it has: {', '.join(self.variants)}")
        return self.variants[name]

    def train_settings(self, name: str) -> TrainSettings:
        """`train` with the overrides of a variant."""
        overrides = self.variant(name).train
        merged = merge(self.train.model_dump(), expand_recipe(overrides))
        try:
            return TrainSettings.model_validate(merged)
        except ValidationError as error:
            raise ValueError(f"variants.{name}.train.{first_error(error)}") from None

    def ray_settings(self, name: str) -> RaySettings:
        """`ray` with the overrides of a variant."""
        try:
            return RaySettings.model_validate(merge(self.ray.model_dump(), self.variant(name).ray))
        except ValidationError as error:
            raise ValueError(f"variants.{name}.ray.{first_error(error)}") from None

    def tune_settings(self, options: Mapping[str, Any]) -> TuneSettings:
        """`tune` with the options of a command that are not None."""
        given = {name: value for name, value in options.items() if value is not None}
        try:
            return TuneSettings.model_validate(self.tune.model_dump() | given)
        except ValidationError as error:
            key, _, fault = first_error(error).partition(":")
            option = "rule" if key.startswith("rules") else key.replace("_", "-")
            raise ValueError(f"--{option}:{fault}") from None


def _build(name: str, variant: Variant) -> ModelSpec:
    try:
        return variant.build_spec()
    except SpecError as error:
        raise ValueError(f"variants.{name}: {error}") from None


def _check_size(name: str, spec: ModelSpec, image_size: int) -> None:
    stride = max(shape.stride for shape in infer_shapes(spec).values())
    if image_size % stride:
        nearest = max(1, round(image_size / stride)) * stride
        raise ValueError(
            f"train.image_size={image_size} of variant {name!r} must be a multiple of {stride}, its largest stride; "
            f"try {nearest}"
        )


def load_params(path: Path = Path(PARAMS_FILE)) -> Params:
    """Reads and validates a parameter file; ValueError in one line that names the key and the remedy."""
    if not is_file(path):
        raise ValueError(f"{path} is missing; run this in the project's folder, or `yolov7 use demo` to get one")
    return parse_params(read_yaml(path), source=str(path))


def parse_params(content: Mapping[str, Any], *, source: str) -> Params:
    """Validates plain values; ValueError in one line that names where they are from, the key and the remedy."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise ValueError(one_line(f"{source}: {first_error(error)}")) from None


def first_error(error: ValidationError) -> str:
    """`train.epoch: unknown key; ...`, the first thing wrong, in one line."""
    details = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in details["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(details['loc'])}{more}"
    if details["type"] == "value_error":
        message = str(details["ctx"]["error"])
        return f"{key}: {message}{more}" if key else message + more
    got = "" if details["type"] == "missing" else f", got {shown(details['input'])}"
    message = details["msg"][0].lower() + details["msg"][1:]
    return f"{key}: {message}{got}{more}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    model: type[Settings] | None = Params
    for part in location[:-1]:
        model = _child(model, str(part))
    names = list(model.model_fields) if model else []
    possible = f"; possible keys: {', '.join(names)}" if names else ""
    return suggest(str(location[-1]), names) or possible


def _child(model: type[Settings] | None, part: str) -> type[Settings] | None:
    if model is Params and part == "variants":
        return Params  # the next part is the variant's name
    if model is Params and part not in Params.model_fields:
        return Variant
    field = model.model_fields.get(part) if model else None
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None
