"""TensorRT, on a GPU of NVIDIA.

An engine file starts with the length of its metadata (8 bytes, little-endian) and the metadata (JSON); the serialised
engine follows. It fits one version of TensorRT and one kind of GPU.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from yolov7.engines.arrays import check_size, to_decoded
from yolov7.engines.metadata import INPUT, REMEDY, ExportMetadata
from yolov7.errors import ArtifactError, one_line
from yolov7.system.files import is_file, open_regular

_LENGTH = struct.Struct("<Q")
_MAX_TEXTS = 64 * 2**20  # bytes


def join_engine(texts: dict[str, str], plan: bytes) -> bytes:
    """Return the content of an engine file.

    Args:
        texts: The metadata.
        plan: The serialised engine.

    Returns:
        The bytes.
    """
    encoded = json.dumps(texts, ensure_ascii=False).encode()
    return _LENGTH.pack(len(encoded)) + encoded + plan


def read_tensorrt_texts(path: Path) -> dict[str, str]:
    """Return the texts that an engine file holds.

    Args:
        path: The file.

    Returns:
        The texts by name.

    Raises:
        ArtifactError: If the file is missing, damaged or not an engine file of this program.
    """
    return _split_engine(path)[0]


@final
class TensorRtEngine:
    """Runs an engine file of TensorRT. Only one thread may use it at a time."""

    def __init__(self, path: Path, metadata: ExportMetadata, *, device: torch.device) -> None:
        """Load the engine.

        Args:
            path: The engine file.
            metadata: What it says about itself.
            device: The GPU.

        Raises:
            ArtifactError: If this version of TensorRT on this GPU cannot use the engine.
        """
        import tensorrt

        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine: Any = self._runtime.deserialize_cuda_engine(_split_engine(path)[1])
        if self._engine is None:
            raise ArtifactError(
                f"{path}: TensorRT {tensorrt.__version__} cannot load it on this GPU; an engine fits one version and "
                "one kind of GPU, so export the model again on this machine"
            )
        self._context = self._engine.create_execution_context()
        self._dtypes = {
            tensorrt.float32: torch.float32,
            tensorrt.float16: torch.float16,
            tensorrt.int32: torch.int32,
            tensorrt.int64: torch.int64,
        }
        self._metadata = metadata
        self.needs_suppression = metadata.needs_suppression
        self._device = device

    @torch.inference_mode()
    def decode(self, images: Tensor) -> Tensor:
        """Compute the decoded predictions of a batch.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.

        Returns:
            Predictions (B, boxes, 5 + classes) on the GPU; see `to_decoded` for files that contain the suppression.
        """
        check_size(images, self._metadata)
        batch = images.to(self._device).contiguous()
        self._context.set_input_shape(INPUT, tuple(batch.shape))
        self._context.set_tensor_address(INPUT, batch.data_ptr())
        outputs = []
        for name in self._metadata.outputs:
            shape, dtype = tuple(self._context.get_tensor_shape(name)), self._engine.get_tensor_dtype(name)
            outputs.append(torch.empty(shape, dtype=self._dtypes[dtype], device=self._device))
            self._context.set_tensor_address(name, outputs[-1].data_ptr())
        stream = torch.cuda.current_stream(self._device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        stream.synchronize()
        return to_decoded(outputs, self._metadata)


def _split_engine(path: Path) -> tuple[dict[str, str], bytes]:
    if not is_file(path):
        raise ArtifactError(f"{path}: there is no such file; {REMEDY}")
    try:
        with open_regular(path) as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > _MAX_TEXTS:
                raise ValueError("its metadata are too long")
            texts = json.loads(file.read(length))
            return {str(key): str(value) for key, value in texts.items()}, file.read()
    except (ValueError, AttributeError, RecursionError, struct.error) as error:
        raise ArtifactError(f"{path}: is not an engine file of this program ({one_line(error)}); {REMEDY}") from None
