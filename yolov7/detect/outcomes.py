"""Detection in many sources: decoding, the model and the consumer of the results overlap in time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from yolov7.data.images import MAX_BYTES, Image, decode_image, explain_refusal, read_image
from yolov7.detect.detections import Detections
from yolov7.detect.detector import Detector, FittedImage
from yolov7.detect.sources import Source
from yolov7.detect.threads import in_background, latest, map_in_order
from yolov7.detect.tiles import Tiling
from yolov7.detect.video import Video
from yolov7.detect.web import fetch_image_unless_stream
from yolov7.errors import DataError, UserError, told
from yolov7.settings import NmsSettings

_MEMORY = 2**28  # bytes of decoded images that wait at one place
_MOST_WORKERS = 8


@dataclass(frozen=True)
class DetectionOptions:
    """How objects are detected in sources.

    Attributes:
        nms: Thresholds and limits.
        labels: Labels to detect; None detects every class.
        tiling: How images are divided into tiles; None looks at whole images.
        batch_size: Number of images, or of tiles, that the model processes at once.
        every: Of a video, only frames whose number is a multiple of this are looked at.
        keep_images: Whether outcomes contain the pixels.
    """

    nms: NmsSettings = field(default_factory=NmsSettings)
    labels: Sequence[int] | None = None
    tiling: Tiling | None = None
    batch_size: int = 16
    every: int = 1
    keep_images: bool = False


@dataclass(frozen=True)
class VideoFacts:
    """What is known of the video that a frame belongs to.

    Attributes:
        frames_per_second: Rate of the frames that are looked at.
        frame_count: Expected number of frames that are looked at; None for a camera or a stream.
    """

    frames_per_second: float
    frame_count: int | None


@dataclass(frozen=True)
class Outcome:
    """The result for an image or a frame, or an error about a source.

    Attributes:
        source: The source.
        found: The detections; None if there is an error instead.
        error: Why the source, or its remaining frames, could not be read, in one line.
        image: The pixels (H, W, 3) uint8 RGB, if they were asked for.
        frame: Number of the frame in its video, from 0; None for an image.
        video: Facts about the video of a frame.
    """

    source: Source
    found: Detections | None = None
    error: str | None = None
    image: Image | None = None
    frame: int | None = None
    video: VideoFacts | None = None

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        return 0 if self.image is None else self.image.nbytes


@dataclass(frozen=True)
class _Prepared:
    """An image that is ready for the model, an error, or a web address that turned out to be a video."""

    source: Source
    image: Image | None = None
    fitted: FittedImage | None = None
    error: str | None = None
    frame: int | None = None
    video: VideoFacts | None = None
    is_video: bool = False

    @property
    def size(self) -> int:
        fitted = 0 if self.fitted is None else self.fitted.pixels.nbytes
        return fitted + (0 if self.image is None else self.image.nbytes)


def detect_sources(detector: Detector, sources: Sequence[Source], options: DetectionOptions) -> Iterator[Outcome]:
    """Detect objects in sources.

    Threads read and decode images while the model runs. They are ahead by at most two batches and 256 MiB, or by one
    image per thread if images are larger.

    Args:
        detector: The detector.
        sources: The sources, from `find_sources`.
        options: How to detect.

    Yields:
        The outcomes, in the order of the sources and of their frames. A source that cannot be read yields an error, and
        the others go on. A video that is cut off yields its good frames and then an error.
    """
    images: list[Source] = []
    for source in sources:
        if source.kind in ("video", "camera", "stream"):
            yield from _detect_images(detector, images, options)
            images = []
            yield from _detect_video(detector, source, options)
        else:
            images.append(source)
    yield from _detect_images(detector, images, options)


def _detect_images(detector: Detector, sources: Sequence[Source], options: DetectionOptions) -> Iterator[Outcome]:
    if not sources:
        return
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    prepared = map_in_order(
        lambda source: _prepare(detector, source, options), sources, workers=workers, ahead=2 * workers
    )
    waiting = in_background(
        prepared, size_of=lambda one: one.size, most_items=2 * options.batch_size, most_bytes=_MEMORY
    )
    for batch in _batches(waiting, options.batch_size):
        if batch[-1].is_video:
            yield from _detect(detector, batch[:-1], options)
            yield from _detect_video(detector, batch[-1].source, options)
        else:
            yield from _detect(detector, batch, options)


def _detect_video(detector: Detector, source: Source, options: DetectionOptions) -> Iterator[Outcome]:
    try:
        video = Video(source)
    except DataError as error:
        yield Outcome(source, error=told(error))
        return
    with video:
        frames = _prepare_frames(detector, source, video, options)
        if not video.is_live:
            frames = in_background(
                frames, size_of=lambda one: one.size, most_items=2 * options.batch_size, most_bytes=_MEMORY
            )
        for batch in _batches(frames, 1 if video.is_live else options.batch_size):
            yield from _detect(detector, batch, options)


def _prepare(detector: Detector, source: Source, options: DetectionOptions) -> _Prepared:
    try:
        image = _read(source)
    except (UserError, OSError) as error:
        return _Prepared(source, error=told(error))
    if image is None:
        return _Prepared(source, is_video=True)
    return _fit(detector, source, image, options)


def _prepare_frames(detector: Detector, source: Source, video: Video, options: DetectionOptions) -> Iterator[_Prepared]:
    count = None if video.frame_count is None else -(-video.frame_count // options.every)
    facts = VideoFacts(video.frames_per_second / options.every, count)
    frames = video.frames(every=options.every)
    try:
        for frame in latest(frames) if video.is_live else frames:
            yield _fit(detector, source, frame.image, options, frame=frame.number, video=facts)
    except DataError as error:
        yield _Prepared(source, error=told(error))


def _fit(
    detector: Detector,
    source: Source,
    image: Image,
    options: DetectionOptions,
    *,
    frame: int | None = None,
    video: VideoFacts | None = None,
) -> _Prepared:
    fitted = None
    if options.tiling is None:
        path = Path(source.location) if source.kind == "image" else None
        fitted = detector.fit(image, source=path)
    kept = image if options.keep_images or fitted is None else None
    return _Prepared(source, kept, fitted, frame=frame, video=video)


def _read(source: Source) -> Image | None:
    """Return the image of a source; None if the source is a video at a web address."""
    if source.kind == "web":
        return fetch_image_unless_stream(source.location)
    if source.kind == "image":
        return read_image(Path(source.location))
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    image = decode_image(content) if len(content) <= MAX_BYTES else None
    if image is None:
        reason = explain_refusal(content) if content else "is empty"
        raise DataError(f"standard input {reason} ({len(content)} bytes); pipe the content of an image file into it")
    return image


def _batches(items: Iterable[_Prepared], batch_size: int) -> Iterator[list[_Prepared]]:
    """Group items so that a batch has enough images or bytes, or ends with a video."""
    batch: list[_Prepared] = []
    for item in items:
        batch.append(item)
        if len(batch) >= batch_size or item.is_video or sum(one.size for one in batch) >= _MEMORY:
            yield batch
            batch = []
    if batch:
        yield batch


def _detect(detector: Detector, batch: Sequence[_Prepared], options: DetectionOptions) -> Iterator[Outcome]:
    fitted = [one.fitted for one in batch if one.fitted is not None]
    found = iter(detector.detect(fitted, nms=options.nms, labels=options.labels) if fitted else ())
    for one in batch:
        if one.error is not None:
            yield Outcome(one.source, error=one.error)
        elif one.fitted is not None:
            yield Outcome(one.source, next(found), image=one.image, frame=one.frame, video=one.video)
        else:
            yield _detect_tiles(detector, one, options)


def _detect_tiles(detector: Detector, prepared: _Prepared, options: DetectionOptions) -> Outcome:
    assert prepared.image is not None
    assert options.tiling is not None
    try:
        found = detector.detect_tiled(
            prepared.image,
            tiling=options.tiling,
            nms=options.nms,
            labels=options.labels,
            batch_size=options.batch_size,
        )
    except UserError as error:  # too many tiles
        return Outcome(prepared.source, error=f"image {prepared.source.name}: {told(error)}")
    image = prepared.image if options.keep_images else None
    return Outcome(prepared.source, found, image=image, frame=prepared.frame, video=prepared.video)
