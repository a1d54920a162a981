"""The stage `reparam`: a trained model becomes an equivalent, faster one, and proves that it is equivalent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.artifacts.files import WEIGHTS, ReparamReport, stage_folder, whole_folder, write_json
from pipeline.artifacts.stage_weights import stage_weights
from pipeline.params import Params, ReparamSettings
from yolov7.data.index import ImageIndex, load_index
from yolov7.data.loader import ValLoader
from yolov7.errors import ArtifactError
from yolov7.nn.cost import count_operations, count_parameters
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.weights.weight_files import save_weights


@dataclass(frozen=True)
class OutputError:
    """How far outputs differ, relative to the largest output of the same level."""

    largest: float
    mean: float


def reparam(
    params: Params, *, variant: str, seed: int, fuse_model: Callable[[DetectionModel], DetectionModel] = fuse
) -> ReparamReport:
    """Fuses the trained weights, compares both models on real images, and saves the deployed weights.

    ArtifactError where the outputs differ by more than `reparam.tolerance_*` allows; nothing is saved then.
    """
    index = load_index(stage_folder("prepare") / "train.npz")
    trained = stage_weights("train", params, variant=variant, seed=seed, class_names=index.class_names)
    images = _sample_images(index, image_size=trained.image_size, count=params.reparam.images)
    deployed = fuse_model(trained.model)
    single = compare_outputs(trained.model, deployed, images)
    double = compare_outputs(_as_double(trained.model), fuse_model(_as_double(trained.model)), images.double())
    _check(single, double, params.reparam, name=f"{variant}/{seed}")
    report = ReparamReport(
        variant=variant,
        seed=seed,
        parameters_before=count_parameters(trained.model),
        parameters_after=count_parameters(deployed),
        gflops_before=_gflops(trained.model, images),
        gflops_after=_gflops(deployed, images),
        images=len(images),
        max_error_float32=single.largest,
        mean_error_float32=single.mean,
        max_error_float64=double.largest,
        mean_error_float64=double.mean,
    )
    with whole_folder(stage_folder("reparam", variant, seed)) as folder:
        save_weights(
            folder / WEIGHTS,
            deployed,
            class_names=trained.class_names,
            image_size=trained.image_size,
            training=trained.training,
        )
        write_json(folder / "reparam.json", report)
    return report


@torch.no_grad()
def compare_outputs(before: DetectionModel, after: DetectionModel, images: Tensor) -> OutputError:
    """The error of `after`'s raw maps against `before`'s over images (n, 3, H, W)."""
    errors = [
        ((got - expected).abs() / expected.abs().max()).flatten()
        for image in torch.split(images, 1)
        for expected, got in zip(before.eval()(image).lead, after.eval()(image).lead, strict=True)
    ]
    every = torch.cat(errors)  # torch's maximum is not a number where any element is not
    return OutputError(largest=float(every.max()), mean=float(every.mean()))


def _sample_images(index: ImageIndex, *, image_size: int, count: int) -> Tensor:
    return next(iter(ValLoader(index, image_size=image_size, batch_size=count))).images.float() / 255


def _as_double(model: DetectionModel) -> DetectionModel:
    return copy.deepcopy(model).double()


def _gflops(model: DetectionModel, images: Tensor) -> float:
    """2 x multiply-accumulate of all convolutions, for one image."""
    return 2 * count_operations(model, images[:1]).macs / 1e9


def _check(single: OutputError, double: OutputError, settings: ReparamSettings, *, name: str) -> None:
    measured = (
        ("float32", single.largest, settings.tolerance_float32),
        ("float64", double.largest, settings.tolerance_float64),
    )
    for precision, error, tolerance in measured:
        if not error <= tolerance:  # also where the error is not a number
            raise ArtifactError(
                f"reparam of {name}: the re-parameterised model is not the trained one: largest output error "
                f"{error:.2e} in {precision}, allowed reparam.tolerance_{precision}={tolerance:.0e}"
            )
