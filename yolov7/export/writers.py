"""Files of each format, with their metadata inside."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolov7.engines.metadata import INPUT, ExportMetadata, Layout
from yolov7.engines.tensor_rt import join_engine
from yolov7.engines.torch_script import TEXTS_FILE
from yolov7.errors import ArtifactError, one_line
from yolov7.export.suppression import onnx_translations
from yolov7.system.files import write_whole

OPSET = 20
_LARGEST_BATCH = 1024
_LARGEST_SIDE = 8192  # pixels
_EXPORTERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def write_onnx(path: Path, graph: nn.Module, metadata: ExportMetadata) -> None:
    """Write an ONNX file whose batch is dynamic, and whose size is dynamic unless the metadata fix it.

    Args:
        path: The file.
        graph: The module, which takes images (B, 3, H, W) uint8.
        metadata: What the file says about itself.
    """
    side, stride = metadata.image_size, max(metadata.strides)
    # The exporter takes sizes of 1 for constants. An unequal height and width keep both apart.
    width = side if metadata.fixed_size else side + stride
    images = torch.zeros(2, 3, side, width, dtype=torch.uint8)
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)}
    if not metadata.fixed_size:
        steps = _LARGEST_SIDE // stride
        shapes |= {
            2: stride * torch.export.Dim("height", min=1, max=steps),
            3: stride * torch.export.Dim("width", min=1, max=steps),
        }
    program = export_graph(graph, images, names=metadata.outputs, shapes=shapes)
    program.model.metadata_props.clear()
    program.model.metadata_props.update(metadata.to_texts())
    program.save(str(path), external_data=False)


def export_graph(
    graph: nn.Module, example: Tensor, *, names: Sequence[str], shapes: Mapping[int, Any] | None = None
) -> torch.onnx.ONNXProgram:
    """Convert a module of one input to an ONNX graph.

    Args:
        graph: The module; it may contain `suppress_in_graph`.
        example: An input.
        names: Names of the outputs.
        shapes: The dynamic axes of the input; None if all of them are fixed.

    Returns:
        The program.
    """
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(names),
            opset_version=OPSET,
            dynamic_shapes=None if shapes is None else (dict(shapes),),
            custom_translation_table=onnx_translations(),
        )
    assert program is not None
    return program


def write_openvino(path: Path, onnx_file: Path, metadata: ExportMetadata) -> None:
    """Write an OpenVINO model (.xml and .bin) of an ONNX file.

    Args:
        path: The .xml file.
        onnx_file: The ONNX file, which takes images (B, 3, H, W) RGB.
        metadata: What the model says about itself; a precision of float16 stores the weights in half the size, and an
            other layout than that of the ONNX file adds its conversion to the model.
    """
    import openvino

    save_openvino(path, openvino.Core().read_model(onnx_file), metadata)


def save_openvino(path: Path, model: Any, metadata: ExportMetadata) -> None:
    """Save an OpenVINO model with its metadata, in the layout that they state.

    Args:
        path: The .xml file.
        model: The model, which takes images (B, 3, H, W) RGB.
        metadata: What the model says about itself.
    """
    import openvino

    model = _with_layout(model, metadata.input)
    for name, text in metadata.to_texts().items():
        model.set_rt_info(text, ["framework", name])  # where OpenVINO keeps the metadata of ONNX files
    openvino.save_model(model, path, compress_to_fp16=metadata.precision == "float16")


def _with_layout(model: Any, layout: Layout) -> Any:
    if layout == "rgb_nchw":
        return model
    from openvino import Layout as Axes
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().tensor().set_layout(Axes("NHWC"))
    steps.input().model().set_layout(Axes("NCHW"))
    if layout == "bgr_nhwc":
        steps.input().preprocess().reverse_channels()  # convert_color leaves the channels as they are
    return steps.build()


def write_torchscript(path: Path, graph: nn.Module, metadata: ExportMetadata) -> None:
    """Write a TorchScript file, which takes batches and images of any size.

    Args:
        path: The file.
        graph: The module, which takes images (B, 3, H, W) uint8.
        metadata: What the file says about itself.
    """
    graph = graph.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.zeros(1, 3, *[metadata.image_size] * 2, dtype=torch.uint8)
    texts = json.dumps(metadata.to_texts(), ensure_ascii=False)
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(graph, images, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path), _extra_files={TEXTS_FILE: texts})


def write_tensorrt(path: Path, onnx_file: Path, metadata: ExportMetadata, *, largest_batch: int) -> None:
    """Build a TensorRT engine of an ONNX file for the GPU of this machine.

    Args:
        path: The engine file.
        onnx_file: The ONNX file; its types are those in which the engine computes.
        metadata: What the engine says about itself; its size must be fixed.
        largest_batch: The largest batch that the engine takes.

    Raises:
        ArtifactError: If TensorRT cannot read the file or build the engine.
    """
    import tensorrt

    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    # Before release 11, networks are strongly typed only on request.
    strong = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = tensorrt.OnnxParser(network, tensorrt.Logger(tensorrt.Logger.ERROR))
    if not parser.parse(onnx_file.read_bytes()):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ArtifactError(f"{path}: TensorRT cannot read the ONNX graph ({one_line(reasons)})")
    sides = (3, metadata.image_size, metadata.image_size)
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, (1, *sides), (1, *sides), (largest_batch, *sides))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ArtifactError(f"{path}: TensorRT {tensorrt.__version__} cannot build the engine on this GPU")
    write_whole(path, join_engine(metadata.to_texts(), bytes(plan)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the remarks of the exporters about optional packages, deprecations and tracing."""
    loggers = [logging.getLogger(name) for name in _EXPORTERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
