"""Read the weight files of darknet (`.weights`), which hold nothing but numbers.

A file has a header (three int32 of the version, and the number of images seen) and then, for each convolution in the
order of darknet's configuration, float32 values: the biases; with batch norm also scales, means and variances; and the
kernel. Layout: branch `darknet` of WongKinYiu/yolov7 (public domain).
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yolov7.errors import ArtifactError
from yolov7.nn.blocks import ConvBnAct
from yolov7.nn.heads import Detect
from yolov7.nn.model import DetectionModel
from yolov7.settings import LetterboxMode
from yolov7.spec.anchor_free import anchor_based_head
from yolov7.spec.auxiliary import without_auxiliary
from yolov7.spec.block_schema import ConvRow, CspRow, CspTinyRow, ElanRow, RepConvRow, SppRow
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import load_spec

DARKNET_SPECS = ("yolov7-tiny", "yolov7", "yolov7x", "yolov4", "yolov4-tiny")
"""The packaged specs of which weights in this format are published."""

_SCALE_XY = {"yolov4": (1.2, 1.1, 1.05), "yolov4-tiny": (1.05, 1.05)}  # of their configurations, finest level first
_YOLOV4_EPS = 1e-5  # of the batch norms of darknet's original, with which these were trained

_VERSION = struct.Struct("<3i")
_MAX_VERSION = 9  # of each of the three numbers; darknet writes 0.1.0 and 0.2.5
_MAX_CLASSES = 1000  # more would let a file of one spec be taken for a file of another
_BN_EPS = 1e-6  # of darknet as YOLOv7 uses it; ours is larger
_COCO_CLASSES = 80
_JOINED_IN_REVERSE = {"elan_tiny", "spp_tiny"}  # blocks whose concatenation darknet's configuration writes backwards
_DECODING = (
    "its boxes are decoded as those of YOLOv7; they are wrong if its configuration lacks new_coords=1, as those of "
    "YOLOv3 do"
)
_CSP_ORDER = ("b", "a", "chain", "behind", "merge")
_MERGE = re.compile(r"rows\.(\w+)\.(?:elans\.\d+\.)?merge\.conv")


class DarknetModel(NamedTuple):
    """A model from a darknet file.

    Attributes:
        model: The model, in float32.
        remarks: One phrase for each way in which the model differs from the requested spec.
        letterbox: How the model expects images to be brought to a square.
    """

    model: DetectionModel
    remarks: tuple[str, ...]
    letterbox: LetterboxMode


def is_darknet(start: bytes) -> bool:
    """Return whether a file starts with darknet's version.

    Args:
        start: The first bytes of the file.
    """
    return len(start) >= _VERSION.size and all(0 <= number <= _MAX_VERSION for number in _VERSION.unpack_from(start))


def find_darknet_specs(path: Path) -> list[str]:
    """Return the names of the published specs that a file has the right size for, with any number of classes.

    Args:
        path: The file.

    Raises:
        ArtifactError: The file does not start with darknet's version.
    """
    num_values = _count_values(path)
    return [name for name in DARKNET_SPECS if _count_classes(plain_spec(load_spec(name)), num_values)]


def read_darknet(path: Path, *, spec: ModelSpec) -> DarknetModel:
    """Read a model.

    Args:
        path: The file.
        spec: The spec that the weights were trained with. Its re-parameterised convolutions become plain ones, and it
            loses its implicit knowledge and its auxiliary head, which darknet does not have.

    Returns:
        The model.

    Raises:
        ArtifactError: The file is not a darknet file, has the wrong size for the spec, or holds values that no training
            gives.
    """
    num_values = _count_values(path)
    plain = plain_spec(spec)
    num_classes = _count_classes(plain, num_values)
    if not num_classes:
        raise misfit(path, [spec])
    with torch.device("meta"):
        model = DetectionModel(plain, num_classes=num_classes)
    values = np.fromfile(path, dtype="<f4", offset=path.stat().st_size - 4 * num_values)
    if len(values) != num_values:
        raise ArtifactError(f"{path}: is cut short; download it again")
    model.load_state_dict(_split(path, values, model), assign=True)
    rep_convs = any(isinstance(row, RepConvRow) for row in spec.rows.values())
    remarks = (["its re-parameterised convolutions are plain ones"] if rep_convs else []) + (
        ["it has no implicit knowledge"] if anchor_based_head(spec).implicit else []
    )
    if spec.name in _SCALE_XY:
        remarks.append("its boxes are decoded as darknet decodes them, so it cannot be trained further")
        return DarknetModel(model, tuple(remarks), "stretch")
    if spec.name not in DARKNET_SPECS:
        remarks.append(_DECODING)
    return DarknetModel(model, tuple(remarks), "centre")


def plain_spec(spec: ModelSpec) -> ModelSpec:
    """Return a spec in the form that darknet has: without branches, implicit knowledge and an auxiliary head.

    The packaged specs of YOLOv4 have the constants of its PyTorch training; they get those of darknet.

    Args:
        spec: Any spec.

    Returns:
        The changed spec.

    Raises:
        SpecError: The head of the spec is anchor-free.
    """
    spec = without_auxiliary(spec)
    rows: dict[str, Any] = {
        name: ConvRow.model_validate({"block": "conv", "from": row.sources, "out": row.out, "k": 3, "s": row.stride})
        if isinstance(row, RepConvRow)
        else row.model_copy(update={"half": "second"})
        if isinstance(row, CspTinyRow)
        else row
        for name, row in spec.rows.items()
    }
    head = anchor_based_head(spec)
    scale_xy = _SCALE_XY.get(spec.name, head.scale_xy)
    rows[spec.head_name] = head.model_copy(update={"implicit": False, "scale_xy": scale_xy})
    eps = _YOLOV4_EPS if spec.name in _SCALE_XY else spec.norm_eps
    return ModelSpec.model_validate({**dict(spec), "rows": rows, "norm_eps": eps})


def darknet_order(model: DetectionModel) -> list[str]:
    """Return the names of the convolutions of a model in the order of darknet's configuration.

    It is the order of this library, except that the bypasses of spatial pyramid pooling and of stages come first, and
    that each output of the head follows its 3x3 convolution.

    Args:
        model: A model of `plain_spec`.

    Returns:
        The names of the modules, such as `rows.s1.conv.conv`.
    """
    spec = model.spec
    outputs = {source: f"head.convs.{level}" for level, source in enumerate(spec.head.sources)}
    order: list[str] = []
    for name, row in model.rows.items():
        prefix = f"rows.{name}."
        own = [prefix + inner for inner, module in row.named_modules() if isinstance(module, nn.Conv2d)]
        if isinstance(spec.rows[name], SppRow):
            own.sort(key=lambda inner: not inner.startswith(f"{prefix}bypass."))
        elif isinstance(spec.rows[name], CspRow):
            own.sort(key=lambda inner: _CSP_ORDER.index(inner.removeprefix(prefix).partition(".")[0]))
        order += own
        if name in outputs:
            order.append(outputs[name])
    return order


def misfit(path: Path, specs: list[ModelSpec]) -> ArtifactError:
    """Make the error for a file whose size fits none of some specs.

    Args:
        path: The file.
        specs: The specs that were tried.

    Returns:
        The error, which states the sizes that the file should have.
    """
    header = path.stat().st_size - 4 * _count_values(path)
    measures = [_measure(plain_spec(spec)) for spec in specs]
    sizes = [header + 4 * (one + (_COCO_CLASSES - 1) * further) for one, further in measures]
    expected = ", ".join(f"{spec.name} has {size:,}" for spec, size in zip(specs, sizes, strict=True))
    return ArtifactError(
        f"{path}: its {path.stat().st_size:,} bytes fit no number of classes (with {_COCO_CLASSES} classes, "
        f"{expected}); download it again, or give the spec that it was trained with"
    )


def _count_values(path: Path) -> int:
    """Return the number of float32 values behind the header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_VERSION.size)
    if not is_darknet(start):
        raise ArtifactError(f"{path}: does not start with a version of darknet; give another file")
    major, minor, _ = _VERSION.unpack(start)
    header = _VERSION.size + (8 if 10 * major + minor >= 2 else 4)  # the number of images has 8 bytes since 0.2
    if size <= header or (size - header) % 4:
        raise ArtifactError(f"{path}: its {size:,} bytes are not a header and whole numbers; download it again")
    return (size - header) // 4


def _measure(plain: ModelSpec) -> tuple[int, int]:
    """Return how many values a model of one class has, and how many each further class adds."""
    with torch.device("meta"):
        model = DetectionModel(plain, num_classes=1)
    assert isinstance(model.head, Detect)
    counter = "num_batches_tracked"
    one = sum(tensor.numel() for name, tensor in model.state_dict().items() if not name.endswith(counter))
    inputs = [conv.weight.shape[1] for conv in model.head.convs if isinstance(conv, nn.Conv2d)]
    return one, model.head.num_anchors * sum(width + 1 for width in inputs)


def _count_classes(plain: ModelSpec, num_values: int) -> int:
    """Return the number of classes with which a spec has this many values; 0 if there is none."""
    one, further = _measure(plain)
    classes, rest = divmod(num_values - one, further)
    return classes + 1 if not rest and 0 <= classes < _MAX_CLASSES else 0


def _split(path: Path, values: NDArray[np.float32], model: DetectionModel) -> dict[str, Tensor]:
    """Cut the values into the tensors of a model."""
    modules, state, place = dict(model.named_modules()), dict[str, Tensor](), 0
    for name in darknet_order(model):
        parent = modules[name.rpartition(".")[0]]
        shape = modules[name].weight.shape
        assert isinstance(shape, torch.Size)
        width, size = shape[0], shape.numel()
        has_norm = isinstance(parent, ConvBnAct)
        vectors = values[place : place + width * (4 if has_norm else 1)].reshape(-1, width)
        place += vectors.size
        kernel = values[place : place + size].reshape(shape)
        place += size
        if not (np.isfinite(vectors).all() and np.isfinite(kernel).all() and (not has_norm or (vectors[3] >= 0).all())):
            raise ArtifactError(f"{path}: holds values of {name} that no training gives; download it again")
        state[f"{name}.weight"] = _join_forwards(torch.from_numpy(kernel.copy()), name, model.spec)
        if has_norm:
            eps = model.spec.norm_eps
            exact = eps if model.spec.name in _SCALE_XY else _BN_EPS
            norm = name.removesuffix("conv") + "bn"
            state |= _norm(norm, torch.from_numpy(vectors.copy()), exact=exact, eps=eps)
        else:
            state[f"{name}.bias"] = torch.from_numpy(vectors[0].copy())
    assert place == len(values)
    return state


def _norm(name: str, vectors: Tensor, *, exact: float, eps: float) -> dict[str, Tensor]:
    """Return a batch norm with epsilon `eps` that has the outputs of one with epsilon `exact`, by another scale."""
    bias, scale, mean, variance = vectors
    wide = variance.double()
    scale = (scale.double() * ((wide + eps) / (wide + exact)).sqrt()).float()
    return {
        f"{name}.weight": scale,
        f"{name}.bias": bias,
        f"{name}.running_mean": mean,
        f"{name}.running_var": variance,
        f"{name}.num_batches_tracked": torch.zeros((), dtype=torch.int64),
    }


def _join_forwards(kernel: Tensor, name: str, spec: ModelSpec) -> Tensor:
    """Put the inputs of a convolution behind a concatenation in the order of this library."""
    found = _MERGE.fullmatch(name)
    row = spec.rows[found[1]] if found else None
    if isinstance(row, ElanRow | SppRow) and row.block in _JOINED_IN_REVERSE:
        width = row.hidden if isinstance(row, ElanRow) else row.out
        return torch.cat(torch.split(kernel, width, dim=1)[::-1], dim=1).contiguous()
    return kernel
