"""Frames of video files, cameras and streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import final

import cv2
import numpy as np

from yolov7.data.images import Image
from yolov7.detect.sources import Source
from yolov7.errors import DataError

_PATIENCE = 10_000  # milliseconds after which a silent server or camera is given up
_USUAL_RATE = 25.0  # frames per second where a source does not state a plausible rate
_HIGHEST_RATE = 1000.0
_COMPLETE = 0.98  # share of the stated frames, or of the stated time, from which on a video counts as complete


@dataclass(frozen=True)
class Frame:
    """One image of a video.

    Attributes:
        number: Its position among all frames of the video, from 0.
        image: Image (H, W, 3) uint8 RGB.
    """

    number: int
    image: Image


@final
class Video:
    """An opened video file, camera or stream. As a context, it closes itself.

    Attributes:
        name: The source, to be shown.
        frames_per_second: The stated rate, or 25 where none is stated.
        frame_count: The stated number of frames; None for a camera or a stream, whose end is unknown.
    """

    def __init__(self, source: Source) -> None:
        """Open a source.

        Args:
            source: A source of the kind `video`, `camera`, `stream` or `web`.

        Raises:
            DataError: If it cannot be opened.
        """
        self.name = source.name
        self._capture = _open(source)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_second = rate if 0 < rate <= _HIGHEST_RATE else _USUAL_RATE
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frame_count = round(count) if source.kind in ("video", "web") and count > 0 else None

    def __enter__(self) -> Video:
        """Return the video."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the video."""
        self._capture.release()

    @property
    def is_live(self) -> bool:
        """Whether frames arrive in real time, so that late ones are worthless."""
        return self.frame_count is None

    def frames(self, *, every: int = 1) -> Iterator[Frame]:
        """Read the frames.

        Args:
            every: Yield the first frame and then each frame whose number is a multiple of this.

        Yields:
            The frames in their order.

        Raises:
            DataError: After the last frame, if the file is cut off or the stream stopped. All frames before it are
                good.
        """
        number, milliseconds = 0, 0.0
        while self._capture.grab():
            milliseconds = max(milliseconds, self._capture.get(cv2.CAP_PROP_POS_MSEC))
            if number % every == 0:
                good, image = self._capture.retrieve()
                if not good or image is None:
                    break
                yield Frame(number, np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8))
            number += 1
        self._check_end(number, milliseconds / 1000)

    def _check_end(self, number: int, seconds: float) -> None:
        if self.frame_count is None:
            raise DataError(f"the stream {self.name} stopped after {number:,} frames; start again to continue")
        if number == 0:
            raise DataError(f"video {self.name} has no frame that can be decoded; replace the file")
        duration = self.frame_count / self.frames_per_second
        if number + 1 < _COMPLETE * self.frame_count and seconds + 2 / self.frames_per_second < _COMPLETE * duration:
            raise DataError(
                f"video {self.name} ends after {number:,} of about {self.frame_count:,} frames; "
                "the file is cut off or damaged, replace it"
            )


def _open(source: Source) -> cv2.VideoCapture:
    if source.kind == "camera":
        capture = cv2.VideoCapture(int(source.location))
        remedy = "check that it is connected, that no other program uses it, and that you may read it"
    else:
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _PATIENCE, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _PATIENCE]
        capture = cv2.VideoCapture(source.location, cv2.CAP_FFMPEG, limits)
        remedy = "check the address and the server" if source.kind != "video" else "the file is damaged or not a video"
    if not capture.isOpened():
        raise DataError(f"{source.kind if source.kind != 'web' else 'stream'} {source.name} cannot be opened; {remedy}")
    return capture
