"""Post-training quantisation to INT8: of ONNX files for ONNX Runtime, and of OpenVINO models.

The convolutions of the head and the decoding stay in floating point, which costs almost no time and keeps the AP. Other
layers stay in floating point too if the AP demands it; `rank_layers` says which ones first.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolov7.engines.metadata import INPUT, ExportMetadata
from yolov7.nn.model import DetectionModel

FLOAT_SHARES = (0.0, 0.05, 0.15, 0.4)
"""Shares of the layers that stay in floating point, in the order in which they are tried."""

_MODEL = "model."  # before the names of parameters in an exported graph
_HEAD = f"{_MODEL}head."
_RANKED_IMAGES = 4
_LEVELS = 255  # of uint8


def write_int8_onnx(
    path: Path, float_file: Path, metadata: ExportMetadata, *, images: Tensor, float_layers: Collection[str]
) -> None:
    """Quantise an ONNX file for ONNX Runtime: the weights of convolutions by channel, their inputs by tensor.

    Args:
        path: The file to write.
        float_file: The ONNX file in float32.
        metadata: What the new file says about itself.
        images: Images for calibration (n, 3, S, S) uint8.
        float_layers: Names of convolutions in the model that stay in floating point.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._images: Iterator[Tensor] = iter(torch.split(images, 1))

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {INPUT: image.numpy()}

    excluded = [node.name for node in _float_convolutions(onnx.load(str(float_file)), float_layers)]
    with _quiet():
        quantize_static(
            str(float_file),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=excluded,
        )
    model = onnx.load(str(path))
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata.to_texts())
    onnx.save(model, str(path))


def quantise_openvino(float_file: Path, *, images: Tensor, float_layers: Collection[str]) -> Any:
    """Quantise a model for OpenVINO.

    Args:
        float_file: The ONNX file in float32.
        images: Images for calibration (n, 3, S, S) uint8.
        float_layers: Names of convolutions in the model that stay in floating point.

    Returns:
        The `openvino.Model`.
    """
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    with _quiet():
        import nncf
        import onnx
        import openvino

        model = openvino.Core().read_model(float_file)
        names = _float_operations(model, float_layers) + _from_the_head_on(onnx.load(str(float_file)))
        return nncf.quantize(
            model,
            nncf.Dataset([image.numpy() for image in torch.split(images, 1)]),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=names, validate=False),
        )


def _float_convolutions(model: Any, float_layers: Collection[str]) -> list[Any]:
    """Return the nodes of convolutions of the head, and of those that were named."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return [node for node in convolutions if _stays_float(node.input[1], float_layers)]


def _float_operations(model: Any, float_layers: Collection[str]) -> list[str]:
    """Return the names of the same convolutions in an OpenVINO model, where the names of nodes belong to their sums."""
    operations = [one for one in model.get_ops() if one.get_type_name() == "Convolution"]
    weights = {one.get_friendly_name(): one.input_value(1).get_node().get_friendly_name() for one in operations}
    return [name for name, weight in weights.items() if _stays_float(weight, float_layers)]


def _stays_float(weight: str, float_layers: Collection[str]) -> bool:
    return weight.startswith(_HEAD) or weight in {f"{_MODEL}{name}.weight" for name in float_layers}


def _from_the_head_on(model: Any) -> list[str]:
    """Return the names of all nodes that use a parameter or an output of the head, and of all means over maps for it.

    These are the nodes of the head, of the decoding and of the suppression.
    """
    reached: set[str] = set()
    names = []
    for node in model.graph.node:  # in the order of the computation
        if reached.intersection(node.input) or any(name.startswith(_HEAD) for name in node.input):
            reached.update(node.output)
            names.append(node.name)
    means = [node for node in model.graph.node if node.op_type == "ReduceMean"]
    return names + [node.name for node in means if node.name not in names]


@torch.inference_mode()
def rank_layers(
    model: DetectionModel, images: Tensor, *, progress: Callable[[int, int], None] = lambda done, of: None
) -> list[str]:
    """Order the convolutions by the error that quantising each of them alone causes in the outputs, the largest first.

    Args:
        model: The re-parameterised model in evaluation mode.
        images: Images (n, 3, S, S) uint8.
        progress: Called with the number of layers that were tried, and the number of all.

    Returns:
        The names of the convolutions outside of the head.
    """
    inputs = images[:_RANKED_IMAGES].float() / 255
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not f"{_MODEL}{name}.".startswith(_HEAD)
    }
    expected = model(inputs).lead
    errors = {}
    for number, (name, layer) in enumerate(layers.items(), start=1):
        with _quantised(layer):
            got = model(inputs).lead
        errors[name] = max(
            float((a - b).square().mean() / b.square().mean()) for a, b in zip(got, expected, strict=True)
        )
        progress(number, len(layers))
    return sorted(errors, key=lambda name: -errors[name])


@contextmanager
def _quantised(layer: nn.Conv2d) -> Iterator[None]:
    """Round the weights of a convolution to INT8 by channel, and its input to 255 levels, while the context is open."""
    weight = layer.weight.data
    step = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12) / 127
    layer.weight.data = (weight / step).round().clamp(-127, 127) * step
    hook = layer.register_forward_pre_hook(lambda _, arguments: (_round_input(arguments[0]),))
    try:
        yield
    finally:
        hook.remove()
        layer.weight.data = weight


def _round_input(values: Tensor) -> Tensor:
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    step = ((high - low) / _LEVELS).clamp(min=1e-12)
    return ((values - low) / step).round() * step + low


def float_layer_sets(ranked: Callable[[], Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Yield the sets of layers that stay in floating point, the smallest first.

    Args:
        ranked: Returns the layers, the most sensitive first; it is called only if the empty set is not enough.
    """
    order: Sequence[str] = ()
    for share in FLOAT_SHARES:
        if share and not order:
            order = ranked()
        yield tuple(order[: max(1, round(share * len(order)))]) if share else ()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the quantisers print and log."""
    loggers = [logging.getLogger(name) for name in ("nncf", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
