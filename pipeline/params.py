"""The schema of params.yaml: what to compare, on which data, and how. Imports no torch.

The settings of the detector itself are in `yolov7.settings`. `pipeline.experiment` turns the validated file into the
values that stages receive; nothing else reads `Params`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.data_settings import MAX_SEED, DataSettings
from pipeline.tune_settings import TuneSettings
from yolov7.errors import SettingError, one_line, shown
from yolov7.settings import COCO_ENGINE, COCO_NMS, CocoEngine, NmsSettings, Precision
from yolov7.spec.scaling import Rule
from yolov7.system.files import is_file
from yolov7.system.settings_base import NonNegative, Positive, Probability, Settings, describe_fault, nested_settings
from yolov7.system.yaml_files import read_yaml

PARAMS_FILE = "params.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class ScaleSettings(Settings):
    """Scaling of a spec (section 3.2 of the paper)."""

    rule: Rule = Field("compound", description="Which factors apply: compound, depth, width or both.")
    depth: Positive | dict[str, Positive] = Field(
        1.0, description="Factor on the depth of computational blocks, or one factor for each named row."
    )
    width: Positive = Field(1.0, description="Factor on every width; `compound` derives it from the depth.")


ZooName = Literal["detr-dc5-r101", "deformable-detr"]


class ExternalSettings(Settings):
    """A system that is not built here: its results and its cost are tabulated beside the other variants."""

    predictions: str | None = Field(
        None, description="COCO results file of the split that is evaluated: image_id, category_id, bbox and score."
    )
    zoo: ZooName | None = Field(
        None, description="A model whose parameters and FLOPs are counted with a library (extra `zoo`)."
    )
    params: Positive | None = Field(None, description="Millions of parameters, as the authors state them.")
    gflops: Positive | None = Field(None, description="GFLOPs, as the authors state them.")
    image_size: Annotated[int, Field(ge=1)] | None = Field(None, description="Side of the images, pixels.")

    @model_validator(mode="after")
    def _check_source(self) -> ExternalSettings:
        if self.predictions is None and self.zoo is None:
            raise ValueError("external has neither predictions nor zoo; name a COCO results file, or a model in zoo")
        if self.zoo is not None and (self.params is not None or self.gflops is not None):
            raise ValueError("params and gflops of a model in zoo are counted; leave them out, or leave out zoo")
        return self


class Variant(Settings):
    """One model of the comparison: trained here, given by its weights, or known by its results only (`external`)."""

    spec: str | None = Field(
        None, description="A name from `yolov7 models`, or the path of a spec file; null: the spec in `weights`."
    )
    swap: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Changes of rows of the spec, key by key."
    )
    scale: ScaleSettings | None = Field(None, description="Scaling of the spec.")
    head: Literal["anchor_free", "one_to_one"] | None = Field(
        None,
        description="`anchor_free`: replace the anchor-based head by that of YOLOv7-u6; `one_to_one`: by a form of it "
        "that needs no non-maximum suppression; null: as in the spec.",
    )
    auxiliary: bool | None = Field(
        None, description="Train with an auxiliary head (true) or without one (false); null: as in the spec."
    )
    weights: str | None = Field(
        None, description="Weight file that is evaluated as it is, without training; needs `train: null`."
    )
    image_size: Annotated[int, Field(ge=32, le=8192)] | None = Field(
        None, description="Side of the images for `weights`, pixels; null: as the weight file or the spec says."
    )
    train: dict[str, Any] | None = Field(
        default_factory=dict, description="Overrides of `train`, with the same nesting; null: no training."
    )
    ray: dict[str, Any] = Field(default_factory=dict, description="Overrides of `ray`.")
    external: ExternalSettings | None = Field(
        None, description="Results of a system that is not built here, instead of all other keys."
    )

    @model_validator(mode="after")
    def _check_external(self) -> Variant:
        others = sorted(self.model_fields_set - {"external"})
        if self.external is not None and others:
            raise ValueError(f"external is for systems that are not built here; leave out {', '.join(others)}")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> Variant:
        if self.external is not None:
            return self
        if self.train is None and self.weights is None:
            raise ValueError("train=null means that weights are given; name their file in weights, or state train: {}")
        if self.weights is not None and self.train is not None:
            raise ValueError(
                "weights is for models that are not trained; state train: null beside it, or name the weights from "
                "which a training starts in train.weights"
            )
        if self.image_size is not None and self.weights is None:
            raise ValueError("image_size is for given weights; state train.image_size for a variant that is trained")
        if self.spec is None and self.weights is None:
            raise ValueError("spec is missing; choose one of `yolov7 models`, or state external for results of others")
        return self


class ReparamSettings(Settings):
    """Largest error of the re-parameterised model, relative to the scale of its outputs."""

    images: int = Field(16, ge=1, description="Number of training images on which outputs are compared.")
    tolerance_float32: Positive = Field(1e-4, description="Largest relative error in float32.")
    tolerance_float64: Positive = Field(1e-9, description="Largest relative error in float64.")


class EvaluateSettings(Settings):
    """COCO evaluation. The defaults are those of the reference."""

    batch_size: int = Field(16, ge=1, description="Images per batch.")
    nms: NmsSettings = Field(COCO_NMS, description="Non-maximum suppression.")
    engine: CocoEngine = Field(
        COCO_ENGINE, description="Library that computes the figures; pycocotools is COCO's own and slower."
    )
    tolerance_ap: Positive = Field(1e-3, description="Largest change of AP that re-parameterisation may cause.")
    examples: int = Field(12, ge=1, le=100, description="Number of images that are drawn with their detections.")
    example_confidence: Probability = Field(0.35, description="Lowest confidence of a detection that is drawn.")


class BenchmarkSettings(Settings):
    """Latency and FPS. All variants are measured in interleaved rounds, so that their rows are comparable."""

    rounds: int = Field(15, ge=3, description="Number of rounds.")
    seconds_per_round: Positive = Field(0.3, description="Seconds per model and round.")
    warmup_seconds: NonNegative = Field(0.5, description="Seconds of warm-up per model.")
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1, description="Batch sizes.")
    precisions: tuple[Precision | Literal["int8"], ...] = Field(
        ("auto",), min_length=1, description="Types of the computation; int8 is measured with engines that have it."
    )
    engines: tuple[Literal["torch", "torch-compile", "cuda-graphs", "onnxruntime", "openvino", "tensorrt"], ...] = (
        Field(
            ("torch",),
            min_length=1,
            description="What runs the deployed models. Models are exported for onnxruntime, openvino and tensorrt.",
        )
    )


_Workers = Annotated[int, Field(ge=1)]


class RaySettings(Settings):
    """Where training runs. These settings do not affect the result, so a change of them trains nothing again.

    The environment variable RAY_ADDRESS names a cluster to join. Without it, a cluster is started on this machine.
    """

    workers: _Workers | tuple[_Workers, _Workers] = Field(
        1, description="Number of workers, or [fewest, most]: as many as there is room for at any time."
    )
    placement: Literal["PACK", "SPREAD"] = Field(
        "PACK", description="PACK: place workers on few nodes; SPREAD: on many."
    )
    cpus_per_worker: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="CPUs of a worker.")
    gpus_per_worker: NonNegative | Literal["auto"] = Field(
        "auto", description="GPUs of a worker; auto: one if there are GPUs."
    )
    storage: Annotated[str, Field(pattern=r"^s3://[^/]+(/.*)?$")] | None = Field(
        None,
        description="Folder for copies of runs, s3://BUCKET/FOLDER. Another machine can continue a run from its copy. "
        "A copy is deleted when DVC has recorded the run.",
    )
    max_failures: int = Field(2, ge=0, description="Number of restarts from the last checkpoint after failures.")
    start_timeout: Positive = Field(45.0, description="Seconds to wait for room for the fewest workers.")
    resize_seconds: Positive = Field(60.0, description="Seconds between two checks for room for more workers.")

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError(f"{shown(list(workers))} must be the fewest workers, then the most")
        return workers

    @property
    def fewest_workers(self) -> int:
        """Number of workers that training needs at least."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Number of workers that training uses at most."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class TrackingSettings(Settings):
    """MLflow. MLFLOW_TRACKING_URI names a server; without it, a SQLite file in the project is used."""

    experiment: str = Field("yolov7", description="Name of the MLflow experiment.")
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] | None = Field(
        "yolov7",
        description="Registered model whose versions are the deployed detectors; the best one is its champion.",
    )


class Params(Settings):
    """The whole of params.yaml, validated key by key.

    `train` and the overrides of variants stay as they are written, because every stated key takes precedence over a
    recipe. `pipeline.experiment` merges and validates them.
    """

    plugins: tuple[str, ...] = Field(
        (), description="Packages of your own whose blocks may be imported, such as [mypkg]."
    )
    data: DataSettings = DataSettings()
    seeds: tuple[int, ...] = (0,)
    variants: dict[str, Variant] = Field(min_length=1)
    train: dict[str, Any] = Field(default_factory=dict)
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
                    f"the variant name {shown(name)} must consist of letters, digits, '_' and '-', and begin with a "
                    "letter or digit, because it names folders and DVC stages"
                )
        return variants

    @field_validator("variants")
    @classmethod
    def _check_models(cls, variants: dict[str, Variant]) -> dict[str, Variant]:
        if all(variant.external is not None for variant in variants.values()):
            raise ValueError("all variants are external; state at least one with a spec or weights")
        return variants

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > MAX_SEED:
            raise ValueError(f"seeds={shown(list(seeds))} must be one or more different numbers from 0 to {MAX_SEED}")
        return seeds

    @model_validator(mode="after")
    def _check_splits(self) -> Params:
        if not self.data.has_split("val") and not self.data.has_split("test"):
            raise ValueError("data.val and data.test are both null, but evaluate needs one of them; name a split")
        return self


def load_params(path: Path = Path(PARAMS_FILE)) -> Params:
    """Read and validate a parameter file.

    Args:
        path: The YAML file.

    Returns:
        The validated content.

    Raises:
        SettingError: If the file is missing or a key is wrong, in one line that names the key and the remedy.
    """
    if not is_file(path):
        raise SettingError(f"{path} is missing; run this in the project's folder, or `yolov7 use demo` to get one")
    return parse_params(read_yaml(path), source=str(path))


def parse_params(content: Mapping[str, Any], *, source: str) -> Params:
    """Validate the content of a parameter file.

    Args:
        content: Plain values, as YAML gives them.
        source: Where they are from, for messages.

    Returns:
        The validated content.

    Raises:
        SettingError: If a key is wrong, in one line that names the source, the key and the remedy.
    """
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise SettingError(one_line(f"{source}: {first_error(error)}")) from None


def first_error(error: ValidationError, *, model: type[Settings] = Params) -> str:
    """Describe the first fault of a validation, such as `train.epoch: unknown key; did you mean 'epochs'?`.

    Args:
        error: What pydantic raised.
        model: The class that was validated, to suggest keys.

    Returns:
        One line, with the number of further faults.
    """
    return describe_fault(error, model, child=_child)


def _child(model: type[Settings] | None, part: str) -> type[Settings] | None:
    if model is Params and part == "variants":
        return Params  # the next part is the variant's name
    if model is Params and part not in Params.model_fields:
        return Variant
    return nested_settings(model, part)
