"""The service without HTTP: models that are ready, requests in, answers out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any, final

import numpy as np
import torch

from pipeline.serving.batches import BatchRunner
from pipeline.serving.requests import image_of_request
from pipeline.serving.settings import ServingSettings
from yolov7.data.augment.letterbox import Letterbox, letterbox
from yolov7.data.images import Image
from yolov7.detect.messages import Answer, answer_of
from yolov7.engines.engine_table import engines
from yolov7.engines.opened_model import OpenedModel, open_model
from yolov7.inference.batch import detect_batch
from yolov7.settings import NmsSettings
from yolov7.system.threads import usable_cpus, wanted_threads

_DISTRIBUTION = "yolov7-pipeline"


@final
class Service:
    """A model that answers requests."""

    def __init__(self, settings: ServingSettings) -> None:
        """Open the model, once for each replica, and run it on an empty image.

        Args:
            settings: What is served, and its limits.

        Raises:
            ArtifactError: If the file is not a model.
            SettingError: If the engine, the device or the precision is unknown or not available.
        """
        self.settings = settings
        cpus = usable_cpus()
        share = min(torch.get_num_threads(), cpus // settings.replicas)
        torch.set_num_threads(wanted_threads(share))  # before engines take over the number
        first = _open(settings, device=settings.device)
        first.check_confidence(settings.nms)
        models = [first, *(_open(settings, device=device) for device in _further_devices(settings, first))]
        self._model = first
        self.metadata: Mapping[str, Any] = _describe(first, settings)
        """What `GET /metadata` answers."""
        self.notes = first.notes
        """What the user should know about the choice of the engine and the precision."""
        self._readers = ThreadPoolExecutor(cpus, thread_name_prefix="reader")
        self._runner = BatchRunner([model.engine for model in models], max_batch=settings.max_batch)

    @property
    def is_healthy(self) -> bool:
        """Whether the model still works; a GPU, for example, may have failed."""
        return not self._runner.is_failing

    async def answer(self, body: bytes, *, content_type: str, nms: NmsSettings) -> Answer:
        """Detect the objects in the image of a request.

        Args:
            body: The body of the request.
            content_type: The header of this name; empty if there is none.
            nms: Thresholds and limits.

        Returns:
            The answer.

        Raises:
            DataError: If there is no image in the request, or if it is too large.
            SettingError: If the file of the model leaves out detections of this confidence.
        """
        self._model.check_confidence(nms)
        loop = asyncio.get_running_loop()
        pixels, geometry = await loop.run_in_executor(self._readers, self._read, body, content_type)
        found = await asyncio.wrap_future(self._runner.submit(pixels, geometry, nms=nms))
        return answer_of(found, class_names=self._model.class_names, width=geometry.width, height=geometry.height)

    def close(self) -> None:
        """Drop the requests in progress, and end all threads."""
        self._readers.shutdown(cancel_futures=True)
        self._runner.close()

    def _read(self, body: bytes, content_type: str) -> tuple[Image, Letterbox]:
        most = self.settings.max_megapixels * 1_000_000
        image = image_of_request(body, content_type=content_type, max_pixels=most)
        return letterbox(image, size=self._model.image_size, mode=self._model.letterbox)


def _further_devices(settings: ServingSettings, first: OpenedModel) -> list[str]:
    """Return the device of each replica after the first one, which is on the first GPU if its engine runs on GPUs."""
    count = torch.cuda.device_count()
    uses_gpus = next(info.runs_on_gpu() for info in engines() if info.name == first.engine_name)
    is_free = settings.device == "auto" and count > 1 and uses_gpus
    return [f"cuda:{replica % count}" if is_free else settings.device for replica in range(1, settings.replicas)]


def _open(settings: ServingSettings, *, device: str) -> OpenedModel:
    model = open_model(settings.weights, engine=settings.engine, device=device, precision=settings.precision)
    empty, geometry = letterbox(np.zeros((1, 1, 3), np.uint8), size=model.image_size)
    images = torch.from_numpy(empty).permute(2, 0, 1)[None]  # 1 3 S S
    detect_batch(model.engine, images, [geometry], nms=settings.nms)  # what the engine prepares on its first run
    return model


def _describe(model: OpenedModel, settings: ServingSettings) -> dict[str, Any]:
    return {
        "version": _version(),
        "weights": model.path.name,
        **model.source,
        "class_names": list(model.class_names),
        "image_size": model.image_size,
        "engine": model.engine_name,
        "precision": model.precision,
        "defaults": settings.nms.model_dump(include={"confidence", "iou", "max_detections"}),
        "limits": settings.model_dump(
            include={"replicas", "max_batch", "max_queue", "max_body_megabytes", "max_megapixels"}
        ),
    }


def _version() -> str | None:
    try:
        return version(_DISTRIBUTION)
    except PackageNotFoundError:
        return None
