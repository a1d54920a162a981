"""Weights that a variant gives instead of a training (`weights: FILE` with `train: null`)."""

from __future__ import annotations

from dataclasses import replace

from pipeline.experiment import ResolvedVariant
from yolov7.errors import ArtifactError
from yolov7.system.files import why_no_file
from yolov7.weights.adaptation import is_of_spec, select_classes
from yolov7.weights.description import describe_weights
from yolov7.weights.foreign.reference import open_weights
from yolov7.weights.weight_files import Weights


def load_given(variant: ResolvedVariant, *, class_names: tuple[str, ...]) -> Weights:
    """Load the weight file that a variant names instead of a training.

    Args:
        variant: A variant with given weights.
        class_names: The classes of the prepared data. The weights may have more classes and another order of them.

    Returns:
        The weights, with the outputs for these classes, at the image size of the variant.

    Raises:
        ArtifactError: If the file is missing or damaged, is of another spec, or lacks a class.
    """
    assert variant.given is not None
    if variant.weights_hash == "missing":
        why = why_no_file(variant.given)
        raise ArtifactError(f"weights={variant.given} of variant {variant.name!r} {why}; name a weight file")
    weights = open_weights(variant.given, spec=variant.spec)
    described = describe_weights(variant.given)  # of another format, reading has checked that it fits the spec
    if described is not None and not is_of_spec(described.spec, variant.spec):
        raise ArtifactError(
            f"weights={variant.given} of variant {variant.name!r} is of spec {weights.model.spec.name!r}, which is "
            f"not {variant.spec.name!r} as params.yaml states it; correct spec, or leave it out"
        )
    try:
        model = select_classes(weights.model, weights.class_names, class_names)
    except ArtifactError as error:
        raise ArtifactError(f"weights={variant.given} of variant {variant.name!r}: {error}") from None
    return replace(weights, model=model, class_names=class_names, image_size=variant.train.image_size)
