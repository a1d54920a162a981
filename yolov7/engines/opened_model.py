"""Open a weight file or an exported model with the engine that runs it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from yolov7.inference.engine import Engine, ModelEngine
from yolov7.nn.regroup import faster_form
from yolov7.system.precision import autocast, precision_name, resolve_device, resolve_precision
from yolov7.weights.weight_files import load_weights


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to run, and what its file says about it.

    Attributes:
        engine: What runs the model.
        engine_name: The engine's name, such as `torch` or `openvino`.
        precision: The floating-point type of the computation, or `int8`.
        class_names: Names by label.
        image_size: Side in pixels of the square that images are fitted into.
        path: The file or folder.
    """

    engine: Engine
    engine_name: str
    precision: str
    class_names: tuple[str, ...]
    image_size: int
    path: Path


def open_model(
    path: str | os.PathLike[str], *, engine: str = "auto", device: str = "auto", precision: str = "auto"
) -> OpenedModel:
    """Open a weight file or an exported model.

    Args:
        path: A weight file, an exported file, or a folder with an exported model.
        engine: Name of the engine; `auto` is the fastest one that is installed and that runs the file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `float32`, `bfloat16` or `float16`; `auto` is the fastest of these on the device.

    Returns:
        The model.

    Raises:
        ArtifactError: If the file is not a model.
        SettingError: If the engine, the device or the precision is unknown or not available.
    """
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    weights = load_weights(path, device=where)
    with autocast(dtype, where):
        model = faster_form(weights.model.eval(), torch.zeros(1, 3, *[weights.image_size] * 2, device=where))
    return OpenedModel(
        engine=ModelEngine(model, dtype),
        engine_name="torch",
        precision=precision_name(dtype),
        class_names=weights.class_names,
        image_size=weights.image_size,
        path=Path(path),
    )
