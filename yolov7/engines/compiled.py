"""torch.compile and CUDA graphs: the modules of a weight file, run without Python between their operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from yolov7.nn.model import DetectionModel
from yolov7.system.precision import autocast

_WARMUPS = 3  # runs before a graph is captured, as torch's documentation advises
_MAX_GRAPHS = 8  # shapes of batches for which a graph is kept


@final
class CompiledEngine:
    """Runs a model with torch.compile. The first batch of each shape is slow."""

    def __init__(self, model: DetectionModel, dtype: torch.dtype) -> None:
        """Keep the model, which is compiled when the first batch arrives.

        Args:
            model: The model in evaluation mode.
            dtype: Floating-point type of the forward pass.
        """
        device = next(model.parameters()).device

        def forward(images: Tensor) -> Tensor:
            with autocast(dtype, device):
                maps = model(images.float() / 255)
            return model.decode(maps)

        # Freezing makes constants of the weights, so that they can be stored as the convolutions read them.
        self._run = torch.compile(forward, options={"freezing": True} if device.type == "cpu" else None)
        self._device = device
        self.needs_suppression = model.spec.head.needs_suppression

    @torch.no_grad()  # freezing needs this; it has no effect in inference_mode
    def decode(self, images: Tensor) -> Tensor:
        """Compute the decoded predictions of a batch.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.

        Returns:
            Predictions (B, boxes, 5 + classes) on the model's device.
        """
        decoded: Tensor = self._run(images.to(self._device, non_blocking=True))
        return decoded


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    images: Tensor
    decoded: Tensor


@final
class CudaGraphEngine:
    """Runs a model as a CUDA graph, which is captured for each shape of a batch. Only one thread may use it."""

    def __init__(self, model: DetectionModel, dtype: torch.dtype) -> None:
        """Keep the model.

        Args:
            model: The model in evaluation mode, on a GPU.
            dtype: Floating-point type of the forward pass.
        """
        self._model = model
        self.needs_suppression = model.spec.head.needs_suppression
        self._dtype = dtype
        self._device = next(model.parameters()).device
        self._graphs: dict[tuple[int, ...], _Captured] = {}

    @torch.inference_mode()
    def decode(self, images: Tensor) -> Tensor:
        """Compute the decoded predictions of a batch.

        Args:
            images: Letterboxed images (B, 3, H, W) uint8 RGB, on any device and in any memory format.

        Returns:
            Predictions (B, boxes, 5 + classes) on the model's device.
        """
        shape = tuple(images.shape)
        if shape not in self._graphs:
            if len(self._graphs) == _MAX_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[shape] = self._capture(images)
        captured = self._graphs[shape]
        captured.images.copy_(images, non_blocking=True)
        captured.graph.replay()
        return captured.decoded.clone()

    def _capture(self, images: Tensor) -> _Captured:
        static = images.to(self._device, copy=True)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUPS):
                self._forward(static)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            decoded = self._forward(static)
        return _Captured(graph, static, decoded)

    def _forward(self, images: Tensor) -> Tensor:
        # Autocast would keep converted weights between the captures otherwise.
        with torch.autocast(self._device.type, self._dtype, self._dtype != torch.float32, cache_enabled=False):
            maps = self._model(images.float() / 255)
        return self._model.decode(maps)
