"""Files that `yolov7 predict` writes: pictures, videos, crops, JSON lines, COCO, YOLO and CSV."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TextIO, final

import cv2
import numpy as np

from yolov7.data.augment.letterbox import resize
from yolov7.data.images import Image
from yolov7.detect.detections import Detections
from yolov7.detect.drawing import write_picture
from yolov7.detect.outcomes import Outcome
from yolov7.errors import DataError

_LONGEST_SIDE = 65_000  # pixels; a JPEG file cannot be larger


@dataclass(frozen=True)
class NamedOutcome:
    """An outcome with the name of its files.

    Attributes:
        outcome: The outcome.
        name: Relative path without suffix; the frames of one video share it.
        picture: The drawing of the detections, if there is one.
    """

    outcome: Outcome
    name: str
    picture: Image | None = None

    @property
    def frame_name(self) -> str:
        """The name, with the number of the frame if it is one."""
        frame = self.outcome.frame
        return self.name if frame is None else f"{self.name}_{frame:06}"


class OutcomeFile(Protocol):
    """A file, or a folder of files, to which outcomes are written in their order."""

    def write(self, item: NamedOutcome, found: Detections) -> None:
        """Write an outcome without an error.

        Args:
            item: The outcome.
            found: Its detections.

        Raises:
            OSError: If the file cannot be written.
        """
        ...

    def close(self) -> None:
        """Complete the file. It is valid also if the run was interrupted."""
        ...


class NameList:
    """Gives each source a name for its files that no other source has."""

    def __init__(self) -> None:
        """Start without names."""
        self._used: set[str] = set()

    def unique(self, name: str) -> str:
        """Return the name, with `-2`, `-3` and so on appended if it was used before.

        Args:
            name: A relative path without suffix.
        """
        number, candidate = 1, name
        while candidate.casefold() in self._used:
            number += 1
            candidate = f"{name}-{number}"
        self._used.add(candidate.casefold())
        return candidate


def json_line(outcome: Outcome, *, with_counts: bool) -> str:
    """Return an outcome as one line of JSON.

    Args:
        outcome: The outcome.
        with_counts: Whether the number of detections of each class is added.

    Returns:
        An object with `source`, `frame` (of a video), and either `error` or `width`, `height` and `detections`.
    """
    line: dict[str, Any] = {"source": outcome.source.name}
    if outcome.frame is not None:
        line["frame"] = outcome.frame
    if outcome.found is None:
        line["error"] = outcome.error
    else:
        line["width"], line["height"] = outcome.found.image_size
        line["detections"] = [
            {
                "box_xyxy": [round(value, 2) for value in one.box_xyxy],
                "score": round(one.score, 4),
                "label": one.label,
                "name": one.name,
            }
            for one in outcome.found
        ]
        if with_counts:
            line["counts"] = outcome.found.counts()
    return json.dumps(line, ensure_ascii=False)


@final
class PictureFiles:
    """Annotated pictures as JPEG files, and annotated videos as MP4 files."""

    def __init__(self, folder: Path) -> None:
        """Write into a folder.

        Args:
            folder: The folder; it is made when the first picture is written.
        """
        self._folder = folder
        self._video: cv2.VideoWriter | None = None
        self._video_name, self._video_size = "", (0, 0)

    def write(self, item: NamedOutcome, found: Detections) -> None:
        """Write the drawing of an outcome.

        Args:
            item: The outcome with its drawing.
            found: Its detections.

        Raises:
            DataError: If this installation of OpenCV cannot write videos.
            OSError: If the file cannot be written.
        """
        if item.picture is None:
            return
        if item.outcome.video is None:
            write_storable(self._folder / f"{item.name}.jpg", item.picture)
            return
        if self._video is None or self._video_name != item.name:
            self._start_video(item, item.outcome.video.frames_per_second, item.picture)
        assert self._video is not None
        width, height = self._video_size
        self._video.write(cv2.cvtColor(resize(item.picture, width=width, height=height), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Complete the video that is being written."""
        if self._video is not None:
            self._video.release()
            self._video = None

    def _start_video(self, item: NamedOutcome, rate: float, picture: Image) -> None:
        self.close()
        path = self._folder / f"{item.name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        even = [max(2, side // 2 * 2) for side in picture.shape[1::-1]]  # MPEG-4 stores colours at half the resolution
        self._video_name, self._video_size = item.name, (even[0], even[1])
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, self._video_size)
        if not self._video.isOpened():
            self._video = None
            raise DataError(
                f"video {path} with {even[0]} x {even[1]} pixels at {rate:g} frames per second cannot be written; "
                "check that the folder can be written, or use --no-pictures"
            )


@final
class CropFiles:
    """Objects that are cut out of the images, in one folder per class."""

    def __init__(self, folder: Path) -> None:
        """Write into a folder.

        Args:
            folder: The folder; it is made when the first object is written.
        """
        self._folder = folder

    def write(self, item: NamedOutcome, found: Detections) -> None:
        """Write the objects of an outcome as `CLASS/NAME_1.jpg`, best first.

        Args:
            item: The outcome with its pixels.
            found: Its detections.

        Raises:
            OSError: If a file cannot be written.
        """
        for i, (one, crop) in enumerate(zip(found, found.crops(item.outcome.image), strict=True), start=1):
            folder = re.sub(r"[^\w .()+-]", "_", one.name).strip(". ") or f"class {one.label}"
            write_storable(self._folder / folder / f"{item.frame_name}_{i}.jpg", crop)

    def close(self) -> None:
        """Do nothing: every file is complete."""


@final
class YoloFiles:
    """Text files in the format of YOLO labels, one per image or frame."""

    def __init__(self, folder: Path) -> None:
        """Write into a folder.

        Args:
            folder: The folder.
        """
        self._folder = folder

    def write(self, item: NamedOutcome, found: Detections) -> None:
        """Write one line per detection: label, then centre, width and height as shares of the image, then score.

        Args:
            item: The outcome.
            found: Its detections; an image without detections gets an empty file.

        Raises:
            OSError: If the file cannot be written.
        """
        width, height = found.image_size
        lines = []
        for (left, top, right, bottom), score, label, _ in found:
            box = (
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            )
            lines.append(f"{label} {' '.join(f'{value:.6f}' for value in box)} {score:.4f}\n")
        path = self._folder / f"{item.frame_name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")

    def close(self) -> None:
        """Do nothing: every file is complete."""


@final
class CsvFile:
    """A table with one row per detection."""

    def __init__(self, path: Path) -> None:
        """Write the head of the table.

        Args:
            path: The file.

        Raises:
            OSError: If the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["source", "frame", "left", "top", "right", "bottom", "score", "label", "name"])

    def write(self, item: NamedOutcome, found: Detections) -> None:
        """Write the rows of an outcome.

        Args:
            item: The outcome.
            found: Its detections.

        Raises:
            OSError: If the file cannot be written.
        """
        outcome = item.outcome
        frame = "" if outcome.frame is None else outcome.frame
        for box, score, label, name in found:
            numbers = [f"{value:.2f}" for value in box]
            self._rows.writerow([outcome.source.name, frame, *numbers, f"{score:.4f}", label, name])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@final
class CocoFile:
    """A COCO annotation file with a `score` for each annotation.

    Its list `annotations` is a COCO results file. Annotations are written as they come; images are kept in a temporary
    file, so that the memory does not grow.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        """Start the file.

        Args:
            path: The file.
            class_names: Names by label; the category ids are 1 to the number of classes.

        Raises:
            OSError: If the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._images: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # closed by `close`
        self._image_count = self._annotation_count = 0
        categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
        self._file.write(f'{{"categories": {json.dumps(categories, ensure_ascii=False)},\n"annotations": [')

    def write(self, item: NamedOutcome, found: Detections) -> None:
        """Write the annotations of an outcome.

        Args:
            item: The outcome.
            found: Its detections.

        Raises:
            OSError: If the file cannot be written.
        """
        outcome = item.outcome
        self._image_count += 1
        name = outcome.source.name if outcome.frame is None else f"{outcome.source.name}#{outcome.frame}"
        image = {
            "id": self._image_count,
            "file_name": name,
            "width": found.image_size[0],
            "height": found.image_size[1],
        }
        self._images.write(f"{',' if self._image_count > 1 else ''}\n{json.dumps(image, ensure_ascii=False)}")
        for one in found.to_coco(self._image_count):
            self._annotation_count += 1
            area = round(one["bbox"][2] * one["bbox"][3], 3)
            annotation = {"id": self._annotation_count, **one, "area": area, "iscrowd": 0}
            self._file.write(f"{',' if self._annotation_count > 1 else ''}\n{json.dumps(annotation)}")

    def close(self) -> None:
        """Write the images and close the file."""
        self._file.write('],\n"images": [')
        self._images.seek(0)
        for line in self._images:
            self._file.write(line)
        self._file.write("]}\n")
        self._file.close()
        self._images.close()


def write_storable(path: Path, picture: Image) -> None:
    """Write a picture as a JPEG file; shrink it if its sides are longer than the format allows.

    Args:
        path: The file; missing folders are made.
        picture: (H, W, 3) uint8 RGB.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = picture.shape[:2]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    smaller = resize(
        np.ascontiguousarray(picture), width=max(1, int(width * scale)), height=max(1, int(height * scale))
    )
    write_picture(path, smaller)
