"""OpenVINO, on the CPU."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from yolov7.engines.arrays import check_size, to_array, to_decoded, to_tensors
from yolov7.engines.metadata import REMEDY, ExportMetadata, check_outputs
from yolov7.errors import ArtifactError, SettingError, one_line

_SECTION = "framework"
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""OpenVINO's name of the type in which layers that are not quantised are computed."""
_CALLS_BEFORE_FIXING = 5
_MOST_FIXED_SHAPES = 2  # each has a copy of the compiled model


def read_openvino_texts(path: Path) -> dict[str, str]:
    """Return the texts that an OpenVINO model holds.

    Args:
        path: The .xml file; its .bin file lies beside it.

    Returns:
        The texts by name.

    Raises:
        ArtifactError: If the file is damaged or is not a model.
    """
    model = _read_model(path)
    # A model that OpenVINO read from an ONNX file has the texts of that file in the section `framework`.
    names = [[_SECTION, name] for name in ExportMetadata.model_fields]
    return {name[1]: model.get_rt_info(name).astype(str) for name in names if model.has_rt_info(name)}


def openvino_precisions(metadata: ExportMetadata) -> tuple[str, ...]:
    """Return the types in which OpenVINO can compute a file on this CPU, the fastest first.

    Args:
        metadata: What the file says about itself.

    Returns:
        `bfloat16` if the CPU multiplies it in hardware, then `float32`; only `int8` for a quantised file.
    """
    if metadata.precision == "int8":
        return ("int8",)
    return ("bfloat16", "float32") if has_fast_bfloat16() else ("float32",)


@cache
def has_fast_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, so that OpenVINO computes with it."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def resolve_openvino_precision(precision: str, metadata: ExportMetadata) -> str:
    """Return the type in which OpenVINO computes.

    Args:
        precision: `auto` for the fastest one, or the name of a type.
        metadata: What the file says about itself.

    Returns:
        The type.

    Raises:
        SettingError: If OpenVINO cannot compute the file in this type on this CPU.
    """
    able = openvino_precisions(metadata)
    if precision == "auto":
        return able[0]
    if precision not in able:
        names = " or ".join(repr(one) for one in able)
        raise SettingError(f"precision={precision!r}: OpenVINO computes this file on this CPU in {names}; use 'auto'")
    return precision


@final
class OpenVinoEngine:
    """Runs an ONNX file or an OpenVINO model with OpenVINO. Only one thread may use it at a time.

    A model whose shapes are fixed gives the same values in less time than one that takes any batch and size. So the
    model is compiled again, which takes less than a second, for the first two shapes of images that come repeatedly.
    """

    def __init__(self, path: Path, metadata: ExportMetadata, *, precision: str) -> None:
        """Load and compile the file.

        Args:
            path: The .onnx or .xml file.
            metadata: What it says about itself.
            precision: What `resolve_openvino_precision` returned.

        Raises:
            ArtifactError: If the file is damaged.
        """
        import openvino

        self._model = _read_model(path)
        check_outputs(path, (output.any_name for output in self._model.outputs), metadata)
        self._options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._core = openvino.Core()
        try:
            self._request = self._compile(self._model)
        except RuntimeError as error:
            raise ArtifactError(f"{path}: OpenVINO cannot compile it ({one_line(error)}); {REMEDY}") from None
        self._metadata = metadata
        self.needs_suppression = metadata.needs_suppression
        self._calls: Counter[tuple[int, ...]] = Counter()
        self._fixed: dict[tuple[int, ...], Any] = {}

    def decode(self, images: Tensor) -> Tensor:
        """Compute the decoded predictions of a batch.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.

        Returns:
            Predictions (B, boxes, 5 + classes) on the CPU; see `to_decoded` for files that contain the suppression.
        """
        check_size(images, self._metadata)
        array = to_array(images, self._metadata.input)
        request = self._request_for(array.shape)
        results = request.infer([array], share_inputs=True, share_outputs=True)  # to_tensors copies the outputs
        return to_decoded(to_tensors([results[i] for i in range(len(results))]), self._metadata)

    def _request_for(self, shape: tuple[int, ...]) -> Any:
        """Return the model for this shape if there is one, else the model for all shapes."""
        if shape in self._fixed or len(self._fixed) == _MOST_FIXED_SHAPES or not self._model.is_dynamic():
            return self._fixed.get(shape, self._request)
        self._calls[shape] += 1
        if self._calls[shape] == _CALLS_BEFORE_FIXING:
            model = self._model.clone()
            model.reshape(list(shape))
            self._fixed[shape] = self._compile(model)
        return self._fixed.get(shape, self._request)

    def _compile(self, model: Any) -> Any:
        return self._core.compile_model(model, "CPU", self._options).create_infer_request()


def _read_model(path: Path) -> Any:
    import openvino

    try:
        return openvino.Core().read_model(path)
    except RuntimeError as error:
        raise ArtifactError(f"{path}: OpenVINO cannot read it ({one_line(error)}); {REMEDY}") from None
