"""Resolution of params.yaml: the one place that merges defaults, recipes, specs and overrides. Imports no torch.

Everything below receives the frozen values that `resolve_experiment` returns, and never looks at `Params` again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.data_settings import DataSettings
from pipeline.external import ExternalVariant, resolve_external
from pipeline.params import (
    PARAMS_FILE,
    BenchmarkSettings,
    EvaluateSettings,
    Params,
    RaySettings,
    ReparamSettings,
    TrackingSettings,
    Variant,
    first_error,
    load_params,
    parse_params,
)
from pipeline.tune_settings import OPTIONS_OF, TuneSettings, tune_option
from yolov7.errors import ArtifactError, SettingError, SpecError, one_line, suggest
from yolov7.recipes import leaves, resolve_settings
from yolov7.settings import TrainSettings
from yolov7.spec.graph import ModelSpec, check_image_size, rows_up_to
from yolov7.spec.spec_files import list_specs, resolve_spec
from yolov7.system.files import is_file, sha256_of, why_no_file
from yolov7.system.plugins import allow_plugins
from yolov7.system.settings_base import Settings
from yolov7.training.job import hash_own_code
from yolov7.training.unused_settings import depends_on_data, stated_without_effect
from yolov7.weights.description import Description, describe_weights
from yolov7.weights.published import published_weights

Model = TypeVar("Model", bound=Settings)


@dataclass(frozen=True)
class ResolvedVariant:
    """One model of the comparison, with everything that decides its training, or its given weights.

    Attributes:
        name: Its key in params.yaml.
        spec: The resolved specification, after swaps, scaling and changes of the head.
        train: The settings of its training. `weights` is absolute. If weights are given, only `image_size` has a
            meaning: that at which they are evaluated.
        ray: Where it is trained.
        given: The absolute path of the weights that are evaluated as they are; None if the variant is trained.
        weights_hash: SHA-256 of the weights that are given or that training starts from; empty if there are none.
        teacher_hash: SHA-256 of the weights of the teacher; empty if there is none.
        declared: The variant without `train` and `ray`, as params.yaml states it.
        overrides: The settings under `train` of the variant itself, as params.yaml states them.
        own_code: Digests of the sources of the user's own code, by its dotted name.
    """

    name: str
    spec: ModelSpec
    train: TrainSettings
    ray: RaySettings
    given: Path | None
    weights_hash: str
    teacher_hash: str
    declared: Mapping[str, Any]
    overrides: Mapping[str, Any]
    own_code: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Everything that params.yaml and the code's defaults decide, resolved.

    Attributes:
        variants: The models that are built here, in the order of params.yaml.
        externals: The systems of which only results are known, in the order of params.yaml.
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
    externals: Mapping[str, ExternalVariant] = field(default_factory=dict)

    def variant(self, name: str) -> ResolvedVariant:
        """Return the variant of that name.

        Raises:
            SettingError: If there is none, or if it is external; the message lists those that there are.
        """
        if name in self.externals:
            raise SettingError(
                f"variant {name!r} is external: only its results are known; name one of {', '.join(self.variants)}"
            )
        if name not in self.variants:
            names = ", ".join([*self.variants, *self.externals])
            raise SettingError(f"variant {name!r} is not in {PARAMS_FILE}; it has: {names}")
        return self.variants[name]

    def base(self, name: str) -> ResolvedVariant:
        """Return a variant, or the packaged or own spec of that name with the settings of `train`.

        Raises:
            SettingError: If the name is neither a variant nor a spec, or a variant that is not trained.
        """
        if name in self.variants:
            if self.variants[name].given is not None:
                raise SettingError(f"base {name!r} has given weights and no training; name a variant that is trained")
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
        allow_plugins(params.plugins)
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
        externals={name: resolve_external(name, one.external) for name, one in params.variants.items() if one.external},
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
        settings = TuneSettings.model_validate(experiment.tune.model_dump() | given)
    except ValidationError as error:
        key, _, fault = first_error(error, model=TuneSettings).partition(":")
        raise SettingError(f"{tune_option(key)}:{fault}") from None
    for space, names in OPTIONS_OF.items():
        useless = [name for name in given if name in names]
        if useless and space != settings.space:
            raise SettingError(f"{tune_option(useless[0])} has an effect with --space {space} only; leave it out")
    return settings


def _resolve_variants(params: Params) -> list[tuple[ResolvedVariant, tuple[str, ...]]]:
    hash_file = cache(_hash_file)  # many variants may start from the same weights
    try:
        return [
            _resolve_variant(name, variant, params.train, params.ray, hash_file=hash_file)
            for name, variant in params.variants.items()
            if variant.external is None
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
    given = None if variant.weights is None else find_weights(variant.weights)
    described = None if given is None else describe_weights(given)
    spec = _resolve_spec(variant, described, key=key)
    if given is None:
        settings, notes = _resolve_train(spec, train, variant.train or {}, key=f"{key}.train")
    else:
        notes = ()
        settings = TrainSettings(
            image_size=variant.image_size or (described.image_size if described else spec.image_size)
        )
    what = f"{'train.image_size' if given is None else 'image_size'}={settings.image_size} of variant {name!r}"
    check_image_size(spec, settings.image_size, what=what, stride_of="its largest stride")
    if settings.weights is not None:
        settings = settings.model_copy(update={"weights": find_weights(str(settings.weights))})
    teacher = settings.distil.teacher and find_weights(str(settings.distil.teacher))
    if teacher is not None:
        settings = settings.model_copy(update={"distil": settings.distil.model_copy(update={"teacher": teacher})})
    weights = given or settings.weights
    resolved = ResolvedVariant(
        name=name,
        spec=spec,
        train=settings,
        ray=_validate(RaySettings, ray.model_dump() | variant.ray, key=f"{key}.ray"),
        given=given,
        weights_hash="" if weights is None else hash_file(weights),
        teacher_hash="" if teacher is None else hash_file(teacher),
        declared=variant.model_dump(exclude={"train", "ray"}, exclude_defaults=True),
        overrides=variant.train or {},
        own_code=_hash_own_code(spec, settings, key=key),
    )
    return resolved, tuple(f"variants.{name}.train: {note}" for note in notes)


def _resolve_train(
    spec: ModelSpec, train: Mapping[str, Any], own: Mapping[str, Any], *, key: str
) -> tuple[TrainSettings, tuple[str, ...]]:
    """Resolve the training settings of one variant, and describe what the user should know about them."""
    merged, notes = resolve_settings(train, own)
    settings = _validate_train({"image_size": spec.image_size, **merged}, key=key)
    names = (".".join(path) for part in (train, own) for path, _ in leaves(part))
    stated = dict.fromkeys(name for name in names if not depends_on_data(name, recipe=settings.recipe))
    try:
        if settings.freeze is not None:
            rows_up_to(spec, settings.freeze)
    except SpecError as error:
        raise SettingError(f"{key}: {error}") from None
    return settings, (*notes, *stated_without_effect(spec.head, settings, stated))


def check_weights(variant: ResolvedVariant) -> None:
    """Check that the files that a training starts with exist.

    Args:
        variant: A variant that is trained.

    Raises:
        ArtifactError: The weights to start from, or those of the teacher, are missing.
    """
    for key, path, digest in (
        ("weights", variant.train.weights, variant.weights_hash),
        ("distil.teacher", variant.train.distil.teacher, variant.teacher_hash),
    ):
        if path is not None and digest == "missing":
            raise ArtifactError(f"train.{key}={path} {why_no_file(path)}; name a weight file (.safetensors)")


def find_weights(name_or_path: str) -> Path:
    """Return the absolute path of the weights that a parameter file names.

    Args:
        name_or_path: A path relative to the working folder, or a name of `yolov7 weights list`. A file comes first.

    Returns:
        The path. The file that a path names may be missing.

    Raises:
        SettingError: The name is that of published weights that are not fetched yet.
    """
    entry = published_weights().get(name_or_path)
    path = Path(name_or_path).expanduser()
    if entry is None or is_file(path):
        return path.resolve()
    if not entry.path.is_file():
        raise SettingError(
            f"the weights {name_or_path!r} are published but not fetched; run `yolov7 weights fetch {name_or_path}`"
        )
    return entry.path


def _resolve_spec(variant: Variant, described: Description | None, *, key: str) -> ModelSpec:
    """Return the spec of a variant: the one that it names, or that of its weight file, with its changes."""
    if variant.spec is None and described is None:
        raise SettingError(
            f"{key}.weights={variant.weights!r} is missing or does not say which model it holds; name the model in "
            f"{key}.spec (`yolov7 models` lists the specs)"
        )
    changes = variant.model_dump(include={"swap", "scale", "head", "auxiliary"}, exclude_none=True)
    try:
        if variant.spec is not None:
            return resolve_spec({"base": variant.spec, **changes}, name=Path(variant.spec).stem)
    except SpecError as error:
        raise SettingError(f"{key}: {error}") from None
    assert described is not None
    if any(changes.values()):
        raise SettingError(
            f"{key}: swap, scale, head and auxiliary change a spec, but none is stated; state {key}.spec"
        )
    return described.spec


def _validate_train(content: Mapping[str, Any], *, key: str) -> TrainSettings:
    return _validate(TrainSettings, content, key=key)


def _validate(model: type[Model], content: Mapping[str, Any], *, key: str) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise SettingError(f"{key}.{first_error(error, model=model)}") from None


def _hash_own_code(spec: ModelSpec, settings: TrainSettings, *, key: str) -> dict[str, str]:
    try:
        return hash_own_code(spec, settings)
    except SettingError as error:
        raise SettingError(f"{key}: {error}") from None


def _hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, or `missing`: only training needs the file itself."""
    return sha256_of(path) if is_file(path) else "missing"
