"""Which specs a foreign model fits, and the model of a spec with the reference's names for its tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch

from yolov7.errors import SpecError
from yolov7.nn.blocks import make_activation
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.nn.regroup import regroup_spec
from yolov7.spec.auxiliary import without_auxiliary
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.spec.spec_files import list_specs, load_spec
from yolov7.weights.foreign.detection_head import BUFFERS, Head, adapt, anchors_of, count_classes
from yolov7.weights.foreign.model_file import ForeignModel
from yolov7.weights.foreign.reference_names import reference_names
from yolov7.weights.weight_files import first_difference

_STEM = "head.auxiliary_stems.{}.conv.{}"  # the folded 3x3 convolutions of an auxiliary head


class Fitted(NamedTuple):
    """The model of a spec for the tensors of a foreign model.

    Attributes:
        model: The model, with tensors on the meta device. E-ELAN is in the form of branches.
        spec: The spec with the head of the foreign model.
        names: The reference's names by the names of the model's tensors.
        fault: The first difference between the foreign model and this one; empty if it fits.
    """

    model: DetectionModel
    spec: ModelSpec
    names: dict[str, str]
    fault: str


def fit(spec: ModelSpec, foreign: ForeignModel, head: Head) -> Fitted:
    """Build the model of a spec with the head of a foreign model, and compare their tensors.

    Args:
        spec: The spec.
        foreign: The opened file.
        head: Its detection layer.

    Returns:
        The model, and whether it fits.

    Raises:
        ArtifactError: The anchors or the outputs of the foreign model cannot be used.
        SpecError: The spec has no counterpart in the reference implementation.
    """
    num_classes = count_classes(foreign, head, spec)
    adapted = adapt(spec, head, anchors_px=anchors_of(foreign, head, spec))
    branches = regroup_spec(adapted, grouped=False)
    with torch.device("meta"):
        model = DetectionModel(without_auxiliary(branches) if head.fused else branches, num_classes=num_classes)
        model = fuse(model) if head.fused else model
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stems = [_STEM.format(i, part) for i in range(len(adapted.head.taps)) for part in ("weight", "bias")]
    both = reference_names(branches, [*own, *(stems if head.fused else ())]).weights
    names = {key: name for name, key in both.items() if key in own}
    ignored = {head.layer + buffer for buffer in BUFFERS}
    if head.fused:  # `fuse` of the reference leaves what it has folded, and the auxiliary head, in the file
        ignored |= both.keys() - set(names.values())
        ignored |= {
            name for name in foreign.shapes if name.startswith(tuple(head.layer + m for m in ("ia.", "im.", "m2.")))
        }
    expected = {name: own[key] for key, name in names.items()}
    fault = first_difference(expected, {name: shape for name, shape in foreign.shapes.items() if name not in ignored})
    fitted_spec = without_auxiliary(adapted) if head.fused else adapted
    return Fitted(model, fitted_spec, names, fault or _other_activation(foreign, spec))


def find_specs(foreign: ForeignModel, head: Head) -> list[str]:
    """Return the names of the packaged specs that a foreign model fits.

    Args:
        foreign: The opened file.
        head: Its detection layer.

    Returns:
        The names in alphabetical order. Specs that differ only in their activation fit the same state dict.
    """
    plain = head._replace(anchors=None, anchors_px=None)
    fitting = []
    for name in list_specs():
        spec = load_spec(name)
        shapes = infer_shapes(spec)
        if [shapes[source].channels for source in spec.head.sources] != head.widths:
            continue
        try:
            if not fit(spec, foreign, plain).fault:
                fitting.append(name)
        except SpecError:  # such as no place for an auxiliary head
            continue
    return fitting


def _other_activation(foreign: ForeignModel, spec: ModelSpec) -> str:
    """Describe the activation of the foreign model if it differs from the spec's; the tensors do not show it."""
    expected = type(make_activation(spec.activation)).__name__
    others = sorted(foreign.activations - {expected, "Identity"})
    return f"its activation is {others[0]}, its spec asks for {expected}" if others else ""
