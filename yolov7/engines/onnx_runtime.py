"""ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from torch import Tensor

from yolov7.engines.arrays import check_size, to_array, to_decoded, to_tensors
from yolov7.engines.metadata import INPUT, REMEDY, ExportMetadata, check_outputs
from yolov7.errors import ArtifactError, SettingError, one_line

_SPIN_MICROSECONDS = "1000"
"""How long a thread that waits for others spins until it sleeps; see `yolov7.system.threads.bound_spinning`."""


def has_gpu_provider() -> bool:
    """Return whether the installed package can run files on GPUs of NVIDIA."""
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@final
class OnnxRuntimeEngine:
    """Runs an ONNX file with ONNX Runtime, in the precision of the file."""

    def __init__(self, path: Path, metadata: ExportMetadata, *, device: torch.device) -> None:
        """Load the file.

        Args:
            path: The ONNX file.
            metadata: What it says about itself.
            device: The CPU or a GPU.

        Raises:
            ArtifactError: If the file is damaged.
            SettingError: If ONNX Runtime cannot use the device.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
        options.log_severity_level = 3  # errors
        providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            if not has_gpu_provider():
                raise SettingError(f"device='{device}' needs the package onnxruntime-gpu in place of onnxruntime")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": str(device.index or 0)}))
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the package raises classes of its own, one for each code of its status
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise ArtifactError(f"{path}: ONNX Runtime cannot load it ({one_line(error)}); {REMEDY}") from None
        check_outputs(path, (output.name for output in self._session.get_outputs()), metadata)
        self._metadata = metadata
        self.needs_suppression = metadata.needs_suppression

    def decode(self, images: Tensor) -> Tensor:
        """Compute the decoded predictions of a batch.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.

        Returns:
            Predictions (B, boxes, 5 + classes) on the CPU; see `to_decoded` for files that contain the suppression.
        """
        check_size(images, self._metadata)
        array = to_array(images, self._metadata.input)
        return to_decoded(to_tensors(self._session.run(None, {INPUT: array})), self._metadata)
