"""What a weight file says about its model, read without its tensors. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import safetensors

from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import spec_from_json
from yolov7.system.files import is_file

READERS = Path(__file__).parent  # the code that reads weight files of every format


@dataclass(frozen=True)
class Description:
    """What a weight file says about its model.

    Attributes:
        spec: Its specification.
        image_size: The side of the square training images in pixels.
    """

    spec: ModelSpec
    image_size: int


def describe_weights(path: str | os.PathLike[str]) -> Description | None:
    """Read the specification and the image size of a weight file.

    Args:
        path: The file.

    Returns:
        What the file says; None if it is missing, damaged or of another format. `load_weights` names the fault.
    """
    if not is_file(Path(path)):
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        return Description(spec_from_json(metadata["spec"]), int(metadata["image_size"]))
    except (safetensors.SafetensorError, OSError, KeyError, ValueError):
        return None
