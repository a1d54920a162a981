"""Resolution of params.yaml: the one place that merges defaults, recipes, specs and overrides. Imports no torch.

Everything below receives the frozen values that `resolve_experiment` returns, and never looks at `Params` again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.data_settings import DataSettings
from pipeline.params import (
    PARAMS_FILE,
    BenchmarkSettings,
    EvaluateSettings,
    Params,
    RaySettings,
    ReparamSettings,
    TrackingSettings,
    TuneSettings,
    Variant,
    first_error,
    load_params,
    parse_params,
)
from yolov7.errors import SettingError, SpecError, one_line, suggest
from yolov7.recipes import resolve_settings
from yolov7.settings import COCO_ENGINE, COCO_NMS, Settings, TrainSettings
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.spec.spec_files import list_specs, resolve_spec
from yolov7.system.files import is_file
from yolov7.training.job import NO_EFFECT

Model = TypeVar("Model", bound=Settings)


@dataclass(frozen=True)
class ResolvedVariant:
    """One model of the comparison, with everything that decides its training.

    Attributes:
        name: Its key in params.yaml.
        spec: The resolved specification, after swaps, scaling and the auxiliary head.
        train: The settings of its training. `weights` is absolute.
        ray: Where it is trained.
        weights_hash: SHA-256 of the weights that training starts from; empty if there are none.
        declared: The variant without `train` and `ray`, as params.yaml states it.
        overrides: The settings under `train` of the variant itself, as params.yaml states them.
    """

    name: str
    spec: ModelSpec
    train: TrainSettings
    ray: RaySettings
    weights_hash: str
    declared: Mapping[str, Any]
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Everything that params.yaml and the code's defaults decide, resolved.

    Attributes:
        variants: The models in the order of params.yaml.
        notes: What the user should know about the resolution, one line each.
    """

    data: DataSettings
    seeds: tuple[int, ...]
    variants: Mapping[str, ResolvedVariant]
    ray: RaySettings
    reparam: ReparamSettings
    evaluate: EvaluateSettings
    benchmark: BenchmarkSettings
    tracking: TrackingSettings
    tune: TuneSettings
    base_train: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()

    def variant(self, name: str) -> ResolvedVariant:
        """Return the variant of that name.

        Raises:
            SettingError: If there is none; the message lists those that there are.
        """
        if name not in self.variants:
            raise SettingError(f"variant {name!r} is not in {PARAMS_FILE}; it has: {', '.join(self.variants)}")
        return self.variants[name]

    def base(self, name: str) -> ResolvedVariant:
        """Return a variant, or the packaged or own spec of that name with the settings of `train`.

        Raises:
            SettingError: If the name is neither a variant nor a spec.
        """
        if name in self.variants:
            return self.variants[name]
        known = [*self.variants, *list_specs()]
        if name not in list_specs() and Path(name).suffix not in {".yaml", ".yml"}:
            raise SettingError(
                f"base {name!r} is neither a variant of {PARAMS_FILE} ({', '.join(self.variants)}) nor a spec"
                f"{suggest(name, known)}"
            )
        variant, key = Variant(spec=name), f"base {name!r}"
        resolved, _ = _resolve_variant(name, variant, self.base_train, self.ray, key=key, hash_file=_hash_file)
        return resolved


def load_experiment(path: Path = Path(PARAMS_FILE)) -> Experiment:
    """Read a parameter file and resolve it.

    Args:
        path: The YAML file.

    Returns:
        The resolved experiment.

    Raises:
        SettingError: If the file is missing or a key is wrong, in one line that names the key and the remedy.
    """
    return resolve_experiment(load_params(path), source=str(path))


def parse_experiment(content: Mapping[str, Any], *, source: str = PARAMS_FILE) -> Experiment:
    """Validate and resolve the content of a parameter file.

    Args:
        content: Plain values, as YAML gives them.
        source: Where they are from, for messages.

    Returns:
        The resolved experiment.

    Raises:
        SettingError: If a key is wrong, in one line that names the source, the key and the remedy.
    """
    return resolve_experiment(parse_params(content, source=source), source=source)


def resolve_experiment(params: Params, *, source: str = PARAMS_FILE) -> Experiment:
    """Merge defaults, recipes, specs and overrides into frozen values.

    Args:
        params: The validated content of a parameter file.
        source: Where it is from, for messages.

    Returns:
        The resolved experiment.

    Raises:
        SettingError: If a training or a spec cannot be resolved, in one line that names the key and the remedy.
    """
    try:
        resolved = _resolve_variants(params)
    except SettingError as error:
        raise SettingError(one_line(f"{source}: {error}")) from None
    return Experiment(
        data=params.data,
        seeds=params.seeds,
        variants={variant.name: variant for variant, _ in resolved},
        ray=params.ray,
        reparam=params.reparam,
        evaluate=params.evaluate,
        benchmark=params.benchmark,
        tracking=params.tracking,
        tune=params.tune,
        base_train=params.train,
        notes=tuple(note for _, notes in resolved for note in notes),
    )


def tune_settings(experiment: Experiment, options: Mapping[str, Any]) -> TuneSettings:
    """Return the settings of a search, with the options of a command in place of those in params.yaml.

    Args:
        experiment: The resolved content of params.yaml.
        options: Values by the name of the setting; None for an option that was not given.

    Returns:
        The validated settings.

    Raises:
        SettingError: If an option is wrong.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return TuneSettings.model_validate(experiment.tune.model_dump() | given)
    except ValidationError as error:
        key, _, fault = first_error(error, model=TuneSettings).partition(":")
        option = "rule" if key.startswith("rules") else key.replace("_", "-")
        raise SettingError(f"--{option}:{fault}") from None


def training_inputs(variant: ResolvedVariant, *, seed: int) -> dict[str, Any]:
    """Return what decides the result of a training, apart from the data and the code, as plain values."""
    return {
        "spec": variant.spec.model_dump(mode="json", by_alias=True),
        "settings": variant.train.model_dump(mode="json", exclude=NO_EFFECT),
        "weights": variant.weights_hash,
        "seed": seed,
        "validation": {"nms": COCO_NMS.model_dump(mode="json"), "engine": COCO_ENGINE},
    }


def _resolve_variants(params: Params) -> list[tuple[ResolvedVariant, tuple[str, ...]]]:
    hash_file = cache(_hash_file)  # many variants may start from the same weights
    try:
        return [
            _resolve_variant(name, variant, params.train, params.ray, hash_file=hash_file)
            for name, variant in params.variants.items()
        ]
    except SettingError:
        _validate_train(params.train, key="train")  # a fault of `train` itself is named by its key there
        raise


def _resolve_variant(
    name: str,
    variant: Variant,
    train: Mapping[str, Any],
    ray: RaySettings,
    *,
    key: str | None = None,
    hash_file: Callable[[Path], str],
) -> tuple[ResolvedVariant, tuple[str, ...]]:
    key = key or f"variants.{name}"
    try:
        changes = variant.model_dump(include={"swap", "scale", "auxiliary"}, exclude_none=True)
        spec = resolve_spec({"base": variant.spec, **changes}, name=Path(variant.spec).stem)
    except SpecError as error:
        raise SettingError(f"{key}: {error}") from None
    merged, notes = resolve_settings(train, variant.train)
    if "image_size" not in merged:
        merged["image_size"] = spec.image_size
    settings = _validate_train(merged, key=f"{key}.train")
    _check_size(name, spec, settings.image_size)
    if settings.weights is not None:
        settings = settings.model_copy(update={"weights": settings.weights.resolve()})
    resolved = ResolvedVariant(
        name=name,
        spec=spec,
        train=settings,
        ray=_validate(RaySettings, ray.model_dump() | variant.ray, key=f"{key}.ray"),
        weights_hash="" if settings.weights is None else hash_file(settings.weights),
        declared=variant.model_dump(exclude={"train", "ray"}, exclude_defaults=True),
        overrides=variant.train,
    )
    return resolved, tuple(f"variants.{name}.train: {note}" for note in notes)


def _validate_train(content: Mapping[str, Any], *, key: str) -> TrainSettings:
    return _validate(TrainSettings, content, key=key)


def _validate(model: type[Model], content: Mapping[str, Any], *, key: str) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise SettingError(f"{key}.{first_error(error, model=model)}") from None


def _check_size(name: str, spec: ModelSpec, image_size: int) -> None:
    stride = max(shape.stride for shape in infer_shapes(spec).values())
    if image_size % stride:
        nearest = max(1, round(image_size / stride)) * stride
        raise SettingError(
            f"train.image_size={image_size} of variant {name!r} must be a multiple of {stride}, its largest stride; "
            f"try {nearest}"
        )


def _hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, or `missing`: only training needs the file itself."""
    if not is_file(path):
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
