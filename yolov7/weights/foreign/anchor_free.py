"""Models with anchor-free heads in files of YOLOX, PP-YOLOE and YOLOv7-u6, recognised by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from yolov7.errors import ArtifactError, SpecError
from yolov7.nn.model import DetectionModel
from yolov7.settings import LetterboxMode
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import list_specs, load_spec
from yolov7.weights.foreign.model_file import ForeignModel
from yolov7.weights.foreign.module_names import PPYOLOE, YOLOX, names_in
from yolov7.weights.foreign.pixels import PPYOLOE_PIXELS, YOLOX_PIXELS, Pixels
from yolov7.weights.foreign.reference_names import reference_names
from yolov7.weights.weight_files import first_difference

_FOLDED = ".conv.bias"  # the end of the name of a bias that only a merged convolution has
_COUNTER = "num_batches_tracked"  # PP-YOLOE's batch norms do not count batches
_MAX_CLASSES = 2**16


class Family(NamedTuple):
    """An implementation of models with anchor-free heads.

    Attributes:
        title: Its name for messages.
        block: Our block of its head.
        class_bias: A pattern for the name of a bias that has one value per class.
        bins: The end of the name of a constant with the numbers 0, 1, 2, ..., which our models do not need; empty if
            there is none.
        names: A function that returns its names by ours for the tensors of a model of a spec.
        pixels: The pixels that its models take; None if they are RGB in 0..1.
        letterbox: How it brings images to a square.
    """

    title: str
    block: str
    class_bias: re.Pattern[str]
    bins: str
    names: Callable[[ModelSpec, Iterable[str]], dict[str, str]]
    pixels: Pixels | None = None
    letterbox: LetterboxMode = "centre"


class Fitted(NamedTuple):
    """The model of a spec for the tensors of a foreign model.

    Attributes:
        model: The model, with tensors on the meta device.
        names: The foreign names by the names of the model's tensors.
        fault: The first difference between the foreign model and this one; empty if it fits.
    """

    model: DetectionModel
    names: dict[str, str]
    fault: str


def _names_of_u6(spec: ModelSpec, own_names: Iterable[str]) -> dict[str, str]:
    return {own: name for name, own in reference_names(spec, own_names).weights.items()}


_FAMILIES = (
    Family(
        "YOLOX",
        "detect_yolox",
        re.compile(r"head\.cls_preds\.0\.bias"),
        "",
        partial(names_in, YOLOX),
        YOLOX_PIXELS,
        "top_left",
    ),
    Family(
        "PP-YOLOE",
        "detect_ppyoloe",
        re.compile(r"yolo_head\.pred_cls\.0\.bias"),
        "proj_conv.weight",
        partial(names_in, PPYOLOE),
        PPYOLOE_PIXELS,
        "stretch",
    ),
    Family("YOLOv7-u6", "detect_dfl", re.compile(r"model\.\d+\.cv3\.0\.2\.bias"), "dfl.conv.weight", _names_of_u6),
)


def find_family(foreign: ForeignModel) -> Family | None:
    """Return the implementation that a file is of.

    Args:
        foreign: The opened file.

    Returns:
        The implementation; None if the names of the tensors are those of no implementation with anchor-free heads.

    Raises:
        ArtifactError: The model is merged for deployment, or has more classes than a detector has.
    """
    for family in _FAMILIES:
        found = _class_bias(foreign, family)
        if found is None:
            continue
        if foreign.shapes[found] > (_MAX_CLASSES,) or len(foreign.shapes[found]) != 1:
            raise ArtifactError(f"{foreign.path}: {found} of shape {foreign.shapes[found]} is not one value per class")
        merged = next((name for name in foreign.shapes if name.endswith(_FOLDED)), None)
        if merged:
            raise ArtifactError(
                f"{foreign.path}: is a model of {family.title} that is merged for deployment (it has {merged}); give "
                "the checkpoint of its training"
            )
        return family
    return None


def fit_family(spec: ModelSpec, foreign: ForeignModel, family: Family) -> Fitted:
    """Build the model of a spec with the classes of a foreign model, and compare their tensors.

    Args:
        spec: The spec.
        foreign: The opened file.
        family: The implementation that wrote it.

    Returns:
        The model, and whether it fits.

    Raises:
        ArtifactError: The file is damaged.
        SpecError: The spec has a row or a head that the implementation does not have.
    """
    if spec.head.block != family.block:
        raise SpecError(
            f"the file is a model of {family.title}, but spec {spec.name!r} has the head {spec.head.block!r}; name a "
            f"spec with the head {family.block!r}"
        )
    found = _class_bias(foreign, family)
    assert found is not None
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=foreign.shapes[found][0])
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = family.names(spec, own)
    constants = [name for name in foreign.shapes if family.bins and name.endswith(family.bins)]
    expected = {name: own[key] for key, name in names.items()}
    fault = first_difference(expected, {name: s for name, s in foreign.shapes.items() if name not in constants})
    return Fitted(model, names, fault or _other_bins(foreign, constants))


def find_specs_of_family(foreign: ForeignModel, family: Family) -> list[str]:
    """Return the names of the packaged specs that a foreign model fits.

    Args:
        foreign: The opened file.
        family: The implementation that wrote it.

    Returns:
        The names in alphabetical order.
    """
    specs = [spec for spec in map(load_spec, list_specs()) if spec.head.block == family.block]
    return [spec.name for spec in specs if not fit_family(spec, foreign, family).fault]


def read_tensors(foreign: ForeignModel, fitted: Fitted) -> dict[str, Tensor]:
    """Read the tensors of a model that fits.

    Args:
        foreign: The opened file.
        fitted: The model of the spec.

    Returns:
        The tensors by our names, in the types of our model. Counters of batches that the file does not have are zero.

    Raises:
        ArtifactError: The file is damaged.
    """
    own = fitted.model.state_dict()
    read = {key: tensor.to(own[key].dtype) for key, tensor in foreign.read(fitted.names).items()}
    counters = {key: torch.zeros((), dtype=value.dtype) for key, value in own.items() if key.endswith(_COUNTER)}
    return counters | read


def _class_bias(foreign: ForeignModel, family: Family) -> str | None:
    return next((name for name in foreign.shapes if family.class_bias.fullmatch(name)), None)


def _other_bins(foreign: ForeignModel, constants: list[str]) -> str:
    for name, numbers in foreign.read({name: name for name in constants}).items():
        if not torch.equal(numbers.flatten().double(), torch.arange(numbers.numel(), dtype=torch.float64)):
            return f"{name} must be the numbers 0, 1, 2, ..."
    return ""
