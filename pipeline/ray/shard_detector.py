"""The work of one process of a large prediction job: detect objects in the images of a shard, and write the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np
import torch

from pipeline.ray.shards import Folder, Row, ShardFormat, ShardStore
from yolov7.data.augment.letterbox import Letterbox, letterbox
from yolov7.data.images import Image
from yolov7.detect.messages import answer_of, image_from_message
from yolov7.engines.opened_model import OpenedModel, open_model
from yolov7.errors import DataError, UserError
from yolov7.inference.batch import detect_batch
from yolov7.settings import NmsSettings

_BATCHES_AHEAD = 2  # that are read while the model runs


@dataclass(frozen=True)
class ShardWork:
    """What a process of the job needs to know.

    Attributes:
        weights: A weight file, an exported file, or a folder with an exported model.
        source: The folder or URI with the images.
        out: The folder or URI of the results.
        format: The format of the results.
        nms: Thresholds and limits.
        batch_size: Number of images that the model processes at once.
        engine: Name of the engine.
        device: The device.
        precision: The floating-point type.
        cpus: Number of threads that read images, and of threads that compute.
    """

    weights: str
    source: str
    out: str
    format: ShardFormat
    nms: NmsSettings
    batch_size: int
    engine: str
    device: str
    precision: str
    cpus: int = 1


class _Read(NamedTuple):
    """An image that was read: its pixels, or what is wrong with it."""

    path: str
    pixels: Image | None
    geometry: Letterbox | None
    error: str | None = None


@final
class ShardDetector:
    """Open the model once, and work on any number of shards. Images are read while the model runs."""

    def __init__(self, work: ShardWork) -> None:
        """Keep the settings; the model is opened by the first shard.

        Args:
            work: What to do.
        """
        torch.set_num_threads(work.cpus)
        self._work = work
        self._readers = ThreadPoolExecutor(max(2, work.cpus), thread_name_prefix="reader")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Work on a shard.

        Args:
            row: The number of the shard under `shard`, and under `paths` its images, relative to the source.

        Returns:
            The number of images under `images`, and under `problem` the message of an error that the user can correct;
            an exception would reach the user with a traceback of Ray.
        """
        try:
            rows = [row for batch in self._batches([str(path) for path in row["paths"]]) for row in self._detect(batch)]
            self._store.finish(int(row["shard"]), rows, format=self._work.format)
        except UserError as error:
            return {"images": 0, "problem": str(error)}
        return {"images": len(rows), "problem": ""}

    @cached_property
    def _source(self) -> Folder:
        return Folder(self._work.source)

    @cached_property
    def _store(self) -> ShardStore:
        return ShardStore(self._work.out)

    @cached_property
    def _model(self) -> OpenedModel:
        work = self._work
        model = open_model(work.weights, engine=work.engine, device=work.device, precision=work.precision)
        model.check_confidence(work.nms)
        return model

    def _batches(self, paths: Sequence[str]) -> Iterator[list[_Read]]:
        """Yield the images of each batch, and read those of the next batches meanwhile."""
        _ = self._source, self._model  # opened here, before threads use them
        ahead: deque[list[Future[_Read]]] = deque()
        for start in range(0, len(paths), self._work.batch_size):
            ahead.append([self._readers.submit(self._read, p) for p in paths[start : start + self._work.batch_size]])
            if len(ahead) > _BATCHES_AHEAD:
                yield [future.result() for future in ahead.popleft()]
        for futures in ahead:
            yield [future.result() for future in futures]

    def _read(self, path: str) -> _Read:
        content = self._source.read(path)
        if content is None:
            return _Read(path, None, None, "the file is missing or may not be read")
        try:
            image = image_from_message(content)
        except DataError as error:
            return _Read(path, None, None, str(error))
        return _Read(path, *letterbox(image, size=self._model.image_size, mode=self._model.letterbox))

    def _detect(self, batch: Sequence[_Read]) -> list[Row]:
        good = [(one.path, one.pixels, one.geometry) for one in batch if one.pixels is not None and one.geometry]
        rows: dict[str, Row] = {one.path: {"path": one.path, "error": one.error} for one in batch}
        if good:
            paths, pixels, ways = zip(*good, strict=True)
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # B 3 S S
            for path, way, found in zip(
                paths, ways, detect_batch(self._model.engine, images, ways, nms=self._work.nms), strict=True
            ):
                names = self._model.class_names
                rows[path] = {"path": path, **answer_of(found, class_names=names, width=way.width, height=way.height)}
        return list(rows.values())
