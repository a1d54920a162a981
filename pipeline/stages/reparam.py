"""The stage `reparam`: make an equivalent, faster model of a trained one, and prove that it is equivalent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.artifacts.files import WEIGHTS, stage_folder, whole_folder, write_json, write_no_weights
from pipeline.artifacts.prepared import load_split
from pipeline.artifacts.reports import LayerProof, ReparamReport
from pipeline.artifacts.stage_weights import stage_weights
from pipeline.experiment import ResolvedVariant
from pipeline.external import ExternalVariant
from pipeline.params import ReparamSettings
from yolov7.data.index import ImageIndex
from yolov7.data.loader import ValLoader
from yolov7.errors import ArtifactError
from yolov7.nn.cost import count_operations, count_parameters
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.structures import HeadMaps
from yolov7.weights.weight_files import save_weights


@dataclass(frozen=True)
class OutputError:
    """Differences of outputs, relative to the largest output of the same level."""

    largest: float
    mean: float


def reparam(
    settings: ReparamSettings,
    variant: ResolvedVariant,
    *,
    seed: int,
    fuse_model: Callable[[DetectionModel], DetectionModel] = fuse,
) -> ReparamReport:
    """Re-parameterise trained weights, compare both models on training images, and save the deployed weights.

    Args:
        settings: Number of images and tolerances.
        variant: The variant that was trained.
        seed: The seed of its training.
        fuse_model: What makes the deployed model of the trained one.

    Returns:
        Sizes of both models, and the largest and mean errors of the outputs in float32 and float64.

    Raises:
        ArtifactError: If outputs differ by more than the tolerance; nothing is saved then.
    """
    index = load_split("train")
    trained = stage_weights("train", variant, seed=seed, class_names=index.class_names)
    images = _sample_images(index, image_size=trained.image_size, count=settings.images)
    deployed = fuse_model(trained.model)
    single = compare_outputs(trained.model, deployed, images)
    double = compare_outputs(_as_double(trained.model), fuse_model(_as_double(trained.model)), images.double())
    _check(single, double, settings, name=f"{variant.name}/{seed}")
    report = ReparamReport(
        variant=variant.name,
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
        layers=compare_layers(trained.model, deployed, images[:1]),
    )
    with whole_folder(stage_folder("reparam", variant.name, seed)) as folder:
        save_weights(
            folder / WEIGHTS,
            deployed,
            class_names=trained.class_names,
            image_size=trained.image_size,
            letterbox=trained.letterbox,
            training=trained.training,
        )
        write_json(folder / "reparam.json", report)
    return report


def pass_external(variant: ExternalVariant, *, seed: int) -> None:
    """Write a file without weights, and a report without a proof, because there is no model.

    Args:
        variant: An external variant.
        seed: The seed in whose folder they are written.
    """
    with whole_folder(stage_folder("reparam", variant.name, seed)) as folder:
        write_no_weights(folder / WEIGHTS, results=variant.source)
        write_json(folder / "reparam.json", {"external": variant.source})


@torch.no_grad()
def compare_outputs(before: DetectionModel, after: DetectionModel, images: Tensor) -> OutputError:
    """Compare the raw outputs of two models.

    Args:
        before: The reference.
        after: The model that should be equivalent.
        images: (n, 3, H, W), in 0..1.

    Returns:
        The largest and the mean relative error over all images, levels and values; NaN if any output is NaN.
    """
    errors = [
        ((got - expected).abs() / expected.abs().max()).flatten()
        for image in torch.split(images, 1)
        for expected, got in zip(before.eval()(image).lead, after.eval()(image).lead, strict=True)
    ]
    every = torch.cat(errors)  # the maximum is NaN if any element is
    return OutputError(largest=float(every.max()), mean=float(every.mean()))


@torch.no_grad()
def compare_layers(before: DetectionModel, after: DetectionModel, images: Tensor) -> tuple[LayerProof, ...]:
    """Compare the layers of two models one by one: each layer of `after` gets the input of the same layer of `before`.

    Args:
        before: The reference.
        after: The model that should be equivalent.
        images: (n, 3, H, W), in 0..1.

    Returns:
        Parameters and output error of each layer with parameters, then of the lead head and of the auxiliary head.
    """
    errors: dict[str, float] = {}

    def comparison(name: str, other: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def compare(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            errors[name] = _largest_error(_tensors(output), _tensors(other(*inputs)))

        return compare

    pairs = {name: (row, after.rows[name]) for name, row in before.rows.items() if name in after.rows}
    pairs["head"] = (before.head, after.head)
    handles = [row.register_forward_hook(comparison(name, other)) for name, (row, other) in pairs.items()]
    before.eval()(images)
    for handle in handles:
        handle.remove()
    parts = before.head.named_children()
    auxiliary = sum(count_parameters(part) for name, part in parts if name.startswith("auxiliary_"))
    sizes = [(name, count_parameters(row), name in pairs) for name, row in before.rows.items()]
    sizes += [("head", count_parameters(before.head) - auxiliary, True), ("auxiliary head", auxiliary, False)]
    return tuple(
        LayerProof(
            name=name,
            parameters_before=size,
            parameters_after=count_parameters(pairs[name][1]) if is_kept else 0,
            error=errors.get(name),
        )
        for name, size, is_kept in sizes
        if size
    )


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return output.lead if isinstance(output, HeadMaps) else (output,)


def _largest_error(expected: tuple[Tensor, ...], got: tuple[Tensor, ...]) -> float:
    errors = [(b - a).abs().max() / a.abs().max() for a, b in zip(expected, got, strict=True)]
    return float(torch.stack(errors).max())


def _sample_images(index: ImageIndex, *, image_size: int, count: int) -> Tensor:
    return next(iter(ValLoader(index, image_size=image_size, batch_size=count))).images.float() / 255


def _as_double(model: DetectionModel) -> DetectionModel:
    return copy.deepcopy(model).double()


def _gflops(model: DetectionModel, images: Tensor) -> float:
    """Count two operations per multiply-accumulate of all convolutions, for one image."""
    return 2 * count_operations(model, images[:1]).macs / 1e9


def _check(single: OutputError, double: OutputError, settings: ReparamSettings, *, name: str) -> None:
    measured = (
        ("float32", single.largest, settings.tolerance_float32),
        ("float64", double.largest, settings.tolerance_float64),
    )
    for precision, error, tolerance in measured:
        if not error <= tolerance:  # also if the error is NaN
            raise ArtifactError(
                f"reparam of {name}: the re-parameterised model differs from the trained one: its largest output error "
                f"is {error:.2e} in {precision}, and reparam.tolerance_{precision}={tolerance:.0e} allows less"
            )
